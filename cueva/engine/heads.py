"""Beside the PyTorch runner: the vocabulary head over some ids, and what a pass costs when nothing is at stake."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from cueva.model import CausalLM

if TYPE_CHECKING:
    from cueva.engine.runner import Runner

KEPT: Final = 3
"""Reduced heads kept: the first choice, the one by use, and the one before it."""


class Heads:
    """Logits of all ids, or of some by a copy of their rows, made once for each array of ids."""

    def __init__(self, model: CausalLM):
        """Serve one model, whose weights may still change: a copy of rows that did is made anew."""
        self._model = model
        self._packed: OrderedDict[tuple[int, int], tuple[NDArray[np.int64], object, Tensor | None]] = OrderedDict()

    def logits(self, h_TD: Tensor, depth: int, ids: NDArray[np.int64] | None) -> Tensor:
        """Float32 logits (T, A) or, of `ids` only, (T, V); `depth` 0 is the main model."""
        if ids is None:
            return self._model.logits(h_TD, depth)
        weight_VD = self._rows(h_TD, depth, ids)
        if weight_VD is None:
            return self._model.logits(h_TD, depth)[:, torch.from_numpy(np.array(ids)).to(h_TD.device)]
        return linear(h_TD, weight_VD).float()

    def _rows(self, h_TD: Tensor, depth: int, ids: NDArray[np.int64]) -> Tensor | None:
        own = self._model.mtp_modules[depth - 1].shared_head.head if depth else None
        weight_AD = (own or self._model.lm_head).weight
        version = None if weight_AD.is_inference() else weight_AD._version
        key, state = (id(ids), weight_AD.data_ptr()), (version, h_TD.shape[0])
        if key not in self._packed or self._packed[key][1] != state:
            weight_VD = weight_AD.detach()[torch.from_numpy(np.array(ids)).to(weight_AD.device)]
            # The array is kept with its copy, so that no other can take its identity.
            self._packed[key] = (ids, state, weight_VD if _rows_are_independent(h_TD, weight_VD) else None)
            while len(self._packed) > KEPT * max(len(self._model.mtp_modules), 1):
                self._packed.popitem(last=False)
        return self._packed[key][2]


def _rows_are_independent(like_TD: Tensor, weight_VD: Tensor) -> bool:
    """Whether a row's logits have the same bits in every place, at this shape (`runner.py` says why that counts)."""
    state_TD = torch.randn(like_TD.shape, generator=torch.Generator().manual_seed(0)).to(like_TD)
    alone_TV = linear(state_TD[-1].expand_as(state_TD).contiguous(), weight_VD)
    crowd_TV = linear(state_TD, weight_VD)
    return torch.equal(alone_TV, alone_TV[-1].expand_as(alone_TV)) and torch.equal(alone_TV[-1], crowd_TV[-1])


@torch.inference_mode()
def measure(runner: "Runner", depth: int, rows: int, cached: int, ids: NDArray[np.int64] | None) -> float:
    """Seconds of one made-up pass of a runner; arguments as in `cueva.engine.costs.Measures`."""
    from cueva.engine.drafting import CATCH_UP_FROM
    from cueva.engine.passes import Work

    config = runner.model.config
    main = config.num_hidden_layers
    cache = runner.new_cache(cached + rows)
    history_SX = torch.randn(
        cached, config.kv_lora_rank + config.qk_rope_head_dim, generator=torch.Generator().manual_seed(0)
    ).to(device=runner.device, dtype=runner.dtype)
    for layer in range(main) if depth == 0 else (main + depth - 1,):
        cache.append(layer, history_SX[:, : config.kv_lora_rank], history_SX[:, config.kv_lora_rank :])
    token_ids: Sequence[int] = [row % config.vocab_size for row in range(rows)]
    state_ND = torch.zeros(rows, config.hidden_size, dtype=runner.dtype, device=runner.device)
    passes = runner.passes, runner.mtp_passes
    started = time.perf_counter()
    if depth == 0:
        runner.decode([Work(cache, token_ids)])
    elif rows > CATCH_UP_FROM:
        for first in range(0, rows, runner.prefill_chunk):
            some = slice(first, first + runner.prefill_chunk)
            runner.mtp_prefill(depth, cache, token_ids[some], state_ND[some])
    else:
        runner.mtp(depth, [Work(cache, token_ids, state_ND)], ids=ids)
    took = time.perf_counter() - started
    runner.passes, runner.mtp_passes = passes
    return took
