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
from cueva.engine.drafting import ModuleChain, draft
from cueva.engine.passes import Cache, Passes, Pool, Work
from cueva.engine.plan import DraftPlan
from cueva.engine.running import Request, Running
from cueva.errors import RequestError


class Batch:
    """The requests of one call, run to their ends. A context manager: leaving it gives every cache back."""

    def __init__(self, requests: Iterable[Request], runner: Passes, pool: Pool, plan: DraftPlan, most_active: int):
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
                return [self._handed(one, one.prefill(drafting=self.plan.begin(one)))]
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
        started = time.perf_counter()
        counts = self.plan.counts(active)
        cached = sum(one.length for one in active) / len(active)

        # 1. Draft for those that want to; modules that were not used for a while first see what they missed.
        some = [i for i, count in enumerate(counts) if count]
        chains = [chain for i in some if (chain := active[i].chain) is not None]
        known = [active[i].tokens for i in some]
        ids = [self.plan.ids(active[i]) for i in some]
        steps: list[tuple[int, bool, float]] = []
        catching_up = sum(
            self._catch_up(chain, tokens) for chain, tokens in zip(chains, known, strict=True) if chain.falls_behind
        )
        proposed = draft(
            self.runner,
            chains,
            known,
            [counts[i] for i in some],
            lambda number, drafts, logits: active[some[number]].draw_draft(drafts, logits, ids[number]),
            ids,
            lambda *step: steps.append(step),
        )
        drafts = [[] for _ in active]
        for i, found in zip(some, proposed, strict=True):
            drafts[i] = found

        # 2. One row for the newest token, and one for every draft.
        work = [Work(_cache(one), [one.answer[-1], *(d.token_id for d in drafts[i])]) for i, one in enumerate(active)]
        done = self.runner.decode(work)

        # 3. What stays stays in the caches too; the rest is taken back.
        pieces: list[Piece] = []
        bounding = 0.0
        for i, one in enumerate(active):
            verdict, piece = one.verify(drafts[i], done[i].logits_NA)
            self.plan.observe(one, len(drafts[i]), verdict.accepted, cached)
            kept = len(work[i].ids) - len(drafts[i]) + verdict.accepted
            cache = _cache(one)
            cache.truncate_main(cache.length(0) - len(drafts[i]) + verdict.accepted)
            if one.chain is not None and one.finish_reason is None:
                one.chain.take_back(verdict.accepted, done[i].state_ND[:kept])
                bounding += self._bound(one)
            pieces.append(piece)

        # 4. What it took is what the next round is decided by.
        for rows, reduced, seconds in steps:
            self.plan.drafted(rows, cached, seconds, reduced=reduced)
        drafting = sum(seconds for _, _, seconds in steps)
        verifying = time.perf_counter() - started - drafting - catching_up - bounding
        tokens = [piece.token_ids for piece in pieces]
        self.plan.ended(active, counts, tokens, cached, (catching_up, drafting, verifying))
        return [self._handed(one, piece) for one, piece in zip(active, pieces, strict=True)]

    def _catch_up(self, chain: ModuleChain, tokens: list[int]) -> float:
        """Let modules far behind see what they missed, and return the seconds it took."""
        began = time.perf_counter()
        rows = chain.catch_up(tokens)
        took = time.perf_counter() - began
        self.plan.drafted(rows, len(tokens), took, reduced=False)
        return took

    def _bound(self, one: Running) -> float:
        """Keep no more states than a module may lag behind: it catches up, or is given up where that does not pay."""
        assert one.chain is not None
        if not one.chain.lags_most:
            return 0.0
        if self.plan.keeps_up(one):
            return self._catch_up(one.chain, one.tokens)
        one.chain = None
        return 0.0


def _cache(one: Running) -> Cache:
    assert one.cache is not None
    return one.cache
