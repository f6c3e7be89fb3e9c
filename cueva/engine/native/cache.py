"""The latent cache of the native engine: pages of 64 positions, of all layers, from one budget.

A page holds, layer after layer, 64 rows of C + R values (bf16, or float32 where weights are). Main layers come first,
then MTP modules. Main layers have one length, each module its own, since modules lag and take back what they guessed.
Memory is taken from the system as pages are first written.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from cueva.config import ModelConfig
from cueva.engine.cache import Budget, CacheFull
from cueva.kernels import native

PAGE = 64
"""Positions of a page."""


class PagedCache:
    """The cache of one sequence. Rows are written by the plan; `advance` says so afterwards."""

    def __init__(self, pool: "PagedPool", limit: int, config: ModelConfig, dtype: torch.dtype):
        """Hold nothing yet; up to `limit` positions may be held."""
        self.limit = limit
        self.pages: Any = native.extension().Pages(pool.native)
        self._main = config.num_hidden_layers
        self._lengths = [0] * (1 + config.num_nextn_predict_layers)  # by depth
        self._width = config.kv_lora_rank + config.qk_rope_head_dim
        self._dtype = dtype

    def _depth(self, layer: int) -> int:
        return max(layer - self._main + 1, 0)

    def length(self, layer: int) -> int:
        """Rows held for this layer."""
        return self._lengths[self._depth(layer)]

    def depth_length(self, depth: int) -> int:
        """Rows held for a depth: 0 is the main model."""
        return self._lengths[depth]

    def reserve(self, depth: int, rows: int) -> int:
        """Make room for rows behind those held; returns how many are held.

        Raises:
            CacheFull: beyond the limit, or no page is left.
        """
        held = self._lengths[depth]
        if held + rows > self.limit:
            raise CacheFull(f"{held + rows} positions do not fit in the {self.limit} that this sequence was granted")
        if not self.pages.grow(held + rows):
            raise CacheFull("no page of the cache is left")
        return held

    def advance(self, depth: int, rows: int) -> None:
        """Take note of rows that a step wrote."""
        self._lengths[depth] += rows

    def truncate(self, layer: int, length: int) -> None:
        """Forget the rows from `length` on; the memory stays for those that follow."""
        depth = self._depth(layer)
        assert 0 <= length <= self._lengths[depth], (layer, length, self._lengths)
        self._lengths[depth] = length

    def truncate_main(self, length: int) -> None:
        """Forget the rows of all main layers from `length` on."""
        self.truncate(0, length)

    def rows(self, layer: int, stop: int) -> Tensor:
        """Copy the first `stop` rows, (S, C + R): latent, then rotary key."""
        found = []
        cell = self._dtype.itemsize
        for first in range(0, stop, PAGE):
            count = min(PAGE, stop - first)
            address = self.pages.address(first // PAGE) + layer * PAGE * self._width * cell
            raw = bytearray(ctypes.string_at(address, count * self._width * cell))
            found.append(torch.frombuffer(raw, dtype=self._dtype).view(count, self._width))
        return torch.cat(found) if found else torch.empty(0, self._width, dtype=self._dtype)

    @property
    def allocated_bytes(self) -> int:
        """Memory of the pages taken, all layers together."""
        layers = self._main + len(self._lengths) - 1
        return self.pages.positions * self._width * self._dtype.itemsize * layers

    def release(self) -> None:
        """Give the pages back."""
        self._lengths = [0] * len(self._lengths)
        self.pages.release()


class PagedPool(Budget[PagedCache]):
    """The budget of the native engine, in pages that sequences hand back."""

    def __init__(self, config: ModelConfig, tokens: int, *, dtype: torch.dtype, sequences: int):
        """Grant up to `tokens` positions to up to `sequences` sequences at once."""
        super().__init__(tokens)
        self._config, self._dtype = config, dtype
        layers = config.num_hidden_layers + config.num_nextn_predict_layers
        row = (config.kv_lora_rank + config.qk_rope_head_dim) * dtype.itemsize
        # A sequence's last page may be all but empty.
        pages = -(-tokens // PAGE) + sequences
        self.native: Any = native.extension().PagePool(PAGE * row * layers, pages)

    def _made(self, tokens: int) -> PagedCache:
        return PagedCache(self, tokens, self._config, self._dtype)

    def _taken_back(self, cache: PagedCache) -> None:
        cache.release()
