"""Many requests at once: who runs, who waits, and what one round of decoding does for all that run.

Sequences join when there is room and leave when they end, between rounds. A round drafts for all sequences together,
depth by depth, then verifies all together; rows are laid out in passes of a fixed size (`runner.py`), so company
changes how long an answer takes and not a bit of what it says.
"""

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from cueva.engine.answers import Piece
from cueva.engine.cache import CachePool, SequenceCache
from cueva.engine.controller import Costs, DraftController, Stopwatch, nominal_costs
from cueva.engine.drafting import draft
from cueva.engine.runner import Runner, Work
from cueva.engine.running import Request, Running
from cueva.errors import RequestError


class DraftPlan:
    """How many tokens each sequence drafts; one for the life of an engine, since it learns.

    Greedy requests with draft="auto" share one controller, fed with measured seconds. A sampled one has its own,
    fed with the costs of the model's shape: its text may depend on how many tokens were drafted, so the number must not
    depend on the clock or on neighbours.
    """

    def __init__(self, runner: Runner):
        self.shared = DraftController()
        self.nominal = nominal_costs(runner.model.config)
        self.verifying = Stopwatch()
        """Seconds of one pass of verification."""
        self.drafting = Stopwatch()
        """Seconds of one step of drafting."""
        self._rows = runner.rows

    def counts(self, active: list[Running]) -> list[int]:
        """Choose for every sequence."""
        sharing = [one for one in active if one.shares_controller]
        common = 0
        counts = [0 if one.shares_controller else self._alone(one) for one in active]
        if sharing:
            others = sum(counts) + len(active) - len(sharing)
            limit = max(one.draft_limit for one in sharing)
            common = self.shared.choose(self._costs(len(sharing), others), limit)
        return [
            min(common, one.draft_limit) if one.shares_controller else count
            for one, count in zip(active, counts, strict=True)
        ]

    def _alone(self, one: Running) -> int:
        if one.controller is not None:
            return one.controller.choose(self.nominal, one.draft_limit) if one.chain else 0
        wanted = one.request.draft
        return min(wanted, one.draft_limit) if isinstance(wanted, int) else 0

    def _costs(self, sequences: int, others: int) -> Costs:
        """Seconds, as measured, of a round in which `sequences` draft and `others` rows run in any case."""
        verify = self.verifying.seconds
        if verify is None:
            return self.nominal
        seconds = self.drafting.seconds
        step = verify * self.nominal.draft if seconds is None else seconds

        def verifying(drafts: int) -> float:
            return verify * -(-(others + sequences * (1 + drafts)) // self._rows)

        return Costs(verifying, step)

    def observe(self, one: Running, drafted: int, accepted: int) -> None:
        """Take note of what became of a sequence's drafts."""
        controller = self.shared if one.shares_controller else one.controller
        if controller is not None and drafted:
            controller.observe(drafted, accepted)


class Batch:
    """The requests of one call, run to their ends. A context manager: leaving it gives every cache back."""

    def __init__(self, requests: Iterable[Request], runner: Runner, pool: CachePool, plan: DraftPlan, most_active: int):
        """Queue the requests in order.

        Args:
            requests: checked ones.
            runner: of the engine.
            pool: of the engine; other batches may hold some of it.
            plan: of the engine.
            most_active: sequences that run at once at most.
        """
        self.runner, self.pool, self.plan = runner, pool, plan
        self.most_active = most_active
        self.active: list[Running] = []
        self.waiting = deque(Running(number, request, runner) for number, request in enumerate(requests))
        self.all = list(self.waiting)

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, *error: Any) -> None:
        for one in self.all:
            self._release(one)

    def _release(self, one: Running) -> None:
        if one.cache is not None:
            self.pool.close(one.cache)
            one.cache = one.chain = None

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.active or self.waiting)

    def advance(self) -> list[tuple[int, Piece]]:
        """Let the next one in (its prompt runs and it gets its first token), or run a round for all.

        First come, first served: one that does not fit yet holds back those behind it, so nobody starves.

        Returns:
            The number of each request that went on, with the piece it got.

        Raises:
            RequestError: nothing runs and the next does not fit, since other calls hold the cache.
        """
        ended = [self._handed(one, one.end("cancelled")) for one in list(self.active) if one.cancelled]
        if ended:
            return ended
        if self.waiting and len(self.active) < self.most_active:
            one = self.waiting[0]
            if one.cancelled:
                return [self._handed(self.waiting.popleft(), one.end("cancelled"))]
            one.cache = self.pool.open(one.request.positions)
            if one.cache is not None:
                self.active.append(self.waiting.popleft())
                return [self._handed(one, one.prefill())]
            if not self.active:
                raise RequestError(
                    f"the request needs {one.request.positions} positions of cache, but other requests hold all but "
                    f"{self.pool.free} of {self.pool.tokens} (cache_tokens)",
                    way_out="try again when they have ended, or an engine with more cache_tokens",
                )
        return self._round() if self.active else []

    def _handed(self, one: Running, piece: Piece) -> tuple[int, Piece]:
        if one.finish_reason is not None:
            self._release(one)
            self.active = [other for other in self.active if other is not one]
        return one.number, piece

    def _round(self) -> list[tuple[int, Piece]]:
        active = list(self.active)
        counts = self.plan.counts(active)

        # 1. Draft for those that want to.
        started = time.perf_counter()
        some = [i for i, count in enumerate(counts) if count]
        chains = [chain for i in some if (chain := active[i].chain) is not None]
        proposed = draft(
            self.runner,
            chains,
            [active[i].tokens for i in some],
            [counts[i] for i in some],
            lambda number, drafts, logits_A: active[some[number]].draw_draft(drafts, logits_A),
        )
        drafts = [[] for _ in active]
        for i, found in zip(some, proposed, strict=True):
            drafts[i] = found
        if some:
            self.plan.drafting.add((time.perf_counter() - started) / max(counts))

        # 2. One row for the newest token, and one for every draft.
        started, passes = time.perf_counter(), self.runner.passes
        work = [Work(_cache(one), [one.answer[-1], *(d.token_id for d in drafts[i])]) for i, one in enumerate(active)]
        done = self.runner.decode(work)

        # 3. What stays stays in the caches too; the rest is taken back.
        pieces = []
        for i, one in enumerate(active):
            verdict, piece = one.verify(drafts[i], done[i].logits_NA)
            self.plan.observe(one, len(drafts[i]), verdict.accepted)
            kept = len(work[i].ids) - len(drafts[i]) + verdict.accepted
            for layer in range(self.runner.model.config.num_hidden_layers):
                _cache(one).truncate(layer, _cache(one).length(layer) - len(drafts[i]) + verdict.accepted)
            if one.chain is not None and one.finish_reason is None:
                one.chain.take_back(verdict.accepted, done[i].state_ND[:kept])
                one.chain.catch_up(one.tokens)
            pieces.append(piece)
        self.plan.verifying.add((time.perf_counter() - started) / (self.runner.passes - passes))
        return [self._handed(one, piece) for one, piece in zip(active, pieces, strict=True)]


def _cache(one: Running) -> SequenceCache:
    assert one.cache is not None
    return one.cache
