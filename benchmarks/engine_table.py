"""The results of `benchmarks.engine` as tables that a person reads."""

import statistics
from collections.abc import Sequence
from typing import Any


def speed_table(speed: dict[str, Any]) -> list[str]:
    """One line for each work and weight format: tokens/s, share of the bound, and how many times each peer's."""
    rows = speed["rows"]
    peers = list(dict.fromkeys(name for row in rows for name in row["tokens_per_second"] if name != "cueva"))
    heads = ["work", "weights", "cueva", "of the bound", *(cell for name in peers for cell in (name, "times"))]
    body = []
    for row in rows:
        rates = row["tokens_per_second"]
        cells = [row["work"], row["weights"], _rate(rates.get("cueva")), _share(row["share_of_bound"].get("cueva"))]
        for name in peers:
            times = row["cueva_times"].get(name)
            cells += [_rate(rates.get(name)), "-" if times is None else f"{times:.2f}x"]
        body.append(cells)
    every = [one for row in rows for one in row["ceilings"]]
    return [
        _machine(every),
        "tokens per second, medians; bound of a step: weights / reading + attention / peak, of a prompt: FLOP / peak",
        *table(heads, body),
        *_agreement(rows),
    ]


def _agreement(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How often peers found the same token, the least of all lines with the same weights."""
    least: dict[str, float] = {}
    for row in rows:
        for name, share in row["same_token"].items():
            key = f"{name} {row['peer_weights']}"
            least[key] = min(share, least.get(key, 1.0))
    if not least:
        return []
    said = ", ".join(f"{key} {share:.0%}" for key, share in least.items())
    return [f"the same likeliest token as cueva (a random model has many near ties), at least: {said}"]


def absences(speed: dict[str, Any]) -> list[str]:
    """Who was not measured, where and why; and what the engines say they are."""
    found = [f"{name} is absent: {why}" for name, why in speed["absent"].items()]
    said: dict[str, list[str]] = {}
    for weights, settings in speed["settings"].items():
        for name, one in settings.items():
            if isinstance(one, dict):
                one = {key: value for key, value in one.items() if key not in ("weights", "weight bytes")}
                words = ", ".join(
                    str(value) if key in ("package", "variant") else f"{key} {value}" for key, value in one.items()
                )
            else:
                words = str(one)
            said.setdefault(f"{name}: {words}", []).append(weights)
    found += [f"{words} ({', '.join(weights)})" for words, weights in said.items()]
    for row in speed["rows"]:
        found += [f"{name} failed at {row['work']}, {row['weights']}: {why}" for name, why in row["failed"].items()]
    return found


def memory_lines(memory: Sequence[dict[str, Any]]) -> list[str]:
    """Memory and time to the first token, by weight format."""
    heads = ["weights", "how", "stored MB", "cache MB", "beyond torch MB", "rest MB", "peak MB", "first token s"]
    heads += ["10 GB s"]
    body = []
    for row in memory:
        if "failed" in row:
            body.append([row["weights"], row["how"], f"failed: {row['failed']}", *["-"] * 6])
            continue
        sizes = [
            row[name] / 1e6 for name in ("weight_bytes", "cache_bytes", "beyond_torch", "rest", "peak_beyond_torch")
        ]
        body.append(
            [
                row["weights"],
                row["how"],
                *(f"{size:.0f}" for size in sizes),
                f"{row['first_token_seconds']:.2f}",
                f"{row['seconds_for_10_gb']:.2f}",
            ]
        )
    return [
        "memory beyond a process that imported torch, and seconds from opening to the first token",
        *table(heads, body),
    ]


def drafting_lines(drafting: Sequence[dict[str, Any]]) -> list[str]:
    """Rates with every number of drafts as multiples of plain decoding, by acceptance."""
    counts = list(dict.fromkeys(count for row in drafting for count in row["times_plain"]))
    heads = ["weights", "vocabulary", "cached", "acceptance", "plain", *(f"draft {count}" for count in counts)]
    heads += ["auto / best fixed", "prompt with MTP"]
    body = []
    for row in drafting:
        times = row["times_plain"]
        body.append(
            [
                row["weights"],
                row["vocabulary"],
                str(row["cached"]),
                f"{row['acceptance']:.2f}",
                _rate(row["plain"]),
                *(f"{times[count]:.2f}x" if count in times else "-" for count in counts),
                f"{row['auto_of_best']:.2f}",
                f"{row['prefill_times']:.2f}x",
            ]
        )
    return [
        "drafting with forced acceptance: a seeded coin replaces each draft by the true token, or by a wrong one",
        "tokens per second of plain decoding, and how many times that with so many drafts a round",
        *table(heads, body),
    ]


def table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they need; the first two to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in [heads, *body]) for column in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [heads, *body]
    ]


def _machine(every: Sequence[dict[str, float]]) -> str:
    def spread(name: str, unit: float) -> str:
        values = [one[name] / unit for one in every]
        return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"

    return (
        f"reading {spread('read_bytes', 1e9)} GB/s, matrix peak {spread('float32_flop', 1e9)} GFLOP/s float32, "
        f"{spread('bfloat16_flop', 1e9)} bf16: medians (and extremes) of this run"
    )


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1f}" if rate < 1000 else f"{rate:,.0f}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
