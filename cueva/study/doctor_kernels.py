"""Which backend serves each operation on this machine, and why: the part of `cueva doctor` about kernels."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cueva.errors import RequestError

OPERATIONS: Final = ("linear", "attend", "experts", "route", "norm", "rotary", "quant")
"""The operations of a model, as their folders in `cueva/kernels` are called."""


def examine_kernels() -> dict[str, Any]:
    """Look at the native extension, at what this processor runs of it, and at the OpenMP runtimes of this process.

    Returns:
        JSON-able. `kernels`: per operation, `generation` (who computes it when text is generated on the CPU),
        `elsewhere` (PyTorch's backends for training and other devices, the one used first) and `why`. `native`: `file`
        of the extension or None, why it is `missing` or None, the instruction sets `built`, those that `runs` here, the
        one `chosen` or None, and the `trouble` with `CUEVA_ISA` or None. `openmp`: paths of the runtimes loaded, or
        None where the system does not tell.
    """
    from cueva import kernels
    from cueva.kernels import native

    module, chosen, trouble = native.extension(), None, None
    try:
        chosen = native.instruction_set()
    except RequestError as error:
        trouble = error.message
    about = {
        "file": getattr(module, "__file__", None),
        "missing": native.missing(),
        "built": native.built(),
        "runs": native.runnable(),
        "chosen": chosen,
        "trouble": trouble,
    }
    why = _why(about)
    generation = "torch" if chosen is None else f"native {chosen}"
    backends = kernels.backends()
    return {
        "kernels": {
            operation: {
                "generation": generation,
                "elsewhere": list(backends.get(operation, ("torch",))),
                "why": why,
            }
            for operation in OPERATIONS
        },
        "native": about,
        "openmp": native.openmp_runtimes(),
    }


def _why(native: Mapping[str, Any]) -> str:
    if native["missing"]:
        return native["missing"]
    if native["trouble"]:
        return native["trouble"]
    if native["chosen"] != native["runs"][0]:
        return f"CUEVA_ISA asks for {native['chosen']}; the best that this processor runs is {native['runs'][0]}"
    missed = [name for name in native["built"] if name not in native["runs"]]
    if missed:
        return f"the best that was built and that this processor runs; it does not run {' and '.join(missed)}"
    return "the best that was built, and this processor runs all of them"


def kernel_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `examine_kernels` found, as rows of a name and a text; operations that are served alike share one."""
    native = facts["native"]
    alike: dict[tuple[str, str], list[str]] = {}
    for operation, about in facts["kernels"].items():
        alike.setdefault((about["generation"], about["why"]), []).append(operation)
    rows = [
        ("kernels", f"{generation} generates on the CPU ({', '.join(operations)}): {why}")
        for (generation, why), operations in alike.items()
    ]
    several = [
        f"{operation} by {', '.join(about['elsewhere'])}"
        for operation, about in facts["kernels"].items()
        if about["elsewhere"] != ["torch"]
    ]
    rows.append(("", f"PyTorch trains and serves other devices{''.join(f'; {part}' for part in several)}"))
    if native["built"]:
        built, runs = ", ".join(native["built"]), ", ".join(native["runs"])
        rows.append(("native sets", f"built {built}; running here {runs}"))
    if facts["openmp"] is not None:
        rows.append(("OpenMP", ", ".join(facts["openmp"]) or "no runtime is loaded"))
    return rows


def about_kernels(facts: Mapping[str, Any]) -> Sequence[tuple[str, str, str]]:
    """Advice: what is wrong with the kernels here, why, and what helps."""
    native, found = facts["native"], []
    if native["missing"]:
        why, _, fix = native["missing"].partition("; ")
        found.append(("text is generated several times slower than it could be", why, fix))
    if native["trouble"]:
        found.append(("no text can be generated on the CPU", native["trouble"], "unset CUEVA_ISA"))
    elif native["chosen"] and native["chosen"] != native["runs"][0]:
        found.append(("text is generated slower than it could be", _why(native), "unset CUEVA_ISA"))
    if facts["openmp"] is not None and len(facts["openmp"]) > 1:
        why = (
            f"{len(facts['openmp'])} OpenMP runtimes are loaded, and each starts threads: {', '.join(facts['openmp'])}"
        )
        fix = "import torch before anything else, and see which package brings a runtime of its own"
        found.append(("threads fight for the cores", why, fix))
    return found
