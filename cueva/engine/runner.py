"""Passes of the model at fixed shapes, so that a row's bits depend on its own sequence and position alone.

A matrix library chooses its order of summation by the shapes it is given. Three rules follow:

* *Decoding and verification* run with a fixed number of rows, whatever there is to do: filler rows fill up, more work
  makes more passes. Within a pass the model attends row by row (`rowwise=True`) over exactly the rows each may see. So
  a token computed alone, as the third draft of a verification, or beside seven other sequences has the same bits, and
  greedy decoding with drafts equals greedy decoding without, token for token.
* *Prefill* runs one sequence at a time in chunks that start at multiples of a fixed size and are padded to it, so a
  prompt has the same bits whatever runs beside it.
* *Trust is checked*: when an engine starts, `rows_are_independent` runs the model's own weights with one token in every
  row and among changing neighbours, and compares bits. Where a library fails it, passes have one row.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cueva.engine.cache import SequenceCache
from cueva.engine.heads import Heads, measure
from cueva.engine.passes import Done, Work
from cueva.model import CausalLM, Segment

log = logging.getLogger("cueva.engine")


class _Part(NamedTuple):
    """Some rows of a work in one pass."""

    work: int
    first: int
    start: int
    rows: int


class Runner:
    """Runs a model in passes of fixed shapes, and counts them."""

    def __init__(self, model: CausalLM, *, rows: int, prefill_chunk: int):
        """Check the rows' independence, once.

        Args:
            model: in the dtype and on the device it shall run.
            rows: of every decoding pass.
            prefill_chunk: rows of every prefill pass.
        """
        self.model = model
        self.prefill_chunk = prefill_chunk
        self.device = model.lm_head.weight.device
        self.dtype = model.lm_head.weight.dtype
        self.passes = 0
        self.mtp_passes = 0
        self.rows = rows
        self._heads = Heads(model)
        if rows > 1 and not rows_are_independent(model, rows):
            log.warning(
                "on this machine the rows of a %d-row pass influence each other's last bits; decoding one row at a "
                "time, which is slower, so that answers stay the same beside others and with drafting",
                rows,
            )
            self.rows = 1

    @property
    def depths(self) -> int:
        """MTP modules of the model."""
        return self.model.config.num_nextn_predict_layers

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of the cached rows."""
        return self.dtype

    @property
    def padded_rows(self) -> int:
        """Rows that every decoding pass is filled up to: what a pass costs goes by this."""
        return self.rows

    def measure(self, depth: int, rows: int, cached: int, ids: NDArray[np.int64] | None = None) -> float:
        """Seconds of one made-up pass; see `cueva.engine.costs.Measures`."""
        return measure(self, depth, rows, cached, ids)

    def new_cache(self, limit: int) -> SequenceCache:
        """A cache outside any budget."""
        return SequenceCache(self.model.config, limit, dtype=self.dtype, device=self.device)

    # --- decoding and verification ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode(self, work: Sequence[Work]) -> list[Done]:
        """Run rows through the main layers. The logits of row i of a work follow its i-th token."""
        return self._run(work, depth=0, last_logits_only=False)

    @torch.inference_mode()
    def mtp(
        self, depth: int, work: Sequence[Work], *, logits: bool = True, ids: NDArray[np.int64] | None = None
    ) -> list[Done]:
        """Run rows through MTP module `depth`; `logits_NA` has only the last row's (1, A), or nothing.

        With `ids` (V, ascending, not written to again) it has the logits of these ids only (1, V). The same array is
        passed again and again, so what is prepared for it may be kept by its identity.
        """
        return self._run(work, depth=depth, last_logits_only=True, logits=logits, ids=ids)

    def _run(
        self,
        work: Sequence[Work],
        *,
        depth: int,
        last_logits_only: bool,
        logits: bool = True,
        ids: NDArray[np.int64] | None = None,
    ) -> list[Done]:
        states: list[list[Tensor]] = [[] for _ in work]
        found: list[list[NDArray[np.float32]]] = [[] for _ in work]
        for parts in self._passes(work):
            ids_T = torch.zeros(self.rows, dtype=torch.int64)
            segments = []
            for part in parts:
                some = slice(part.start, part.start + part.rows)
                ids_T[some] = torch.tensor(list(work[part.work].ids[part.first : part.first + part.rows]))
                segments.append(Segment(work[part.work].cache, some.start, some.stop))
            ids_T = ids_T.to(self.device)
            if depth == 0:
                h_TD = self.model.step(ids_T, segments, rowwise=True)
                self.passes += 1
            else:
                state_TD = torch.zeros(self.rows, self.model.config.hidden_size, dtype=self.dtype, device=self.device)
                for part in parts:
                    own_ND = work[part.work].state_ND
                    assert own_ND is not None
                    state_TD[part.start : part.start + part.rows] = own_ND[part.first : part.first + part.rows]
                h_TD = self.model.mtp_step(depth, ids_T, state_TD, segments, rowwise=True)
                self.mtp_passes += 1
            # The head sees the whole pass too: its shape is as fixed as the rest.
            ends = [part.first + part.rows == len(work[part.work].ids) for part in parts]
            needed = logits and (not last_logits_only or any(ends))
            logits_TA = self._heads.logits(h_TD, depth, ids).cpu().numpy() if needed else None
            for part, at_end in zip(parts, ends, strict=True):
                states[part.work].append(h_TD[part.start : part.start + part.rows])
                if logits_TA is None or (last_logits_only and not at_end):
                    continue
                first = part.start + (part.rows - 1 if last_logits_only else 0)
                found[part.work].append(logits_TA[first : part.start + part.rows])
        nothing = np.empty((0, self.model.config.vocab_size if ids is None else len(ids)), np.float32)
        return [
            Done(torch.cat(state), np.concatenate(rows) if rows else nothing)
            for state, rows in zip(states, found, strict=True)
        ]

    def _passes(self, work: Sequence[Work]) -> Iterator[list[_Part]]:
        """Lay the rows out in order, `rows` to a pass; what does not fit goes on in the next."""
        parts: list[_Part] = []
        used = 0
        for index, item in enumerate(work):
            first = 0
            while first < len(item.ids):
                count = min(len(item.ids) - first, self.rows - used)
                parts.append(_Part(index, first, used, count))
                first, used = first + count, used + count
                if used == self.rows:
                    yield parts
                    parts, used = [], 0
        if parts:
            yield parts

    # --- prefill ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill(self, cache: SequenceCache, ids: Sequence[int]) -> Tensor:
        """Run one chunk of a prompt through the main layers; returns (T, D) states of its T tokens."""
        assert cache.length(0) % self.prefill_chunk == 0, cache.length(0)
        assert len(ids) <= self.prefill_chunk, len(ids)
        return self.model.step(self._padded(ids), [Segment(cache, 0, len(ids))], rowwise=False)[: len(ids)]

    @torch.inference_mode()
    def mtp_prefill(self, depth: int, cache: SequenceCache, ids: Sequence[int], state_ND: Tensor) -> Tensor:
        """Run one chunk of a prompt through MTP module `depth`; `ids` are those `depth` places further on."""
        state_TD = state_ND.new_zeros(self.prefill_chunk, state_ND.shape[1])
        state_TD[: len(ids)] = state_ND
        segments = [Segment(cache, 0, len(ids))]
        return self.model.mtp_step(depth, self._padded(ids), state_TD, segments, rowwise=False)[: len(ids)]

    @torch.inference_mode()
    def logits(self, state_D: Tensor) -> NDArray[np.float32]:
        """Logits (A) of one state: what follows the last token of a prompt."""
        return self.model.logits(state_D[None])[0].cpu().numpy()

    def _padded(self, ids: Sequence[int]) -> Tensor:
        ids_T = torch.zeros(self.prefill_chunk, dtype=torch.int64)
        ids_T[: len(ids)] = torch.tensor(list(ids), dtype=torch.int64)
        return ids_T.to(self.device)


@torch.inference_mode()
def rows_are_independent(model: CausalLM, rows: int) -> bool:
    """Whether a row of a `rows`-row pass has the same bits in every place and among any neighbours, on this machine.

    Two passes of the model itself meet every weight shape, every element-wise operation and every expert tile: one with
    the same token and the same made-up history in all rows, which must come out equal; one where all but the last row
    belong to other tokens at other positions, which must leave the last row as it was. Then the same for each MTP
    module.
    """
    config = model.config
    weight = model.lm_head.weight
    generator = torch.Generator().manual_seed(0)
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    history = torch.randn(21, config.kv_lora_rank + config.qk_rope_head_dim, generator=generator).to(weight)

    def caches(lengths: Sequence[int]) -> list[SequenceCache]:
        made = []
        for length in lengths:
            cache = SequenceCache(config, length + 1, dtype=weight.dtype, device=weight.device)
            for layer in range(layers):
                cache.append(layer, *history[:length].split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1))
            made.append(cache)
        return made

    state_TD = torch.randn(rows, config.hidden_size, generator=generator).to(weight)
    ids_T = torch.arange(rows, device=weight.device).remainder(config.vocab_size)
    same = len(history)
    for depth in range(config.num_nextn_predict_layers + 1):
        outcomes = []
        for ids_T_now, state_TD_now, lengths in [
            (ids_T[-1].expand(rows), state_TD[-1].expand(rows, -1).contiguous(), [same] * rows),
            (ids_T, state_TD, [*(row % same for row in range(rows - 1)), same]),
        ]:
            held = caches(lengths)
            segments = [Segment(cache, row, row + 1) for row, cache in enumerate(held)]
            if depth == 0:
                h_TD = model.step(ids_T_now, segments, rowwise=True)
                touched = range(config.num_hidden_layers)
            else:
                h_TD = model.mtp_step(depth, ids_T_now, state_TD_now, segments, rowwise=True)
                touched = range(config.num_hidden_layers + depth - 1, config.num_hidden_layers + depth)
            kept = [
                torch.cat([c.rows(layer, n + 1)[n] for layer in touched]) for c, n in zip(held, lengths, strict=True)
            ]
            outcomes.append(torch.cat([h_TD, model.logits(h_TD, depth).to(h_TD), torch.stack(kept)], dim=-1))
        alone, crowd = outcomes
        if not torch.equal(alone, alone[-1].expand_as(alone)) or not torch.equal(alone[-1], crowd[-1]):
            return False
    return True
