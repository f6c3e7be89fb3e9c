"""The interleaved run of `benchmarks.engine`: which engines take part, what they are asked, and in which order.

For each weight format every engine opens its model in its own process. Then, work by work, all are brought to the same
state, and for every repetition the machine is measured and each engine has its turn, in one order and then in the
other, so that whatever the machine does in that minute is in all figures. A ratio is the median of the ratios of single
repetitions, and a share is held against the bandwidth and the peak of its own repetition.
"""

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.ceilings import Machine
from benchmarks.contestant import Child, EndedError
from benchmarks.engine_rows import MANY_CACHED, MOST_STEPS, Row, Work, summary
from benchmarks.shapes import GGUF_TYPE, Files

log = logging.getLogger("benchmarks")


@dataclass(frozen=True)
class Asked:
    """What a run is to measure."""

    weights: Sequence[str]
    works: Sequence[Work]
    peers: Sequence[str]
    threads: int
    repeats: int
    seconds: float
    """Of one turn, about."""
    probe: bool
    """Try the variants of a peer first and take its best; else its first."""

    @property
    def positions(self) -> int:
        """The longest sequence."""
        return max(work.positions for work in self.works)


@dataclass
class Entrant:
    """An engine that takes part: the process that decodes, and the one that prefills, mostly the same."""

    name: str
    decoding: Child
    prefilling: Child

    def child(self, work: Work) -> Child:
        """Who does this work."""
        return self.prefilling if work.kind == "prefill" else self.decoding

    @property
    def alive(self) -> bool:
        """Whether it can do all that it may be asked."""
        return self.decoding.alive and self.prefilling.alive

    def close(self) -> None:
        """End its processes."""
        for child in {id(one): one for one in (self.decoding, self.prefilling)}.values():
            child.close()


def run(files: Files, asked: Asked, machine: Machine) -> dict[str, Any]:
    """Measure everything; see `benchmarks.engine` for what the result holds."""
    absent = {name: why for name in asked.peers if (why := peers.absent(name)) is not None}
    for name, why in absent.items():
        log.warning("%s is not measured: %s", name, why)
    settings: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for weights in asked.weights:
        entrants = _open_all(files, asked, weights, absent, settings.setdefault(weights, {}))
        try:
            for work in asked.works:
                row = _measure(work, weights, entrants, asked, machine)
                rows.append(summary(files, row))
                log.info("%s", _said(rows[-1]))
                for entrant in [one for one in entrants if not one.alive]:
                    log.warning("%s takes no part in the rest with %s", entrant.name, weights)
                    entrants.remove(entrant)
                    entrant.close()
        finally:
            for entrant in entrants:
                entrant.close()
    return {"absent": absent, "settings": settings, "rows": rows}


def _open_all(
    files: Files, asked: Asked, weights: str, absent: Mapping[str, str], settings: dict[str, Any]
) -> list[Entrant]:
    entrants = []
    for name in ("cueva", *asked.peers):
        if name in absent:
            continue
        if name in ("torch", "transformers") and weights not in ("f32", "bf16"):
            settings[name] = f"holds no {weights} weights"
            continue
        log.info("opening %s with %s", name, GGUF_TYPE.get(weights, weights) if name in peers.GGUF_PEERS else weights)
        try:
            entrant = _entrant(files, asked, name, weights)
        except EndedError as why:
            log.warning("%s does not run with %s: %s", name, weights, why)
            settings[name] = f"does not run: {why}"
            continue
        settings[name] = entrant.decoding.settings
        if entrant.prefilling is not entrant.decoding:
            settings[f"{name}, prefill"] = entrant.prefilling.settings
        entrants.append(entrant)
    return entrants


def _entrant(files: Files, asked: Asked, name: str, weights: str) -> Entrant:
    path = files.gguf(weights, for_ik=name == "ik") if name in peers.GGUF_PEERS else files.directory
    words = [name, str(path), "--weights", weights, "--threads", str(asked.threads)]
    words += ["--positions", str(asked.positions)]
    logs = files.folder / "logs"
    if name not in peers.GGUF_PEERS:
        child = Child(words, logs / f"{name}-{weights}.log", asked.threads)
        return Entrant(name, child, child)
    from benchmarks.llama import VARIANTS

    variants = list(VARIANTS[name])
    if not asked.probe:
        child = Child([*words, "--variant", variants[0]], logs / f"{name}-{weights}.log", asked.threads)
        return Entrant(name, child, child)
    return _best_variant(name, words, variants, logs / f"{name}-{weights}", asked)


def _best_variant(name: str, words: list[str], variants: Sequence[str], logs: Path, asked: Asked) -> Entrant:
    """Try each way to run a peer, and keep the best for decoding and the best for prompts."""
    cached = max((work.size for work in asked.works if work.kind == "decode" and work.size <= 2048), default=16)
    prompt = min((work.size for work in asked.works if work.kind == "prefill"), default=0)
    tried: list[tuple[float, float, Child]] = []
    why = "no way to run it"
    for number, variant in enumerate(variants):
        child = None
        try:
            child = Child([*words, "--variant", variant], logs.with_name(f"{logs.name}-{number}.log"), asked.threads)
            prefill = min(child.ask("prefill", tokens=prompt, seed=0)["seconds"]) if prompt else 0.0
            child.ask("fill", cached=cached)
            took = child.ask("decode", most=MOST_STEPS, seconds=asked.seconds, seed=0)["seconds"]
        except EndedError as ended:
            log.info("%s, %s: %s", name, variant, ended)
            why = f"{variant}: {ended}"
            if child is not None:
                child.close()
            continue
        tried.append((statistics.median(took), prefill, child))
        log.info("%s, %s: %.1f tokens/s at %d, prompt %.2f s", name, variant, 1 / tried[-1][0], cached, prefill)
    if not tried:
        raise EndedError(why)
    decoding, prefilling = min(tried, key=lambda one: one[0])[2], min(tried, key=lambda one: one[1])[2]
    for _, _, child in tried:
        if child not in (decoding, prefilling):
            child.close()
    return Entrant(name, decoding, prefilling)


def _measure(work: Work, weights: str, entrants: list[Entrant], asked: Asked, machine: Machine) -> Row:
    row = Row(work, weights)

    def ask(entrant: Entrant, do: str, **arguments: Any) -> dict[str, Any]:
        """Ask, or take note of why not; who failed is not asked for this work again."""
        if entrant.name in row.failed:
            return {}
        try:
            return entrant.child(work).ask(do, **arguments)
        except EndedError as why:
            log.warning("%s, %s, %s: %s", entrant.name, weights, work, why)
            row.failed[entrant.name] = str(why)
            return {}

    for entrant in entrants:
        if work.kind == "decode":
            ask(entrant, "fill", cached=work.size)
        elif work.kind == "many":
            ask(entrant, "fill_many", sequences=work.size, cached=MANY_CACHED)
        else:
            ask(entrant, "prefill", tokens=work.size, seed=0)  # pays for pages and buffers
    for repeat in range(asked.repeats):
        row.ceilings.append(machine.measure())
        for entrant in entrants if repeat % 2 == 0 else reversed(entrants):
            if work.kind == "prefill":
                found = ask(entrant, "prefill", tokens=work.size, seed=repeat)
            else:
                do, extra = ("decode", {}) if work.kind == "decode" else ("decode_many", {"sequences": work.size})
                found = ask(entrant, do, most=MOST_STEPS, seconds=asked.seconds, seed=repeat, **extra)
            if found:
                row.rates.setdefault(entrant.name, []).append(work.tokens / statistics.median(found["seconds"]))
                row.likeliest.setdefault(entrant.name, []).append(found["likeliest"])
                row.touched = found.get("touched", row.touched)
    for name in row.failed:
        row.rates.pop(name, None)
    return row


def _said(row: dict[str, Any]) -> str:
    rates = ", ".join(f"{name} {rate:.4g}" for name, rate in row["tokens_per_second"].items())
    return f"{row['work']}, {row['weights']}: {rates} tokens/s"
