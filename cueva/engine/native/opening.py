"""Whether the native engine can serve a model, and opening one from a directory."""

import os
import warnings
from pathlib import Path

import torch

from cueva.checkpoint.directory import CheckpointWarning, open_directory
from cueva.checkpoint.names import EMBEDDING
from cueva.config import ModelConfig
from cueva.engine.native.plan import NativeModel
from cueva.engine.native.weights import DirectoryWeights, ModuleWeights
from cueva.kernels import native

WIDEST_ROTARY = 512
"""Rotary widths beyond this are left to PyTorch."""
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def weights_of(dtype: torch.dtype) -> str | None:
    """What an engine calls weights of this dtype; None if the native kernels do not compute with it."""
    return _NAMES.get(dtype)


def why_not(config: ModelConfig) -> str | None:
    """Why the native engine cannot serve a model of this shape here, as half a sentence; None if it can."""
    if native.extension() is None:
        return native.missing()
    if config.qk_rope_head_dim > WIDEST_ROTARY:
        return f"rotary widths above {WIDEST_ROTARY} are left to PyTorch"
    return None


def stored_weights(folder: Path) -> tuple[ModelConfig, str | None]:
    """The shape of a model directory, and what its weights are called as they are stored."""
    with open_directory(folder) as directory:
        if directory.reading.quantisation is not None and directory.reading.quantisation.block == (128, 128):
            return directory.config, "fp8"
        return directory.config, weights_of(directory.stored.tensors[EMBEDDING].dtype)


class LiveModel:
    """The native copy of a model that may still be trained, made anew when its weights have changed."""

    def __init__(self, source: ModuleWeights, weights: str, *, threads: int):
        """Pack the weights as they are now; `weights` is one of `WEIGHT_FORMATS`."""
        self._source, self._weights, self._threads = source, weights, threads
        self._packed = source.state()
        self.model = NativeModel(source, weights, threads=threads)

    def current(self) -> NativeModel:
        """The copy that has today's weights."""
        state = self._source.state()
        if state != self._packed:
            self.model, self._packed = NativeModel(self._source, self._weights, threads=self._threads), state
        return self.model


def open_native(folder: Path, weights: str, *, threads: int, zero_copy: bool | None = None) -> NativeModel:
    """Open a model directory for the native engine, tensor by tensor.

    Args:
        folder: in the published format.
        weights: format to hold them in.
        threads: that pack.
        zero_copy: use float32 or bfloat16 weights as they lie on disk. None: if they would not fit in memory.

    Raises:
        ConfigError, CheckpointError: there is no such model.
        RequestError: no such format.

    Warns:
        CheckpointWarning: the directory is odd in a way that does not keep it from being read.
    """
    with open_directory(folder) as directory:
        for sentence in directory.warnings:
            warnings.warn(sentence, CheckpointWarning, stacklevel=2)
        plain = weights_of(directory.stored.tensors[EMBEDDING].dtype) == weights
        if zero_copy is None:
            zero_copy = plain and sum(tensor.nbytes for tensor in directory.stored.tensors.values()) > _memory()
        return NativeModel(DirectoryWeights(directory), weights, threads=threads, zero_copy=zero_copy)


def _memory() -> float:
    """Nine tenths of the machine's memory, in bytes."""
    try:
        return 0.9 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return float("inf")
