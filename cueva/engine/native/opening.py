"""Whether the native engine can serve a model, and opening one from a directory."""

import os
import warnings
from pathlib import Path

import torch

from cueva.checkpoint.directory import CheckpointWarning, ModelDirectory, open_directory
from cueva.checkpoint.names import EMBEDDING
from cueva.config import ModelConfig
from cueva.engine.native.plan import NativeModel
from cueva.engine.native.weights import DirectoryWeights, ModuleWeights
from cueva.kernels import native
from cueva.kernels.linear.packed import FP8_BLOCK

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


def open_native(
    folder: Path, weights: str | None, *, threads: int, zero_copy: bool | None = None
) -> NativeModel | None:
    """Open a model directory for the native engine, tensor by tensor.

    Args:
        folder: in the published format.
        weights: format to hold them in; None: as they are stored.
        threads: that pack.
        zero_copy: use float32 or bfloat16 weights as they lie on disk. None: if they would not fit in memory.

    Returns:
        The model, or None where the native kernels cannot serve it (`why_not`), or not as it is stored.

    Raises:
        ConfigError, CheckpointError: there is no such model.
        RequestError: no such format.

    Warns:
        CheckpointWarning: the directory is odd in a way that does not keep it from being read.
    """
    with open_directory(folder) as directory:
        stored = _stored_weights(directory)
        asked = weights or stored
        if asked is None or why_not(directory.config) is not None:
            return None
        for sentence in directory.warnings:
            warnings.warn(sentence, CheckpointWarning, stacklevel=2)
        if zero_copy is None:
            size = sum(tensor.nbytes for tensor in directory.stored.tensors.values())
            zero_copy = asked == stored and asked != "fp8" and size > _memory()
        return NativeModel(DirectoryWeights(directory), asked, threads=threads, zero_copy=zero_copy)


def _stored_weights(directory: ModelDirectory) -> str | None:
    """What weights are called as a directory holds them; None if the native kernels do not compute with them."""
    quantisation = directory.reading.quantisation
    if quantisation is not None and quantisation.block == (FP8_BLOCK, FP8_BLOCK):
        return "fp8"
    return weights_of(directory.stored.tensors[EMBEDDING].dtype)


def _memory() -> float:
    """Nine tenths of the machine's memory, in bytes."""
    try:
        return 0.9 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return float("inf")
