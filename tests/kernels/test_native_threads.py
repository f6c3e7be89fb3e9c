"""How many threads an engine takes by itself, on made-up limits, and which OpenMP runtimes a process has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cueva.kernels.native import default_threads, openmp_runtimes, threads


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Sixteen cores for everyone: torch, affinity mask, control groups."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    return monkeypatch


def test_without_limits_pytorch_decides(limits: pytest.MonkeyPatch) -> None:
    assert default_threads() == 16
    limits.setattr(torch, "get_num_threads", lambda: 5)
    assert default_threads() == 5


def test_the_affinity_mask_binds(limits: pytest.MonkeyPatch) -> None:
    limits.setattr(os, "sched_getaffinity", lambda process: {3, 7}, raising=False)
    assert default_threads() == 2


@pytest.mark.parametrize(("quota", "expected"), [(4.0, 4), (2.5, 2), (1.0, 1), (0.3, 1), (64.0, 16)])
def test_the_control_groups_bind_in_whole_cores(limits: pytest.MonkeyPatch, quota: float, expected: int) -> None:
    limits.setattr(threads, "cpu_quota", lambda: quota)
    assert default_threads() == expected


def test_a_container_limit_is_read_from_its_files(limits: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Version 2 of the control groups: 150 ms of every 50 ms are three cores; the tighter parent wins."""
    own, root = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("0::/pod/container\n")
    (root / "pod" / "container").mkdir(parents=True)
    (root / "pod" / "container" / "cpu.max").write_text("150000 50000\n")
    limits.setattr(threads, "cpu_quota", lambda: QUOTA(root, own))
    assert default_threads() == 3
    (root / "pod" / "cpu.max").write_text("200000 100000\n")
    assert default_threads() == 2
    (root / "pod" / "cpu.max").write_text("max 100000\n")
    (root / "pod" / "container" / "cpu.max").write_text("max 100000\n")
    assert default_threads() == 16


QUOTA = threads.cpu_quota


def test_what_a_person_asked_of_openmp_counts() -> None:
    code = "from cueva.kernels.native import default_threads; print(default_threads())"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


MAPS = """\
7f00-7f01 r-xp 00000000 fe:00 11   /usr/lib/libc.so.6
7f01-7f02 r--p 00000000 fe:00 12   /env/torch/lib/libgomp-a34b3233.so.1
7f02-7f03 r-xp 00001000 fe:00 12   /env/torch/lib/libgomp-a34b3233.so.1
7f03-7f04 rw-p 00000000 00:00 0
7f04-7f05 r-xp 00000000 fe:00 13   /env/lib with a space/libiomp5.so
7f05-7f06 r-xp 00000000 fe:00 14   /env/torch/lib/libtorch_libgomp.so
7ffd-7ffe rw-p 00000000 00:00 0    [stack]
"""


def test_every_openmp_runtime_of_a_process_is_found_once(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(MAPS)
    assert openmp_runtimes(maps) == ["/env/torch/lib/libgomp-a34b3233.so.1", "/env/lib with a space/libiomp5.so"]


def test_a_system_that_does_not_tell_is_not_guessed_about(tmp_path: Path) -> None:
    assert openmp_runtimes(tmp_path / "absent") is None
