"""Writing sharded safetensors files, one tensor in memory at a time.

The `safetensors` library writes a file from a dictionary of all its tensors, which for a cast or split model means a
second copy of a shard, and refuses tensors that share storage, as a tied head and its copies do. The format is a header
and the bytes, so we stream it: each tensor is made when its turn comes, and an error of the disk stays an `OSError`
that names its file.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from cueva.checkpoint.safetensors_header import DTYPES
from cueva.checkpoint.safetensors_io import INDEX_NAME, SINGLE_NAME

_DTYPE_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}

# The header is padded with blanks so that data begins at a multiple of this: mapped rows then lie on cache lines.
_ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True)
class TensorToWrite:
    """A tensor that will be made when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_folder(folder: Path, tensors: Sequence[TensorToWrite], max_shard_bytes: int) -> list[Path]:
    """Write tensors as `model.safetensors`, or as shards of at most `max_shard_bytes` of data with an index.

    A tensor larger than a shard gets a shard of its own. Shards are `model-00001-of-00002.safetensors`, in the order
    given.

    Raises:
        OSError: the disk refused; the caller says it in words.
    """
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        names = [SINGLE_NAME]
    else:
        names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
            "weight_map": {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
        }
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def write_file(path: Path, tensors: Sequence[TensorToWrite]) -> None:
    """Write one safetensors file; wide values first, so that every tensor is aligned to its item size."""
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    # Older `transformers` refuse a file without this.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        header[tensor.name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in ordered:
            made = tensor.make()
            assert (made.dtype, tuple(made.shape)) == (tensor.dtype, tensor.shape), tensor.name
            if made.numel():
                file.write(made.contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        # Here rather than only at the end of the save: a full disk is met while the shard is known.
        os.fsync(file.fileno())


def _split(tensors: Sequence[TensorToWrite], max_shard_bytes: int) -> list[list[TensorToWrite]]:
    shards: list[list[TensorToWrite]] = [[]]
    held = 0
    for tensor in tensors:
        if shards[-1] and held + tensor.nbytes > max_shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += tensor.nbytes
    return shards
