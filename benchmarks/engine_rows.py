"""What the engine's benchmark measures, and what is made of it: works, bounds, shares and ratios.

One `Row` is one work with one weight format: the rate of every engine in every repetition, and the machine's ceilings
of the same repetition. `summary` reduces it to what a result file holds.
"""

import statistics
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks import peers, roofline
from benchmarks.ceilings import Ceilings
from benchmarks.shapes import GGUF_TYPE, Files

MANY_CACHED: Final = 64
"""Cached positions of each of several sequences."""
MOST_STEPS: Final = 64
"""Of one turn; so many positions are kept free behind the longest cache."""


@dataclass(frozen=True)
class Work:
    """One thing that is measured."""

    kind: str
    """Which: "prefill", "decode" (one sequence) or "many"."""
    size: int
    """Tokens of a prompt, cached positions, or sequences."""

    def __str__(self) -> str:
        if self.kind == "prefill":
            return f"prefill {self.size}"
        if self.kind == "decode":
            return f"decode at {self.size}"
        return f"{self.size} sequences at {MANY_CACHED}"

    @property
    def positions(self) -> int:
        """Positions that a sequence needs, the steps of a turn included."""
        return {"prefill": self.size, "decode": self.size + MOST_STEPS, "many": MANY_CACHED + MOST_STEPS}[self.kind]

    @property
    def tokens(self) -> int:
        """Tokens that one timed call gives or takes."""
        return 1 if self.kind == "decode" else self.size


@dataclass
class Row:
    """What came of one work with one weight format."""

    work: Work
    weights: str
    rates: dict[str, list[float]] = field(default_factory=dict)
    """Tokens per second of each engine, by repetition."""
    ceilings: list[Ceilings] = field(default_factory=list)
    likeliest: dict[str, list[list[int]]] = field(default_factory=dict)
    """What each engine found, by repetition: the same wherever it computes the same model."""
    touched: float | None = None
    failed: dict[str, str] = field(default_factory=dict)


def bounds(files: Files, row: Row) -> tuple[float, float, list[float]]:
    """Bytes of weights, FLOP, and the bound of each repetition in tokens per second."""
    work, config = row.work, files.config
    if work.kind == "prefill":
        flop = roofline.prefill_flop(config, work.size)
        return 0.0, flop, [work.tokens * one.peak(row.weights) / flop for one in row.ceilings]
    touched = None
    if work.kind == "many":
        touched = row.touched or roofline.touched_experts(config, work.size)
    read = roofline.step_bytes(config, row.weights, touched=touched)
    cached = work.size if work.kind == "decode" else MANY_CACHED
    flop = roofline.attention_flop(config, cached, work.tokens)
    found = [
        work.tokens / roofline.step_bound(read, flop, one.read_bytes, one.peak(row.weights)) for one in row.ceilings
    ]
    return read, flop, found


def summary(files: Files, row: Row) -> dict[str, Any]:
    """A row as the result holds it: medians, shares of the bound, ratios."""
    read, flop, bound = bounds(files, row)
    ours = row.rates.get("cueva")
    return {
        "work": str(row.work),
        "kind": row.work.kind,
        "size": row.work.size,
        "weights": row.weights,
        "peer_weights": GGUF_TYPE.get(row.weights, row.weights),
        "bytes": read,
        "flop": flop,
        "touched_experts": row.touched if row.work.kind == "many" else None,
        "ceilings": [one.as_dict() for one in row.ceilings],
        "bound": statistics.median(bound),
        "rates": row.rates,
        "tokens_per_second": {name: statistics.median(rates) for name, rates in row.rates.items()},
        "share_of_bound": {
            name: statistics.median(rate / most for rate, most in zip(rates, bound, strict=True))
            for name, rates in row.rates.items()
        },
        "cueva_times": {
            name: statistics.median(own / other for own, other in zip(ours, rates, strict=True))
            for name, rates in row.rates.items()
            if ours is not None and name != "cueva"
        },
        "same_token": {name: share for name in row.rates if (share := _same(row, name)) is not None},
        "failed": row.failed,
    }


def _same(row: Row, name: str) -> float | None:
    """How often an engine found the token that cueva did; None where its cache was filled with made-up rows."""
    if name == "cueva" or "cueva" not in row.rates or (row.work.kind != "prefill" and name not in peers.GGUF_PEERS):
        return None
    pairs = [
        own == other
        for ours, others in zip(row.likeliest["cueva"], row.likeliest[name], strict=True)
        for own, other in zip(ours, others, strict=False)  # who is faster has taken more steps
    ]
    return sum(pairs) / len(pairs)
