"""The model's own MTP modules as a drafter: what they have seen of a sequence, and what they propose.

Known before a round: tokens t_0 .. t_n; the main cache holds rows 0 .. n-1 and their states h^0; t_n was just decided.
Row i of module k takes the embedding of t_{i+k} and the state h^{k-1}_i, and predicts token i+k+1.

1. *Catch up and draft, depth by depth.* Module k runs the rows up to n-1 that it has not yet seen. The newest row of a
   deeper module needs draft k-1 in place of a token. Draft k comes from row n-1.
2. *Beyond the last module* it is applied again, one row at a time, to its own last state and the newest draft.
3. *Verify* (the scheduler): the main model on t_n and the drafts; a of them stay, and one token follows.
4. *Take back.* Recycled rows always go, for their states were the module's and not the model's. Module k keeps the rows
   that saw only tokens that stayed: n + a + 1 - k of them, all it has at depth 1. The next round runs the rest again
   with the true tokens. So after every round each cache holds what a teacher-forced pass would have put there.

All of this decides how often a draft is right, never which text comes out (`acceptance.py` does that).

Source: DeepSeek-V3 report (arXiv:2412.19437), section 2.2 and eqs. 21-23, read for inference.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cueva.engine.acceptance import Draft
from cueva.engine.passes import Cache, Passes, Work

LAG_MOST: Final = 1024
"""Rows a module may lag behind before it must catch up or be given up; bounds the states that are kept for it."""
USUAL_LAG: Final = 6
"""Rows behind after a round of drafts that all stayed."""
CATCH_UP_FROM: Final = 32
"""Rows behind from which they run as a prompt does, many at a time, and not as rows of drafting."""


class StateRows:
    """The states of one depth from some row on: what the next depth has still to see.

    Kept as they come, and joined when they are read: a module that is not used adds a row a round and reads none.
    """

    def __init__(self, like: Tensor):
        """Hold nothing, in the dtype, width and place of `like` (..., D)."""
        self.first = self.stop = 0
        """The rows held are [first, stop)."""
        self._parts: list[Tensor] = [like.new_empty(0, like.shape[-1])]

    def _joined(self) -> Tensor:
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0]

    def append(self, state_ND: Tensor) -> None:
        """Add rows behind the last."""
        self._parts.append(state_ND)
        self.stop += state_ND.shape[0]

    def get(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop)."""
        assert self.first <= start <= stop <= self.stop, (self.first, start, stop, self.stop)
        return self._joined()[start - self.first : stop - self.first]

    def truncate(self, stop: int) -> None:
        """Forget rows from `stop` on."""
        if stop < self.stop:
            self._parts = [self._joined()[: max(stop - self.first, 0)]]
            self.stop = max(stop, self.first)

    def drop_before(self, start: int) -> None:
        """Forget rows before `start`; a copy, so that the memory really goes."""
        start = min(start, self.stop)
        if start > self.first:
            self._parts = [self._joined()[start - self.first :].clone()]
            self.first = start


class ModuleChain:
    """What the MTP modules have seen of one sequence. Depths count from 1; depth 0 is the main model."""

    def __init__(self, runner: Passes, cache: Cache):
        """Begin a sequence; its cache holds the modules' rows too."""
        self.runner = runner
        self.cache = cache
        self.depths = runner.depths
        self._main_layers = runner.model.config.num_hidden_layers
        like = torch.empty(0, runner.model.config.hidden_size, dtype=runner.dtype, device=runner.device)
        self.states = [StateRows(like) for _ in range(self.depths)]
        """States of depths 0 .. depths - 1 that the depth after has still to see."""
        self._last_D: Tensor | None = None

    def layer(self, depth: int) -> int:
        """The cache's name for the rows of module `depth`."""
        return self._main_layers + depth - 1

    def length(self, depth: int) -> int:
        """Rows that module `depth` holds."""
        return self.cache.length(self.layer(depth))

    @property
    def lag(self) -> int:
        """Rows that the module furthest behind has still to see."""
        return max((behind.stop - behind.first for behind in self.states), default=0)

    @property
    def falls_behind(self) -> bool:
        """Whether catching up at once takes less than row by row."""
        return self.lag > CATCH_UP_FROM

    @property
    def lags_most(self) -> bool:
        """Whether more states would have to be kept than shall be."""
        return self.lag > LAG_MOST

    @property
    def backlog(self) -> int:
        """Rows to see beyond those that a round with drafts leaves behind."""
        return max(self.lag - USUAL_LAG, 0)

    def prefill(self, prompt: Sequence[int], start: int, state_ND: Tensor) -> None:
        """Take the states of one prompt chunk through the modules, row by row as far as the prompt's tokens reach.

        Row i of module k needs token i + k, so of the last chunk the last k rows wait for tokens to come. No position
        is left out: a module that had seen only the newest rows would draft worse.
        """
        self.states[0].append(state_ND)
        for depth in range(1, self.depths + 1):
            first = self.length(depth)
            stop = min(start + len(state_ND), len(prompt) - depth)
            if stop <= first:
                break
            h_ND = self.runner.mtp_prefill(
                depth, self.cache, prompt[first + depth : stop + depth], self.states[depth - 1].get(first, stop)
            )
            self._seen(depth, h_ND)

    def _seen(self, depth: int, state_ND: Tensor) -> None:
        """Module `depth` ran rows for good: its states go on to the next, and those it read can go."""
        if depth < self.depths:
            self.states[depth].append(state_ND)
        self.states[depth - 1].drop_before(self.length(depth))

    def work(self, step: int, token: Callable[[int], int]) -> Work:
        """The rows to run for draft number `step`, the first being 1; `token(i)` is t_i, drafts included."""
        known = self.states[0].stop
        if step <= self.depths:
            first = self.length(step)
            ids = [token(row + step) for row in range(first, known)]
            return Work(self.cache, ids, self.states[step - 1].get(first, known))
        # Applied again: the row behind the last, with the newest draft and the module's own state.
        assert self._last_D is not None
        return Work(self.cache, [token(known + step - 1)], self._last_D[None])

    def ran(self, step: int, state_ND: Tensor) -> None:
        """Take note of the states that the rows of `work(step)` gave."""
        if step < self.depths:
            self.states[step].append(state_ND)
        self._last_D = state_ND[-1]

    def take_back(self, accepted: int, state_ND: Tensor) -> None:
        """End a round.

        Args:
            accepted: drafts that stayed (a).
            state_ND: the main model's states of t_n and of those drafts, a + 1 rows.
        """
        known = self.states[0].stop + accepted + 1
        self.states[0].append(state_ND)
        for depth in range(1, self.depths + 1):
            kept = min(self.length(depth), self.states[0].stop - accepted - 1, max(known - depth, 0))
            self.cache.truncate(self.layer(depth), kept)
            if depth < self.depths:
                self.states[depth].truncate(kept)
            self.states[depth - 1].drop_before(kept)

    def catch_up(self, tokens: Sequence[int]) -> int:
        """Run the rows of modules that lag behind, as far as decided tokens enter them; the newest waits for a draft.

        They run as a prompt does, in chunks. A draft may differ in its last bits from one after smaller steps, which
        changes no greedy text; for sampled requests it happens at rounds that depend on nothing but the request.

        Returns:
            Rows that the module furthest behind ran.
        """
        most = 0
        for depth in range(1, self.depths + 1):
            begun = self.length(depth)
            stop = min(self.states[depth - 1].stop, len(tokens) - 1 - depth)
            for first in range(begun, stop, self.runner.prefill_chunk):
                last = min(first + self.runner.prefill_chunk, stop)
                h_ND = self.runner.mtp_prefill(
                    depth, self.cache, tokens[first + depth : last + depth], self.states[depth - 1].get(first, last)
                )
                self._seen(depth, h_ND)
            most = max(most, stop - begun)
        return most


def draft(
    runner: Passes,
    chains: Sequence[ModuleChain],
    tokens: Sequence[Sequence[int]],
    counts: Sequence[int],
    draw: Callable[[int, Sequence[Draft], NDArray[np.float32]], Draft],
    ids: Sequence[NDArray[np.int64] | None] | None = None,
    took: Callable[[int, bool, float], None] | None = None,
) -> list[list[Draft]]:
    """Propose `counts[i]` tokens for each sequence, all sequences together, depth by depth.

    Args:
        runner: shared by the sequences.
        chains: one per sequence.
        tokens: t_0 .. t_n of each.
        counts: how many drafts each wants; zero is fine.
        draw: given the sequence's number, its drafts so far and a module's logits (A or V), draws the next draft.
        ids: for each, the only ids that logits are computed of (V, ascending); None is all. Sequences that draft from
            the same array run together.
        took: told the rows, whether logits were of some ids only, and the seconds of every step.
    """
    drafts: list[list[Draft]] = [[] for _ in chains]
    ids = ids or [None] * len(chains)
    kinds = {id(some): some for some in ids}
    for step in range(1, max(counts, default=0) + 1):

        def token(place: int, i: int) -> int:
            known = tokens[i]
            return known[place] if place < len(known) else drafts[i][place - len(known)].token_id

        for name, some_V in kinds.items():
            some = [i for i, count in enumerate(counts) if count >= step and id(ids[i]) == name]
            if not some:
                continue
            started = time.perf_counter()
            work = [chains[i].work(step, lambda place, i=i: token(place, i)) for i in some]
            for i, done in zip(some, runner.mtp(min(step, runner.depths), work, ids=some_V), strict=True):
                chains[i].ran(step, done.state_ND)
                drafts[i].append(draw(i, drafts[i], done.logits_NA[-1]))
            if took is not None:
                took(sum(len(one.ids) for one in work), some_V is not None, time.perf_counter() - started)
    return drafts
