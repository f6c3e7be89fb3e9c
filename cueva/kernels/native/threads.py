"""How many threads a step should use, and which OpenMP runtimes are there to run them.

A step is one parallel region with barriers inside: one thread more than there are cores, and every barrier waits for a
thread that is not running. So the limits that a container or a batch system sets count, and the smallest wins.
"""

import os
from pathlib import Path
from typing import Final

import torch

CGROUP: Final = Path("/sys/fs/cgroup")
OWN_GROUP: Final = Path("/proc/self/cgroup")
MAPS: Final = Path("/proc/self/maps")
_RUNTIMES: Final = ("libgomp", "libomp", "libiomp5")


def default_threads() -> int:
    """Threads for an engine that was not told a number, at least 1.

    The smallest of what PyTorch would use (`OMP_NUM_THREADS`, `torch.set_num_threads`, or the physical cores), the
    affinity mask, and the CPU time that the control groups grant, rounded down: a part of a core is not worth a thread
    that the others wait for.
    """
    limits = [torch.get_num_threads(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None]
    quota = cpu_quota()
    limits.append(None if quota is None else int(quota))
    return max(1, min(limit for limit in limits if limit is not None))


def cpu_quota(root: Path = CGROUP, own: Path = OWN_GROUP) -> float | None:
    """CPU time that the control groups grant, in cores: the tightest on the way up; None for no limit."""
    granted = []
    for folder in control_groups("cpu", root, own):
        if text := _text(folder / "cpu.max"):  # version 2: "quota period"
            quota, _, period = text.partition(" ")
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.strip().isdigit() and int(quota) > 0 and int(period) > 0:
            granted.append(int(quota) / int(period))
    return min(granted, default=None)


def control_groups(controller: str, root: Path = CGROUP, own: Path = OWN_GROUP) -> list[Path]:
    """The folders whose limits bind this process, its own group first; a container may not see its own path."""
    folders = []
    for line in _text(own).splitlines():
        _, _, rest = line.strip().partition(":")
        names, _, path = rest.partition(":")
        # Version 2 has one line with no controllers named; version 1 one line and one mount for each.
        if names and controller not in names.split(","):
            continue
        base = root / controller if names else root
        folder = base / path.lstrip("/")
        while folder != base and base in folder.parents:
            folders.append(folder)
            folder = folder.parent
        folders.append(base)
    return folders


def openmp_runtimes(maps: Path = MAPS) -> list[str] | None:
    """Paths of the OpenMP runtimes loaded in this process; None where the system does not tell.

    One is right. Of two, each starts threads of its own, and they fight for the cores: the kernels use the one that
    PyTorch brought.
    """
    text = _text(maps)
    if not text:
        return None
    found: dict[str, None] = {}
    for line in text.splitlines():
        path = line.split(maxsplit=5)[5] if line.count(" ") >= 5 and "/" in line else ""
        stem = os.path.basename(path).split(".")[0].split("-")[0]
        if stem in _RUNTIMES:
            found[path.removesuffix(" (deleted)")] = None
    return list(found)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
