"""Whether the tensors of a directory are those of its config: names, shapes, dtypes, and the scales of FP8 weights.

Only headers are looked at. A message names the first five tensors at fault, and how many there are.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import torch

from cueva.checkpoint.config_file import ConfigReading
from cueva.checkpoint.fp8 import E4M3, SCALE_DTYPES
from cueva.checkpoint.names import HEAD, SCALE_SUFFIX, TensorEntry, scale_name, scale_shape
from cueva.checkpoint.safetensors_io import StoredFolder
from cueva.config import ModelConfig
from cueva.errors import CheckpointError

PLAIN_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What a tensor may be stored in without a scale."""

_SHOWN: Final = 5


def check_names(folder: Path, config: ModelConfig, entries: dict[str, TensorEntry], names: set[str]) -> None:
    """Every tensor of the inventory is there, MTP copies aside, and no other.

    Raises:
        CheckpointError: the missing and the surplus ones.
    """
    missing = [name for name, entry in entries.items() if name not in names and entry.copy_of is None]
    extra = sorted(name for name in names if name not in entries)
    if config.tie_word_embeddings and HEAD in extra:
        extra.remove(HEAD)  # some tools write it all the same; `differing_copies` compares it
    problems = []
    if missing:
        problems.append(f"{_counted(missing, 'tensor is', 'tensors are')} missing: {_listed(missing)}")
    if extra:
        problems.append(f"{_counted(extra, 'tensor is', 'tensors are')} not part of the model: {_listed(extra)}")
    if problems:
        raise CheckpointError(f"{folder} does not hold what its config.json describes; {'; '.join(problems)}")


def check_tensors(folder: Path, stored: StoredFolder, entries: dict[str, TensorEntry]) -> None:
    """Every tensor has the shape that the config gives it, and holds floats.

    Raises:
        CheckpointError: those that have not.
    """
    wrong = [
        f"{name} is {_shape(stored.tensors[name].shape)} instead of {_shape(entry.shape)}"
        for name, entry in entries.items()
        if stored.tensors[name].shape != entry.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{folder}: {_counted(wrong, 'tensor has', 'tensors have')} another shape than config.json gives: "
            f"{_listed(wrong)}"
        )
    odd = [
        f"{name} ({str(stored.tensors[name].dtype).removeprefix('torch.')})"
        for name in entries
        if stored.tensors[name].dtype not in (*PLAIN_DTYPES, E4M3)
    ]
    if odd:
        raise CheckpointError(
            f"{folder}: {_counted(odd, 'tensor has a dtype', 'tensors have dtypes')} that weights cannot have: "
            f"{_listed(odd)}"
        )


def check_fp8(folder: Path, reading: ConfigReading, stored: StoredFolder) -> list[str]:
    """Every FP8 tensor has its scales, every scale its tensor, and the grid fits.

    Returns:
        Warnings.

    Raises:
        CheckpointError: the scales or tensors at fault.
    """
    tensors = stored.tensors
    quantised = [name for name, tensor in tensors.items() if tensor.dtype == E4M3]
    scales = [name for name in tensors if name.endswith(SCALE_SUFFIX)]
    if orphans := sorted(name for name in scales if name.removesuffix(SCALE_SUFFIX) not in tensors):
        raise CheckpointError(
            f"{folder}: {_counted(orphans, 'scale has', 'scales have')} no weight: {_listed(orphans)}"
        )
    if plain := sorted(name for name in scales if tensors[name.removesuffix(SCALE_SUFFIX)].dtype != E4M3):
        raise CheckpointError(
            f"{folder}: {_counted(plain, 'scale lies', 'scales lie')} beside weights that are not FP8: {_listed(plain)}"
        )
    if bare := [name for name in quantised if scale_name(name) not in tensors]:
        missing = [scale_name(name) for name in bare]
        raise CheckpointError(
            f"{folder}: {_counted(missing, 'FP8 scale is', 'FP8 scales are')} missing: {_listed(missing)}"
        )
    if not quantised:
        if reading.quantisation is not None:
            return ["config.json has a `quantization_config`, but no tensor is FP8: the weights are read as they are"]
        return []
    if reading.quantisation is None:
        raise CheckpointError(
            f"{folder}: {_counted(quantised, 'tensor is', 'tensors are')} FP8, but config.json has no "
            f"`quantization_config` that "
            f"gives the size of their blocks: {_listed(quantised)}"
        )
    block, wrong = reading.quantisation.block, []
    for name in quantised:
        shape, scale = tensors[name].shape, tensors[scale_name(name)]
        expected = scale_shape(shape, block) if len(shape) == 2 else None
        if scale.shape != expected or scale.dtype not in SCALE_DTYPES:
            wrong.append(
                f"{scale.name} is {_shape(scale.shape)} of {scale.dtype} "
                f"instead of {'nothing' if expected is None else _shape(expected)}"
            )
    if wrong:
        raise CheckpointError(
            f"{folder}: {_counted(wrong, 'scale does', 'scales do')} not fit blocks of {_shape(block)}: "
            f"{_listed(wrong)}"
        )
    return []


# --- private ----------------------------------------------------------------------------------------------------------


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _counted(items: list[str], one: str, many: str) -> str:
    return f"{len(items):,} {one if len(items) == 1 else many}"


def _listed(items: list[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN:,} more"
