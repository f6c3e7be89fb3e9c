"""Facts about the machine this process runs on, as the process may use it, and two short measurements.

A container or a batch system often gives a process fewer cores and less memory than the machine has; what counts is
what the control groups and the affinity mask leave. Every fact that a system does not tell is None, never a guess.
"""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cueva.kernels.native.threads import CGROUP, OWN_GROUP, control_groups, cpu_quota

# Version 1 writes "no limit" as the largest multiple of a page below 2^63.
_UNLIMITED: Final = 1 << 60


def processor() -> str:
    """The processor's name as the system tells it."""
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware", "Processor") and value.strip():
            return value.strip()
    if sys.platform == "darwin":
        try:
            told = subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5, check=False
            )
            if told.stdout.strip():
                return told.stdout.strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()


def instruction_flags() -> set[str]:
    """Flags of the first processor on Linux (`avx2`, `avx512_bf16`, `amx_bf16`, ...); empty elsewhere."""
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def cores() -> dict[str, float | int | None]:
    """Cores of the machine, and how many this process may use at once.

    Returns:
        `machine`; `allowed` by the affinity mask; `quota`, the share of time its control group grants, in cores, or
        None; `usable`, the smallest of them, at least 1.
    """
    machine = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    quota = cpu_quota()
    usable = min(machine, allowed) if quota is None else min(machine, allowed, max(1, int(quota)))
    return {"machine": machine, "allowed": allowed, "quota": quota, "usable": usable}


def memory_limit(root: Path = CGROUP, own: Path = OWN_GROUP) -> int | None:
    """Bytes that the control groups grant: the tightest; None for no limit."""
    granted = []
    for folder in control_groups("memory", root, own):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(folder / name)
            if text.isdigit() and int(text) < _UNLIMITED:
                granted.append(int(text))
    return min(granted, default=None)


def memory() -> dict[str, int | None]:
    """Bytes of main memory: `total`, `available` now, and the `limit` of the control groups."""
    told: dict[str, int] = {}
    for line in _lines(Path("/proc/meminfo")):
        key, _, value = line.partition(":")
        number = value.split()
        if number and number[0].isdigit():
            told[key] = int(number[0]) * 1024
    total = told.get("MemTotal")
    if total is None and hasattr(os, "sysconf"):
        try:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            total = None
    return {"total": total, "available": told.get("MemAvailable"), "limit": memory_limit()}


def free_bytes(path: Path) -> int | None:
    """Free bytes for an ordinary user where `path` lies or would lie; None when the system does not tell."""
    place = Path(os.path.realpath(path))
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


# --- measurements -----------------------------------------------------------------------------------------------------


def measure(budget_seconds: float = 0.25) -> dict[str, Any]:
    """Measure what training and decoding are bound by; three measurements of about `budget_seconds` each.

    Returns:
        `float32_flops` and `bfloat16_flops`: operations per second of a matrix product, bfloat16 None where this torch
        cannot do it; `read_bytes`: bytes per second of summing 128 MiB; `threads`. Each is the best of its repetitions,
        so that a busy neighbour disturbs less.
    """
    import torch

    with torch.inference_mode():
        result: dict[str, Any] = {"threads": torch.get_num_threads()}
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{str(dtype).removeprefix('torch.')}_flops"
            try:
                result[name] = _product_flops(dtype, budget_seconds)
            except RuntimeError:
                result[name] = None
        block = torch.zeros(32 << 20)
        result["read_bytes"] = block.numel() * block.itemsize / _best(block.sum, budget_seconds)
    return result


def _product_flops(dtype: Any, budget_seconds: float) -> float:
    """Of square matrices: small ones where a product is slow, large ones where many cores would find little to do."""
    import torch

    generator = torch.Generator().manual_seed(0)
    best = 0.0
    for size in (256, 1024):
        a, b = (torch.randn(size, size, generator=generator).to(dtype) for _ in range(2))
        seconds = _best(lambda a=a, b=b: a @ b, budget_seconds / 2)
        best = max(best, 2 * size**3 / seconds)
        if seconds * 4**3 > budget_seconds / 4:  # the larger one would not fit its share
            break
    return best


def _best(work: Callable[[], Any], budget_seconds: float) -> float:
    """The shortest time of a call in seconds: one to warm up, one at least, and as many as the budget allows."""
    began = time.perf_counter()
    work()  # pays for pages and thread pools
    best = float("inf")
    while best == float("inf") or time.perf_counter() - began < budget_seconds:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
