"""What the machine can do in this very minute: reading memory, and multiplying matrices.

Reading is a plain loop over memory in huge pages, one stream for each thread, compiled when it is first needed; where
there is no compiler PyTorch sums the block instead, which is slower, and the result says so. Its threads are Python's:
an OpenMP runtime of its own would fight with PyTorch's for the cores.
"""

import ctypes
import mmap
import os
import shutil
import subprocess
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.machine import matrix_peak

BLOCK_BYTES: Final = 256 << 20
"""Far more than any cache between processor and memory holds."""
PASSES: Final = 4
"""Passes over the block in one measurement: starting the threads is then little beside it."""
SMALL: Final = 256
SLOW_PRODUCT_SECONDS: Final = 0.02
"""A small product that takes so long is measured at that size: PyTorch multiplies bf16 one number after another on
processors without instructions for it, and a large product would take many seconds."""

_SOURCE: Final = """
typedef long long Wide __attribute__((vector_size(64), aligned(64)));

/* One stream; eight sums, so that adding never waits for the addition before. */
long long read_all(const Wide *block, long long vectors, long long passes) {
    Wide sum[8] = {{0}};
    for (long long pass = 0; pass < passes; ++pass)
        for (long long i = 0; i + 8 <= vectors; i += 8)
            for (int lane = 0; lane < 8; ++lane) sum[lane] += block[i + lane];
    long long total = 0;
    for (int lane = 0; lane < 8; ++lane)
        for (int i = 0; i < 8; ++i) total += sum[lane][i];
    return total;
}
"""


@dataclass(frozen=True)
class Ceilings:
    """What was measured, per second."""

    read_bytes: float
    float32_flop: float
    bfloat16_flop: float
    """Of PyTorch's product; far below `float32_flop` where the processor has no instructions for bf16."""

    def peak(self, weights: str) -> float:
        """FLOP/s that attention beside these weights could reach: bf16 may be widened, so the better of both."""
        return self.float32_flop if weights == "f32" else max(self.float32_flop, self.bfloat16_flop)

    def as_dict(self) -> dict[str, float]:
        """For a JSON file."""
        return asdict(self)


class Machine:
    """Measures the ceilings again and again; the block of memory is kept.

    Attributes:
        how: what reads, in words.
    """

    def __init__(self, threads: int, folder: Path, block_bytes: int = BLOCK_BYTES):
        """Take memory and compile the loop.

        Args:
            threads: that read, and of PyTorch's products.
            folder: where the compiled loop is kept.
            block_bytes: memory that is read; a whole number of 2 MiB pages for each thread.
        """
        self._threads = threads
        # Room to begin at a border of a huge page; the advice has to come before the first touch.
        self._memory = mmap.mmap(-1, block_bytes + (2 << 20))
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        skip = -whole.data_ptr() % (2 << 20)
        self._block = whole[skip : skip + block_bytes]
        self._block.fill_(1)
        self._loop = _compiled(folder)
        self.how = "a compiled loop over huge pages" if self._loop else "PyTorch's sum (there is no C compiler here)"

    def measure(self) -> Ceilings:
        """Measure once: the best of three readings, and of a few products; a fifth of a second or so."""
        torch.set_num_threads(self._threads)
        return Ceilings(
            read_bytes=max(self._read() for _ in range(3)),
            float32_flop=matrix_peak(torch.float32),
            bfloat16_flop=_bfloat16_product(),
        )

    def _read(self) -> float:
        share = self._block.numel() // self._threads // 512 * 512
        started = time.perf_counter()
        if self._loop is None:
            self._block.view(torch.float32).sum()
            return self._block.numel() / (time.perf_counter() - started)
        first = self._block.data_ptr()
        readers = [
            threading.Thread(target=self._loop, args=(first + number * share, share // 64, PASSES))
            for number in range(self._threads)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return share * self._threads * PASSES / (time.perf_counter() - started)


def _bfloat16_product() -> float:
    small = matrix_peak(torch.bfloat16, size=SMALL, repeats=3)
    return small if 2 * SMALL**3 / small > SLOW_PRODUCT_SECONDS else matrix_peak(torch.bfloat16)


def _compiled(folder: Path) -> Any:
    """The reading loop as a function, or None."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    source, library = folder / "read.c", folder / f"read-{os.getpid()}.so"
    source.write_text(_SOURCE)
    flags = ["-O3", "-funroll-loops", "-shared", "-fPIC"]
    # Not every compiler knows `native` for every processor.
    for extra in (["-march=native"], []):
        command = [compiler, *flags, *extra, str(source), "-o", str(library)]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            break
    else:
        return None
    loop = ctypes.CDLL(str(library)).read_all
    library.unlink()
    loop.argtypes = [ctypes.c_void_p, ctypes.c_longlong, ctypes.c_longlong]
    loop.restype = ctypes.c_longlong
    return loop
