"""What the engine remembers of each sequence: latents and rotary keys, within one budget for all sequences.

A position costs C + R values in each layer (a normed latent, a rotated key) and nothing else, whatever the number of
heads: 70,272 bytes in bfloat16 for the 671B model, where expanded keys and values would take 71 times as much. Layers
from `num_hidden_layers` on belong to MTP modules, which keep rows of the same width; every layer has its own length,
because modules lag behind the main model and take back what they guessed.

Source: DeepSeek-V2 report (arXiv:2405.04434), section 2.1.2; DeepSeek-V3 report (arXiv:2412.19437), section 2.1.1.
"""

import threading
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor

from cueva.config import ModelConfig
from cueva.errors import RequestError

BLOCK: Final = 64
"""Positions by which a layer's rows grow at least; small beside a context, large beside a step."""


Granted = TypeVar("Granted")


class CacheFull(RequestError):  # noqa: N818  (a state of the cache; the contract's name)
    """More rows were appended than the sequence was granted."""


class SequenceCache:
    """The latent cache of one sequence (`cueva.model.LatentCache`).

    Rows of a layer lie together, so that attention reads one slice. They grow by whole blocks and by at least half of
    what is there, so a long answer copies each row a bounded number of times.
    """

    def __init__(self, config: ModelConfig, limit: int, *, dtype: torch.dtype, device: torch.device):
        """Hold nothing yet.

        Args:
            config: of the model; sizes the layers, MTP modules included.
            limit: positions that may be held per layer.
            dtype: of the rows, the model's own.
            device: where they lie.
        """
        layers = config.num_hidden_layers + config.num_nextn_predict_layers
        self.limit = limit
        self._main = config.num_hidden_layers
        self._width = config.kv_lora_rank + config.qk_rope_head_dim
        self._rows = [torch.empty(0, self._width, dtype=dtype, device=device) for _ in range(layers)]
        self._lengths = [0] * layers

    def length(self, layer: int) -> int:
        """Rows held for this layer."""
        return self._lengths[layer]

    def append(self, layer: int, latent_TC: Tensor, rope_TR: Tensor) -> None:
        """Add rows behind those held.

        Raises:
            CacheFull: beyond the limit; nothing was added.
        """
        held = self._lengths[layer]
        wanted = held + latent_TC.shape[0]
        if wanted > self.limit:
            raise CacheFull(f"{wanted} positions do not fit in the {self.limit} that this sequence was granted")
        if wanted > self._rows[layer].shape[0]:
            self._grow(layer, wanted)
        rows_TX = self._rows[layer][held:wanted]
        rows_TX[:, : latent_TC.shape[1]] = latent_TC
        rows_TX[:, latent_TC.shape[1] :] = rope_TR
        self._lengths[layer] = wanted

    def _grow(self, layer: int, wanted: int) -> None:
        old_SX, held = self._rows[layer], self._lengths[layer]
        blocks = -(-max(wanted, old_SX.shape[0] * 3 // 2) // BLOCK)
        new_SX = old_SX.new_empty(min(blocks * BLOCK, self.limit), self._width)
        new_SX[:held] = old_SX[:held]
        self._rows[layer] = new_SX

    def rows(self, layer: int, stop: int) -> Tensor:
        """Return the first `stop` rows, (S, C + R): latent, then rotary key. A view, valid until the next append."""
        assert stop <= self._lengths[layer], (layer, stop, self._lengths[layer])
        return self._rows[layer][:stop]

    def truncate(self, layer: int, length: int) -> None:
        """Forget the rows from `length` on; the memory stays for those that follow."""
        assert 0 <= length <= self._lengths[layer], (layer, length, self._lengths[layer])
        self._lengths[layer] = length

    def truncate_main(self, length: int) -> None:
        """Forget the rows of all main layers from `length` on."""
        for layer in range(self._main):
            self.truncate(layer, length)

    @property
    def allocated_bytes(self) -> int:
        """Memory taken now, all layers together."""
        return sum(rows.numel() * rows.element_size() for rows in self._rows)


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Memory of one position in all main layers; an MTP module adds one layer's share each."""
    return config.cache_values_per_token * dtype.itemsize


class Budget(Generic[Granted]):
    """One budget of positions for all sequences of an engine.

    A sequence is granted every position it may come to need before it starts, so it never stops half-way for want of
    memory; the memory itself is taken as it grows. What a grant is made of, `_made` and `_taken_back` say.
    """

    def __init__(self, tokens: int):
        """Grant up to `tokens` positions, of all sequences together."""
        if tokens < 1:
            raise RequestError(f"cache_tokens is {tokens}, but a cache needs at least 1 position")
        self.tokens = tokens
        self._granted: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """Positions that nobody was granted."""
        return self.tokens - sum(self._granted.values())

    def open(self, tokens: int) -> Granted | None:
        """Grant `tokens` positions and return their cache, or None while others hold too many.

        Raises:
            RequestError: more than the whole budget: waiting would not help.
        """
        if tokens > self.tokens:
            raise RequestError(
                f"the request needs {tokens} positions of cache, but this engine holds {self.tokens} (cache_tokens)",
                way_out=f"try fewer new tokens, a shorter prompt, or an engine with cache_tokens={tokens}",
            )
        with self._lock:
            if tokens > self.free:
                return None
            cache = self._made(tokens)
            self._granted[id(cache)] = tokens
            return cache

    def close(self, cache: Granted) -> None:
        """Take a cache back. Closing it again changes nothing."""
        with self._lock:
            if self._granted.pop(id(cache), None) is not None:
                self._taken_back(cache)

    def _made(self, tokens: int) -> Granted:
        raise NotImplementedError

    def _taken_back(self, cache: Granted) -> None:
        """Nothing to do where memory goes with the cache itself."""


class CachePool(Budget[SequenceCache]):
    """The budget of the PyTorch engine: each sequence's rows lie together."""

    def __init__(self, config: ModelConfig, tokens: int, *, dtype: torch.dtype, device: torch.device):
        """Grant up to `tokens` positions, of all sequences together."""
        super().__init__(tokens)
        self._config, self._dtype, self._device = config, dtype, device

    def _made(self, tokens: int) -> SequenceCache:
        return SequenceCache(self._config, tokens, dtype=self._dtype, device=self._device)
