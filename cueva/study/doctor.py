"""What this machine can do, what will be slow on it, and what to do about it: the facts behind `cueva doctor`."""

import importlib.metadata
import importlib.util
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cueva.study import machine
from cueva.study.doctor_kernels import about_kernels, examine_kernels, kernel_rows
from cueva.study.summary import cueva_version, sized

PACKAGES: Final = ("numpy", "tokenizers", "safetensors", "huggingface_hub")
EXTRAS: Final = {"data": ("datasets", "pyarrow", "zstandard"), "gguf": ("gguf",), "study": ("matplotlib",)}
VARIABLES: Final = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)
SECRET: Final = ("KEY", "TOKEN", "SECRET", "PASSWORD")
GIB: Final = 1 << 30


def examine(*, measured: bool = True) -> dict[str, Any]:
    """Look at the machine, the installation and the environment.

    Args:
        measured: take the measurements too (about one second; less than two on a slow machine).

    Returns:
        JSON-able: `machine`, `versions`, `devices`, `threads`, `measured` (or None), what `examine_kernels` finds
        (`kernels`, `native`, `openmp`), `disk`, `environment`, and `advice`: a list of `what`, `why`, `fix`.
    """
    import torch

    from cueva.kernels.native import default_threads

    cores, memory = machine.cores(), machine.memory()
    result: dict[str, Any] = {
        "machine": {
            "processor": machine.processor(),
            "architecture": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
            "cores": cores,
            "memory": memory,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "bfloat16_instructions": _bfloat16_instructions(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
        "versions": _versions(),
        "devices": _devices(),
        "threads": {
            "torch": torch.get_num_threads(),
            "between_operations": torch.get_num_interop_threads(),
            "engine": default_threads(),
        },
        "measured": machine.measure() if measured else None,
        **examine_kernels(),
        "disk": _disk(),
        "environment": _environment(),
    }
    result["advice"] = advise(result)
    return result


def _bfloat16_instructions() -> list[str]:
    return sorted(machine.instruction_flags() & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def _versions() -> dict[str, Any]:
    import torch

    cuda, hip = torch.version.cuda, getattr(torch.version, "hip", None)
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU"
    extras = {name: all(importlib.util.find_spec(part) for part in parts) for name, parts in EXTRAS.items()}
    versions: dict[str, Any] = {"cueva": cueva_version(), "python": platform.python_version()}
    versions |= {"torch": torch.__version__, "torch_build": build}
    return versions | {name: _version(name) for name in PACKAGES} | {"extras": extras}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    found: list[dict[str, Any]] = [{"name": "cpu", "title": machine.processor(), "memory": machine.memory()["total"]}]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            found.append({"name": f"cuda:{index}", "title": about.name, "memory": about.total_memory})
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "title": "Apple GPU", "memory": None})
    return found


def _disk() -> list[dict[str, Any]]:
    """Where things will be written: runs below the current folder, downloads in the hub's cache, scratch."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    places = {"runs": Path.cwd(), "hub cache": hub, "temporary": Path(tempfile.gettempdir())}
    return [
        {"what": what, "path": str(path), "exists": path.exists(), "free": machine.free_bytes(path)}
        for what, path in places.items()
    ]


def _environment() -> dict[str, str]:
    """The variables that cueva or the libraries below it read, where they are set; secrets are not shown."""
    names = [*VARIABLES, *sorted(name for name in os.environ if name.startswith("CUEVA_"))]
    return {
        name: "(set, not shown)" if any(part in name for part in SECRET) else os.environ[name]
        for name in names
        if name in os.environ
    }


# --- advice -----------------------------------------------------------------------------------------------------------


def advise(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """What will be slow or fail here, why, and what helps; the most important first."""
    advice = [*about_kernels(facts), *_about_threads(facts), *_about_devices(facts), *_about_arithmetic(facts)]
    advice += _about_room(facts)
    return [{"what": what, "why": why, "fix": fix} for what, why, fix in advice]


def _about_threads(facts: Mapping[str, Any]) -> Sequence[tuple[str, str, str]]:
    usable, threads = facts["machine"]["cores"]["usable"], facts["threads"]["torch"]
    load = facts["machine"]["load"]
    found = []
    if threads > usable:
        why = (
            f"torch starts {threads} threads on {usable} usable {_plural(usable, 'core')}, and they wait for each other"
        )
        found.append(("every operation will be slower than it could be", why, f"export OMP_NUM_THREADS={usable}"))
    elif threads < usable:
        asked = "OMP_NUM_THREADS" in facts["environment"] or "MKL_NUM_THREADS" in facts["environment"]
        fix = "unset OMP_NUM_THREADS and MKL_NUM_THREADS" if asked else f"export OMP_NUM_THREADS={usable}"
        found.append(("cores stay idle", f"torch uses {threads} of {usable} usable cores", fix))
    if load is not None and load > usable * 1.5:
        why = f"about {load:.0f} processes want the {usable} usable {_plural(usable, 'core')}"
        found.append(
            ("this machine is busy, and the measurements here are low", why, "let the other work finish first")
        )
    return found


def _about_devices(facts: Mapping[str, Any]) -> Sequence[tuple[str, str, str]]:
    build = facts["versions"]["torch_build"]
    has_gpu = any(device["name"].startswith("cuda") for device in facts["devices"])
    if build == "CPU" and Path("/proc/driver/nvidia/version").exists():
        why = "there is an NVIDIA driver, but this torch is built for the CPU only"
        return [
            ("the GPU is not used", why, "install the CUDA build of torch: https://pytorch.org/get-started/locally")
        ]
    if build != "CPU" and not has_gpu:
        fix = "check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES, or ignore this if there is no GPU"
        return [("everything runs on the CPU", f"torch is built for {build}, but sees no such device", fix)]
    return []


def _about_arithmetic(facts: Mapping[str, Any]) -> Sequence[tuple[str, str, str]]:
    measured, instructions = facts["measured"], facts["machine"]["instructions"]
    found = []
    if instructions in ("DEFAULT", "NO AVX") and facts["machine"]["architecture"] in ("x86_64", "AMD64"):
        why = "torch found no AVX2 on this processor, or ATEN_CPU_CAPABILITY forbids it"
        found.append(
            ("matrix products take several times as long", why, "unset ATEN_CPU_CAPABILITY, or use a newer machine")
        )
    if measured and measured["bfloat16_flops"] and measured["bfloat16_flops"] < 0.9 * measured["float32_flops"]:
        times = measured["float32_flops"] / measured["bfloat16_flops"]
        why = f"bfloat16 products take {times:.1f} times as long as float32 ones here"
        if not facts["machine"]["bfloat16_instructions"]:
            why += ": the processor has no instructions for them"
        fix = 'train with run.precision = "float32" (the default), generate with weights="f32" if the model fits'
        found.append(("bfloat16 saves memory but costs time", why, fix))
    return found


def _about_room(facts: Mapping[str, Any]) -> Sequence[tuple[str, str, str]]:
    memory = facts["machine"]["memory"]
    room = min((memory[key] for key in ("available", "limit") if memory[key] is not None), default=None)
    found = []
    if room is not None and room < 2 * GIB:
        why = f"{sized(room)} of memory can be used"
        found.append(("only small models fit", why, "close other programs, or choose the preset tiny"))
    for place in facts["disk"]:
        if place["free"] is not None and place["free"] < 2 * GIB and place["what"] != "temporary":
            why = f"{place['path']} has {sized(place['free'])} free"
            fix = (
                "set HF_HOME to a larger disk" if place["what"] == "hub cache" else "work in a folder on a larger disk"
            )
            found.append((f"{'downloads' if place['what'] == 'hub cache' else 'saving a run'} may fail", why, fix))
    return found


def _plural(count: float, word: str) -> str:
    return word if count == 1 else f"{word}s"


# --- words ------------------------------------------------------------------------------------------------------------


def format_examination(facts: Mapping[str, Any]) -> str:
    """The examination as at most 40 lines of plain text."""
    about, versions, measured = facts["machine"], facts["versions"], facts["measured"]
    rows = [
        ("processor", f"{about['processor']} ({about['architecture']}, {about['system']})"),
        ("cores", _cores(about["cores"], facts["threads"])),
        ("instructions", _instructions(about)),
        ("memory", _memory(about["memory"])),
        ("measured", _measured(measured)),
        ("python, torch", f"{versions['python']}, {versions['torch']} ({versions['torch_build']} build)"),
        ("packages", ", ".join(f"{name} {versions[name] or 'absent'}" for name in ("cueva", *PACKAGES))),
        (
            "extras",
            ", ".join(f"{name} {'present' if there else 'absent'}" for name, there in versions["extras"].items()),
        ),
    ]
    gpus = [f"{device['name']} {device['title']}" for device in facts["devices"] if device["name"] != "cpu"]
    rows.append(("devices", "; ".join(gpus[:4]) if gpus else "the CPU only"))
    rows += kernel_rows(facts)
    for place in facts["disk"]:
        free = "unknown" if place["free"] is None else sized(place["free"])
        rows.append((f"{place['what']}", f"{free} free, {place['path']}{'' if place['exists'] else ' (not made yet)'}"))
    settings = [f"{name}={value}" for name, value in facts["environment"].items()]
    rows.append(("environment", "  ".join(settings[:8]) if settings else "no variable that cueva reads is set"))
    lines = [f"{name:<15}{value}" for name, value in rows]
    if not facts["advice"]:
        return "\n".join([*lines, "", "Nothing here will be slower than it has to be."])
    lines += ["", "What will be slow, and why"]
    for item in facts["advice"][:6]:
        lines += [f"- {item['what']}: {item['why']}", f"  fix: {item['fix']}"]
    return "\n".join(lines)


def _cores(cores: Mapping[str, Any], threads: Mapping[str, int]) -> str:
    limits = []
    if cores["allowed"] < cores["machine"]:
        limits.append(f"affinity allows {cores['allowed']}")
    if cores["quota"] is not None:
        limits.append(f"control group grants {cores['quota']:g}")
    why = f" ({', '.join(limits)})" if limits else ""
    used = f"torch uses {threads['torch']} threads, an engine {threads['engine']}"
    return f"{cores['usable']} usable of {cores['machine']}{why}; {used}"


def _instructions(about: Mapping[str, Any]) -> str:
    special = ", ".join(about["bfloat16_instructions"])
    half = f"by {special}" if special else "has no instructions of its own"
    return f"torch uses {about['instructions']}; bfloat16 {half}"


def _memory(memory: Mapping[str, int | None]) -> str:
    parts = []
    for key, word in (("total", "in all"), ("available", "available"), ("limit", "granted by the control group")):
        value = memory[key]
        if value is not None:
            parts.append(f"{sized(value)} {word}")
    return ", ".join(parts) or "unknown"


def _measured(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "not this time"
    speeds = [f"float32 {_flops(measured['float32_flops'])}", f"bfloat16 {_flops(measured['bfloat16_flops'])}"]
    return f"{', '.join(speeds)}, reading memory {measured['read_bytes'] / 1e9:,.1f} GB/s"


def _flops(value: float | None) -> str:
    if value is None:
        return "cannot be multiplied"
    return f"{value / 1e12:,.1f} TFLOP/s" if value >= 1e12 else f"{value / 1e9:,.3g} GFLOP/s"
