"""A machine without a machine: costs by a table, acceptance by seeded coins, a clock that only adds up.

`DraftPlan` decides as it does in an engine; everything it decides by comes from here, so a run of thousands of tokens
takes a moment and gives the same result every time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cueva.config import model_config
from cueva.engine.controller import NOMINAL_MARGIN, DraftController
from cueva.engine.drafting import CATCH_UP_FROM, LAG_MOST, USUAL_LAG
from cueva.engine.plan import DraftPlan

PLAIN_SECONDS = 0.007
CONFIG = model_config("small", vocab_size=32000, num_nextn_predict_layers=1, max_position_embeddings=16384)


@dataclass(frozen=True)
class Shape:
    """What passes cost, in plain rounds."""

    verify: tuple[float, ...]
    """1, 2, ... rows; beyond the last its last difference goes on."""
    draft: float
    """One step with one row; another row adds 15%."""
    lag_row: float = 0.01
    """One row of many that modules catch up with."""
    python: float = 0.005
    """Between passes, for a round and again for every draft."""
    by_length: float = 0.0
    """What a row adds for every 1,000 positions cached."""

    def verify_at(self, rows: int, cached: float) -> float:
        known = self.verify
        beyond = max(rows - len(known), 0)
        step = known[-1] - known[-2]
        return known[min(rows, len(known)) - 1] + beyond * step + self.by_length * rows * cached / 1000

    def draft_at(self, rows: int) -> float:
        return self.draft * (1 + 0.15 * (min(rows, 8) - 1)) + self.lag_row * max(rows - 8, 0)


@dataclass
class Chain:
    """What the plan sees of a `ModuleChain`."""

    lag: int = 1

    @property
    def backlog(self) -> int:
        return max(self.lag - USUAL_LAG, 0)


@dataclass
class Simulated:
    """What the plan sees of a `Running`."""

    cached: int
    end: int
    draft: Any = "auto"
    greedy: bool = True
    chain: Chain | None = None
    reduced: bool = False
    request: Any = None
    controller: DraftController | None = None
    made: int = 1

    def __post_init__(self) -> None:
        self.request = SimpleNamespace(
            prompt=[0] * self.cached, draft=self.draft, settings=SimpleNamespace(greedy=self.greedy)
        )
        if self.draft == "auto" and not self.greedy:
            self.controller = DraftController(margin=NOMINAL_MARGIN)

    @property
    def length(self) -> int:
        return self.cached + self.made

    @property
    def draft_limit(self) -> int:
        return 0 if self.chain is None else self.end - self.made - 1

    @property
    def shares_controller(self) -> bool:
        return self.draft == "auto" and self.greedy and self.chain is not None


@dataclass
class Machine:
    """A runner with a clock, as far as a `DraftPlan` looks at one."""

    shape: Callable[[float], Shape]
    """By progress, 0 to 1."""
    noise: float = 0.0
    seed: int = 0
    progress: float = 0.0
    clock: float = 0.0
    padded_rows: int = 1
    rows: int = 256
    model: Any = field(default_factory=lambda: SimpleNamespace(config=CONFIG))
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        self._chance = np.random.default_rng([self.seed, 1])

    def seconds(self, rounds: float) -> float:
        """Let time pass: noise has mean 1, and is as often a little too much as too little."""
        factor = np.exp(self._chance.normal(0, self.noise) - self.noise**2 / 2) if self.noise else 1.0
        took = rounds * PLAIN_SECONDS * float(factor)
        self.clock += took
        return took


class NoPlan:
    """For a fixed number of drafts: everybody may draft, and nothing is learned."""

    def begin(self, one: Simulated) -> bool:
        return one.draft > 0

    def _ignore(self, *given: Any, **more: Any) -> None:
        pass

    observe = drafted = ended = _ignore


class MeasuringMachine(Machine):
    def measure(self, depth: int, rows: int, cached: int, ids: Any = None) -> float:
        shape = self.shape(0.0)
        return self.seconds(shape.draft_at(rows) if depth else shape.verify_at(rows, cached))


def simulate(
    machine: Machine,
    acceptance: Callable[[float, int], float],
    *,
    draft: Any = "auto",
    tokens: int = 2000,
    cached: int = 16,
    sequences: int = 1,
    seed: int = 0,
    greedy: bool = True,
    plan: DraftPlan | None = None,
) -> tuple[float, list[int]]:
    """Generate; return the seconds it took after the prompts, and the drafts of every round.

    `acceptance(progress, place)` is how often a draft stays; the coin of a position is the same for every policy.
    """
    plan = plan or (DraftPlan(machine) if draft == "auto" else NoPlan())  # type: ignore[arg-type]
    coin = np.random.default_rng([seed, 2]).random((sequences, tokens + 9))
    active = [Simulated(cached, tokens, draft, greedy) for _ in range(sequences)]
    for one in active:
        if plan.begin(one):  # type: ignore[arg-type]
            one.chain = Chain()
    machine.clock, chosen = 0.0, []
    everyone = active
    while active:
        machine.progress = min(one.made for one in active) / tokens
        shape = machine.shape(machine.progress)
        counts = plan.counts(active) if draft == "auto" else [min(draft, one.draft_limit) for one in active]  # type: ignore[arg-type]
        chosen.append(max(counts))
        mean_cached = sum(one.length for one in active) / len(active)
        catching = drafting = 0.0
        for one, count in zip(active, counts, strict=True):
            if count and one.chain and one.chain.lag > CATCH_UP_FROM:
                catching += (took := machine.seconds(shape.draft_at(one.chain.lag)))
                plan.drafted(one.chain.lag, mean_cached, took, reduced=False)
                one.chain.lag = 1
        for step in range(1, max(counts) + 1):
            some = [one for one, count in zip(active, counts, strict=True) if count >= step]
            rows = sum(one.chain.lag if step == 1 else 1 for one in some if one.chain)
            drafting += (took := machine.seconds(shape.draft_at(rows) + shape.python))
            plan.drafted(rows, mean_cached, took, reduced=False)
        verifying = machine.seconds(shape.verify_at(len(active) + sum(counts), mean_cached) + shape.python)
        got = []
        for one, count in zip(active, counts, strict=True):
            coins = coin[everyone.index(one)]
            accepted = 0
            while accepted < count and coins[one.made + accepted] < acceptance(one.made / tokens, accepted + 1):
                accepted += 1
            plan.observe(one, count, accepted, mean_cached)  # type: ignore[arg-type]
            one.made += accepted + 1
            got.append([0] * (accepted + 1))
            if one.chain:
                one.chain.lag = accepted + 1 if count else one.chain.lag + 1
                if one.chain.lag > LAG_MOST:
                    if draft == "auto" and not plan.keeps_up(one):  # type: ignore[arg-type]
                        one.chain = None
                    else:
                        machine.seconds(shape.draft_at(one.chain.lag))
                        one.chain.lag = 1
        plan.ended(active, counts, got, mean_cached, (catching, drafting, verifying))  # type: ignore[arg-type]
        active = [one for one in active if one.made < tokens]
    return machine.clock, chosen


def fixed(shape: Callable[[float], Shape], acceptance: Callable[[float, int], float], draft: int, **more: Any) -> float:
    """Seconds of always the same number of drafts, without noise; zero is plain decoding."""
    return simulate(Machine(shape), acceptance, draft=draft, **more)[0]


def best_fixed(shape: Any, acceptance: Any, most: Sequence[int] = range(5), **more: Any) -> tuple[float, list[float]]:
    """Seconds of plain decoding, and of every fixed number of drafts."""
    took = [fixed(shape, acceptance, draft, **more) for draft in most]
    return took[0], took
