"""Routed experts forward and backward: grouped products beside the plain loop, in turn, with their share of the peak.

python -m benchmarks.experts [--tokens 2048] [--rounds 7]
"""

import argparse
import statistics
from collections.abc import Callable

import torch

from benchmarks.machine import in_turn, matrix_peak, median_ratio
from cueva.kernels.experts import Backend, experts

WIDTH, INNER, EXPERTS, CHOSEN = 256, 128, 16, 4


def contestant(backend: Backend, tokens: int) -> Callable[[], None]:
    """One forward and backward pass with this backend; every contestant gets the same tokens and choices."""
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(tokens, WIDTH, generator=generator, requires_grad=True)
    expert_TK = torch.rand(tokens, EXPERTS, generator=generator).argsort(1)[:, :CHOSEN]
    weight_TK = torch.rand(tokens, CHOSEN, generator=generator, requires_grad=True)
    gate_up = torch.randn(EXPERTS, 2 * INNER, WIDTH, generator=generator, requires_grad=True)
    down = torch.randn(EXPERTS, WIDTH, INNER, generator=generator, requires_grad=True)

    def run() -> None:
        y_TD = experts(x_TD, expert_TK, weight_TK, gate_up, down, backend=backend)
        torch.autograd.grad(y_TD, [x_TD, weight_TK, gate_up, down], torch.ones_like(y_TD))

    return run


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    peak = matrix_peak()
    flops = 3 * 2 * 3 * WIDTH * INNER * CHOSEN * asked.tokens
    seconds = in_turn({name: contestant(name, asked.tokens) for name in ("loop", "grouped")}, asked.rounds)
    print(
        f"{asked.tokens} tokens, {EXPERTS} experts of {INNER} at width {WIDTH}, {CHOSEN} chosen, float32, forward and "
        f"backward; {torch.get_num_threads()} threads, matrix peak {peak / 1e9:.0f} GFLOP/s"
    )
    for name, took in seconds.items():
        rate = flops / statistics.median(took)
        ratio = median_ratio(seconds["loop"], took)
        milliseconds = statistics.median(took) * 1e3
        print(f"{name:>8}: {milliseconds:6.1f} ms, {rate / peak:4.0%} of the peak, {ratio:.2f}x the loop")


if __name__ == "__main__":
    main()
