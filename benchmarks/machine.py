"""What the machine can do in this minute, and runs taken in turn, so that figures of one run can be compared."""

import statistics
import time
from collections.abc import Callable

import torch


def matrix_peak(dtype: torch.dtype = torch.float32, size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of a square matrix product on the current threads: the best of several."""
    one = torch.randn(size, size).to(dtype)
    one @ one
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def read_bandwidth(megabytes: int = 256, repeats: int = 5) -> float:
    """Bytes/s of reading memory that no cache holds: the best of several sums."""
    block = torch.ones(megabytes * 2**18)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        block.sum()
        best = min(best, time.perf_counter() - start)
    return block.numel() * 4 / best


def in_turn(contestants: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contestant, taken A B C A B C ... after one round of warming up.

    What disturbs one round disturbs all of it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(one: list[float], other: list[float]) -> float:
    """The median of pairwise ratios: how many times longer `one` takes than `other`."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))
