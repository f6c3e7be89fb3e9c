"""What a model directory holds, for `cueva inspect`."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cueva.checkpoint.config_file import departures
from cueva.checkpoint.directory import open_directory
from cueva.config import ModelConfig


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The facts of a model directory that passed every check."""

    path: Path
    config: ModelConfig
    """With as many MTP modules as have tensors."""
    tensors: int
    """Tensors on disk, FP8 scales included."""
    tensor_bytes: int
    file_bytes: int
    """Of the safetensors files, headers included."""
    files: tuple[str, ...]
    dtype_tensors: dict[str, int]
    """How many tensors have each dtype, most first."""
    dtype_bytes: dict[str, int]
    fp8_block: tuple[int, int] | None
    """Rows and columns of a block of FP8 weights; None: there are none."""
    fp8_scale_fmt: str | None
    warnings: tuple[str, ...]
    harmless_keys: tuple[str, ...]
    """Keys of config.json that do not touch the arithmetic: kept and written back."""
    unknown_keys: tuple[str, ...]
    dropped_keys: tuple[str, ...]
    """Keys that will not be written back, `auto_map` among them."""
    differing_copies: tuple[str, ...]
    """MTP copies of embedding or head that are not copies."""
    departures: tuple[str, ...]
    """What keeps other tools from reproducing the model."""


def read_model_info(path: str | os.PathLike[str], *, compare_copies: bool = True) -> ModelInfo:
    """Check a model directory and say what it holds; no weights are loaded.

    Args:
        path: the directory.
        compare_copies: compare the MTP copies with their originals, which reads both (2 GB each for the 671B model).

    Raises:
        ConfigError, CheckpointError: as `load_model`.
    """
    with open_directory(path) as directory:
        stored = directory.stored
        counts, sizes = Counter[str](), Counter[str]()
        for tensor in stored.tensors.values():
            name = str(tensor.dtype).removeprefix("torch.")
            counts[name] += 1
            sizes[name] += tensor.nbytes
        reading = directory.reading
        return ModelInfo(
            path=directory.folder,
            config=directory.config,
            tensors=len(stored.tensors),
            tensor_bytes=sum(sizes.values()),
            file_bytes=sum(file.stat().st_size for file in stored.files),
            files=tuple(file.name for file in stored.files),
            dtype_tensors=dict(counts.most_common()),
            dtype_bytes=dict(sizes.most_common()),
            fp8_block=reading.quantisation.block if reading.quantisation and "float8_e4m3fn" in counts else None,
            fp8_scale_fmt=reading.quantisation.scale_fmt if reading.quantisation else None,
            warnings=directory.warnings,
            harmless_keys=reading.harmless,
            unknown_keys=reading.unknown,
            dropped_keys=reading.dropped,
            differing_copies=tuple(directory.differing_copies()) if compare_copies else (),
            departures=tuple(f"`{departure.key}` {departure.why}" for departure in departures(directory.config)),
        )
