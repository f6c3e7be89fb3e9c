"""Small disks, read-only disks and processes that die: what saving has to survive."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A memory disk of a given size; needs root on Linux, and skips with the reason where that is missing."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "cueva-test", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"mounting a small disk failed: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def make_read_only(place: Path) -> None:
    """Remount a small disk read-only; permission bits would not stop root."""
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True, capture_output=True)


def fill_up(place: Path, leave: int) -> None:
    """Write until only about `leave` bytes are free."""
    free = shutil.disk_usage(place).free
    (place / "filler").write_bytes(b"x" * max(free - leave, 0))


def dies(act: Callable[[], None]) -> None:
    """Run `act` in a child process, where it must kill itself with SIGKILL before it ends."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the child was not killed: status {status}"
    assert os.WTERMSIG(status) == signal.SIGKILL


def kill_me(*_: object, **__: object) -> None:
    """Die at once, as from a power cut: no handler runs, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)
