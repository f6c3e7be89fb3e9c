"""What the engine asks of whoever computes: the PyTorch runner and the native one are two answers to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cueva.config import ModelConfig


class Cache(Protocol):
    """The latents of one sequence: a length for the main layers, and one for each MTP module's layer."""

    def length(self, layer: int) -> int:
        """Rows held for this layer."""
        ...

    def truncate(self, layer: int, length: int) -> None:
        """Forget a layer's rows from `length` on."""
        ...

    def truncate_main(self, length: int) -> None:
        """Forget the rows of all main layers from `length` on."""
        ...


class Pool(Protocol):
    """One budget of positions for all sequences of an engine."""

    tokens: int
    """The whole of it."""

    @property
    def free(self) -> int:
        """Positions that nobody was granted."""
        ...

    def open(self, tokens: int) -> Any:
        """Grant positions: their `Cache`, or None while others hold too many."""
        ...

    def close(self, cache: Any) -> None:
        """Take a cache back; closing it again changes nothing."""
        ...


@dataclass(frozen=True)
class Work:
    """Rows that continue one sequence."""

    cache: Any
    """The `Cache` of the sequence, of the runner's kind."""
    ids: Sequence[int]
    state_ND: Tensor | None = None
    """For an MTP module: the states of the depth before, one per row."""


class Done(NamedTuple):
    """What came of a `Work`, row by row."""

    state_ND: Tensor
    logits_NA: NDArray[np.float32]


class HasConfig(Protocol):
    """A model, as far as the engine looks at it."""

    @property
    def config(self) -> ModelConfig:
        """Its shape."""
        ...


class Passes(Protocol):
    """Runs a model, and counts its passes. A row's bits depend on its own sequence and position alone."""

    rows: int
    """Rows that one decoding pass takes at most."""
    prefill_chunk: int
    """Rows of a prefill pass; chunks start at multiples of it."""
    passes: int
    mtp_passes: int
    dtype: torch.dtype
    """Of states."""
    device: torch.device

    @property
    def model(self) -> HasConfig:
        """What is run."""
        ...

    @property
    def depths(self) -> int:
        """MTP modules of the model."""
        ...

    @property
    def padded_rows(self) -> int:
        """Rows that every decoding pass is filled up to."""
        ...

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of the cached rows."""
        ...

    def decode(self, work: Sequence[Work]) -> list[Done]:
        """Run rows through the main layers. The logits of row i of a work follow its i-th token."""
        ...

    def mtp(
        self, depth: int, work: Sequence[Work], *, logits: bool = True, ids: NDArray[np.int64] | None = None
    ) -> list[Done]:
        """Run rows through MTP module `depth`; `logits_NA` has the last row's (1, A), those of `ids`, or nothing."""
        ...

    def prefill(self, cache: Any, ids: Sequence[int]) -> Tensor:
        """Run one chunk of a prompt through the main layers; returns (T, D) states of its T tokens."""
        ...

    def mtp_prefill(self, depth: int, cache: Any, ids: Sequence[int], state_ND: Tensor) -> Tensor:
        """Run one chunk of a prompt through MTP module `depth`; `ids` are those `depth` places further on."""
        ...

    def logits(self, state_D: Tensor) -> NDArray[np.float32]:
        """Logits (A) of one state: what follows the last token of a prompt."""
        ...

    def new_cache(self, limit: int) -> Any:
        """A cache outside any budget."""
        ...
