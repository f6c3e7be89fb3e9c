"""The header of a safetensors file: read, and checked against the file before anything is mapped.

A file is 8 bytes of header length (little endian), a JSON header, and the data. The header gives each tensor's dtype,
shape and place. We read it ourselves, because a damaged file must be refused by name with the expected and the actual
bytes, and because we need the places.

Source: the format's description, https://github.com/huggingface/safetensors#format
"""

import io
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from cueva.errors import CheckpointError

DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# The format's own limit; a larger length is what a file of another kind looks like.
_LARGEST_HEADER: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies on disk."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.stop - self.start


class RepeatedError(ValueError):
    """A key that stands twice in one JSON object, where the second would silently win."""


def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object whose keys are all different, or an error that names the one that is not."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise RepeatedError(key)
        found[key] = value
    return found


def read_header(path: Path, file: io.FileIO) -> dict[str, StoredTensor]:
    """Read and check one file's header: every tensor's place, with no gap, no overlap and nothing after the last.

    Args:
        path: what messages call the file.
        file: open at its beginning.

    Raises:
        CheckpointError: it is truncated or damaged; names the file, and expected and actual bytes.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > _LARGEST_HEADER:
        raise CheckpointError(f"{path} is no safetensors file: it has no header")
    if 8 + length > size:
        raise CheckpointError(
            f"{path} is truncated: its header alone needs {8 + length:,} bytes, but the file has {size:,}",
            way_out="try downloading or copying it again",
        )
    try:
        header = json.loads(file.read(length), object_pairs_hook=no_repeats)
    except RepeatedError as error:
        raise CheckpointError(f"{path} holds the tensor {error} twice") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the header of {path} is damaged: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"the header of {path} is damaged: it is no JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _stored(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_cover(path, tensors.values(), 8 + length, size)
    return tensors


# --- private ----------------------------------------------------------------------------------------------------------


def _stored(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    """One header entry, type-checked."""
    try:
        kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        whole, kind, shape, start, stop = False, None, (), 0, 0
    if not whole or not isinstance(kind, str):
        raise CheckpointError(f"the header of {path} is damaged: the entry of {name} is {str(entry)[:80]}")
    if kind not in DTYPES:
        raise CheckpointError(f"{name} in {path} has dtype {kind}, which cueva does not know")
    dtype = DTYPES[kind]
    needed = math.prod(shape) * dtype.itemsize
    if stop - start != needed:
        raise CheckpointError(
            f"the header of {path} is damaged: {name} of shape {tuple(shape)} in {kind} takes {needed:,} bytes, but "
            f"has "
            f"{stop - start:,}"
        )
    return StoredTensor(name, path, dtype, tuple(shape), data_start + start, data_start + stop)


def _check_cover(path: Path, tensors: Iterable[StoredTensor], data_start: int, size: int) -> None:
    """The tensors must cover the data exactly: this finds truncated and appended files, gaps and overlaps."""
    end = data_start
    for stored in sorted(tensors, key=lambda stored: (stored.start, stored.stop)):
        if stored.start != end:
            what = "overlaps the tensor before it" if stored.start < end else "leaves a gap before it"
            raise CheckpointError(f"the header of {path} is damaged: {stored.name} {what}")
        end = stored.stop
    if size < end:
        raise CheckpointError(
            f"{path} is truncated: its header describes {end:,} bytes, but the file has {size:,}",
            way_out="try downloading or copying it again",
        )
    if size > end:
        raise CheckpointError(f"{path} has {size:,} bytes, but its header describes only {end:,}")
