"""Passes of the native model: as many rows as there are, no padding.

The same interface as `cueva.engine.runner.Runner`. A row's bits depend on its own sequence, its position and whether it
is part of a prompt, and on nothing else: the kernels' order of summation guarantees it (`kernels/linear/matvec.hpp`,
`kernels/attend/`), so passes may have any number of rows.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cueva.engine.native.cache import PagedCache, PagedPool
from cueva.engine.native.plan import NativeModel
from cueva.engine.passes import Done, Work
from cueva.kernels import quant
from cueva.kernels.linear import PackedMatrix

MOST_ROWS = 256
"""Rows of one decoding pass at most: bounds the memory of a step."""
CATCH_UP_ROWS = 32
"""Rows of a module from which on measuring it means measuring catching up."""
HEADS_KEPT = 3
"""Reduced heads kept of each depth: the first choice, the one by use, and the one before it."""

_EXPAND_FACTORS: dict[Any, float] = {}


class NativeRunner:
    """Runs a native model, and counts its passes."""

    def __init__(self, model: NativeModel, *, threads: int, prefill_chunk: int):
        """Run `model` with `threads` threads; prompts go in chunks of `prefill_chunk` rows."""
        self.model = model
        self.config = model.config
        self.threads = threads
        self.prefill_chunk = prefill_chunk
        self.rows = MOST_ROWS
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.passes = 0
        self.mtp_passes = 0
        self._heads: dict[int, tuple[Any, PackedMatrix]] = {}
        # Measured once in a process for each shape: two engines of one model agree to the bit about prompts.
        key = (repr(model.config), model.weights, model.isa, threads)
        if key not in _EXPAND_FACTORS:
            _EXPAND_FACTORS[key] = self._measured_expand_factor()
        self.expand_factor = _EXPAND_FACTORS[key]
        model.plan.set_expand_factor(self.expand_factor)

    def follow(self, model: NativeModel) -> None:
        """Go on with another copy of the weights of the same model."""
        if model is not self.model:
            self.model = model
            model.plan.set_expand_factor(self.expand_factor)
            self._heads.clear()

    def _measured_expand_factor(self) -> float:
        """How many times dearer an operation of the expanded form is here, to the nearest power of two.

        One layer runs 32 prompt rows over 480 cached positions in either form, and 32 rows over none; what the forms
        add to the latter, over their operations (`kernels/attend/reference.py`), is compared. Rounded, so that two runs
        on one machine agree about which form a prompt took.
        """
        config, rows, cached = self.config, 32, 480
        cache = self.new_cache(cached + rows)
        probe = config.num_nextn_predict_layers + 1

        def seconds(held: int, factor: float) -> float:
            self.model.plan.set_expand_factor(factor)
            cache.reserve(0, cached + rows)
            best = float("inf")
            for _ in range(3):
                out_TD = torch.empty(rows, config.hidden_size)
                ids_T = np.zeros(rows, np.int32)
                segment = [(0, rows, held, True, cache.pages)]
                started = time.perf_counter()
                self.model.plan.step(
                    probe, segment, rows, 0, ids_T.ctypes.data, 0, out_TD.data_ptr(), 0, 0, None, 0, 0, self.threads
                )
                best = min(best, time.perf_counter() - started)
            return best

        nope, rope, value, latent = (
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
            config.kv_lora_rank,
        )
        without = seconds(0, 0.0)
        expanded_work = cached * latent * (nope + value) + rows * cached * (nope + rope + value)
        absorbed_work = rows * latent * (nope + value) + rows * cached * (2 * latent + rope)
        expanded = max(seconds(cached, 0.0) - without, 1e-9) / expanded_work
        absorbed = max(seconds(cached, 1e9) - without, 1e-9) / absorbed_work
        return 2.0 ** min(max(round(math.log2(expanded / absorbed)), -2), 2)

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of the cached rows."""
        return self.model.cache_dtype

    @property
    def bits_per_weight(self) -> float:
        """What a pass reads for each weight."""
        name = self.model.weights
        plain = {"f32": 32.0, "bf16": 16.0, "fp8": 8.0}
        return plain[name] if name in plain else quant.block_format(name).bits_per_weight

    @property
    def padded_rows(self) -> int:
        """Rows that every pass is filled up to: one, so none."""
        return 1

    def measure(self, depth: int, rows: int, cached: int, ids: NDArray[np.int64] | None = None) -> float:
        """Seconds of one made-up pass over a cache of zeros; see `cueva.engine.costs.Measures`."""
        cache = self.new_cache(cached + rows)
        cache.reserve(depth, cached)
        cache.advance(depth, cached)
        state_ND = torch.zeros(rows, self.config.hidden_size) if depth else None
        work = [Work(cache, [row % self.config.vocab_size for row in range(rows)], state_ND)]  # pyright: ignore
        head_rows = np.arange(rows, dtype=np.int32) if depth == 0 else np.array([rows - 1], np.int32)
        if ids is not None:
            self._sub_head(depth, ids)
        # Many rows of a module are rows that it has to catch up with, which run as a prompt's do.
        catching_up = depth > 0 and rows > CATCH_UP_ROWS
        started = time.perf_counter()
        states = not (catching_up and depth == self.depths)
        self.step(depth, work, _NONE if catching_up else head_rows, prefill=catching_up, ids=ids, states=states)
        return time.perf_counter() - started

    @property
    def depths(self) -> int:
        """MTP modules of the model."""
        return self.config.num_nextn_predict_layers

    def new_cache(self, limit: int) -> PagedCache:
        """A cache outside any budget."""
        pool = PagedPool(self.config, limit, dtype=self.model.cache_dtype, sequences=1)
        cache = pool.open(limit)
        assert cache is not None
        return cache

    # --- decoding and verification ------------------------------------------------------------------------------------

    def decode(self, work: Sequence[Work]) -> list[Done]:
        """Run rows through the main layers. The logits of row i of a work follow its i-th token."""
        done: list[Done] = []
        for some in _passes(work):
            self.passes += 1
            head_rows = np.arange(sum(len(item.ids) for item in some), dtype=np.int32)
            h_TD, logits_TA = self.step(0, some, head_rows)
            start = 0
            for item in some:
                stop = start + len(item.ids)
                done.append(Done(h_TD[start:stop], logits_TA[start:stop]))
                start = stop
        return done

    def mtp(self, depth: int, work: Sequence[Work], *, logits: bool = True, ids: Any = None) -> list[Done]:
        """Run rows through MTP module `depth`; `logits_NA` has only the last row's (1, A), or nothing.

        Args:
            depth: from 1.
            work: rows with the states of the depth before.
            logits: whether they are wanted.
            ids: a subset of the vocabulary (sorted token ids): logits are of those alone.
        """
        done: list[Done] = []
        for some in _passes(work):
            self.mtp_passes += 1
            ends = np.cumsum([len(item.ids) for item in some], dtype=np.int32)
            head_rows = ends - 1 if logits else ends[:0]
            h_TD, logits_TA = self.step(depth, some, head_rows, ids=ids)
            start = 0
            for number, stop in enumerate(ends.tolist()):
                done.append(Done(h_TD[start:stop], logits_TA[number : number + 1]))
                start = stop
        return done

    # --- prefill ------------------------------------------------------------------------------------------------------

    def prefill(self, cache: PagedCache, ids: Sequence[int]) -> Tensor:
        """Run one chunk of a prompt through the main layers; returns (T, D) states of its T tokens."""
        assert cache.depth_length(0) % self.prefill_chunk == 0, cache.depth_length(0)
        return self.step(0, [Work(cache, ids)], _NONE, prefill=True)[0]

    def mtp_prefill(self, depth: int, cache: PagedCache, ids: Sequence[int], state_ND: Tensor) -> Tensor:
        """Run one chunk of a prompt through MTP module `depth`; `ids` are those `depth` places further on.

        The last module's states feed nothing: its rows are latents in the cache, and no more is computed of them. What
        is returned for it are zero rows.
        """
        work = Work(cache, ids, state_ND)
        last = depth == self.depths
        state_TD, _ = self.step(depth, [work], _NONE, prefill=True, states=not last)
        return state_TD.new_zeros(len(ids), self.config.hidden_size) if last else state_TD

    def logits(self, state_D: Tensor) -> NDArray[np.float32]:
        """Logits (A) of one state: what follows the last token of a prompt."""
        return self.model.head.linear(state_D[None], threads=self.threads)[0].numpy()

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        """Log-probabilities of a given text: entry i is that of token i + 1 after the tokens before it, in nats."""
        cache = self.new_cache(len(ids))
        found: list[float] = []
        for start in range(0, len(ids) - 1, self.prefill_chunk):
            chunk = ids[start : start + self.prefill_chunk]
            state_TD = self.prefill(cache, chunk)
            target_T = torch.tensor(ids[start + 1 : start + 1 + len(chunk)])
            logits_TA = self.model.head.linear(state_TD[: len(target_T)], prefill=True, threads=self.threads)
            found += logits_TA.log_softmax(-1).gather(-1, target_T[:, None])[:, 0].tolist()
        return found

    # --- one call ---

    def step(
        self,
        depth: int,
        work: Sequence[Work],
        head_rows: NDArray[np.int32],
        *,
        prefill: bool | Sequence[bool] = False,
        ids: Any = None,
        states: bool = True,
        routes: NDArray[np.int32] | None = None,
    ) -> tuple[Tensor, NDArray[np.float32]]:
        """Run rows of any sequences in one native call.

        Args:
            depth: 0 for the main layers, k for MTP module k.
            work: rows and whose caches they continue; those of prompts after all others.
            head_rows: rows (0 .. T - 1) whose logits are wanted.
            prefill: whether the rows are of prompts, for all or for each work.
            ids: a subset of the vocabulary for the logits.
            states: whether the states are wanted; without them only the first layer's cache is filled, and no logits
                can be asked for.
            routes: (expert layers, T, K) to be filled with the chosen experts.

        Returns:
            States (T, D) after the final norm, float32, and logits (len(head_rows), A).
        """
        flags = [prefill] * len(work) if isinstance(prefill, bool) else list(prefill)
        assert flags == sorted(flags), "rows of prompts come after all others"
        segments, start, decode_rows = [], 0, 0
        tokens: list[int] = []
        for item, is_prompt in zip(work, flags, strict=True):
            cache: PagedCache = item.cache
            stop = start + len(item.ids)
            held = cache.reserve(depth, stop - start)
            segments.append((start, stop, held, is_prompt, cache.pages))
            tokens += item.ids
            decode_rows = decode_rows if is_prompt else stop
            start = stop
        ids_T = np.array(tokens, dtype=np.int32)
        assert states or not len(head_rows), "logits need states"
        out_TD = torch.empty(start if states else 0, self.config.hidden_size)
        state_TD = None
        if depth:
            parts = [item.state_ND for item in work]
            state_TD = (parts[0] if len(parts) == 1 else torch.cat(parts)).float().contiguous()  # pyright: ignore
        head = None if ids is None else self._sub_head(depth, ids)
        logits_TA = np.empty((len(head_rows), self.config.vocab_size if head is None else head.rows), np.float32)
        self.model.plan.step(
            depth,
            segments,
            start,
            decode_rows,
            ids_T.ctypes.data,
            0 if state_TD is None else state_TD.data_ptr(),
            out_TD.data_ptr() if states else 0,
            head_rows.ctypes.data,
            len(head_rows),
            None if head is None else head.native,
            logits_TA.ctypes.data,
            0 if routes is None else routes.ctypes.data,
            self.threads,
        )
        for item in work:
            item.cache.advance(depth, len(item.ids))
        return out_TD, logits_TA

    def _sub_head(self, depth: int, ids: Any) -> PackedMatrix:
        """The rows of a head for a subset of the vocabulary, packed when the subset is first seen."""
        key = id(ids)
        if key not in self._heads:
            # The array is kept with its head, so that no other can take its identity.
            while len(self._heads) >= HEADS_KEPT * max(self.depths, 1):
                del self._heads[next(iter(self._heads))]
            self._heads[key] = (ids, self.model.sub_head(depth, torch.tensor(ids)))
        return self._heads[key][1]


_NONE = np.empty(0, np.int32)


def _passes(work: Sequence[Work]) -> list[list[Work]]:
    """Whole works in order, `MOST_ROWS` rows to a pass or one work alone."""
    passes: list[list[Work]] = []
    rows = MOST_ROWS
    for item in work:
        if rows + len(item.ids) > MOST_ROWS:
            passes.append([])
            rows = 0
        passes[-1].append(item)
        rows += len(item.ids)
    return passes
