"""Reading a folder of safetensors files: checked before it is mapped, and mapped rather than copied.

A file is 8 bytes of header length (little endian), a JSON header, and the data. The header gives each tensor's dtype,
shape and place. We read it ourselves, because a damaged file must be refused by name with the expected and the actual
bytes, and because tensors are read straight into their final place. Nothing is unpickled: a folder with only `*.bin`
files is refused.

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
from torch import Tensor

from cueva.errors import CheckpointError

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"

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


class StoredFolder:
    """The tensors of a model directory: `tensors` by name, `files`, and `notes` about what is odd but harmless.

    Opening checks every header against its file; data is read or mapped only when asked for. Close it, or use it as a
    context manager; tensors that were mapped stay valid.
    """

    def __init__(self, folder: Path, tensors: dict[str, StoredTensor], files: list[Path], notes: list[str]):
        self.folder = folder
        self.tensors = tensors
        self.files = files
        self.notes = notes
        self._maps: dict[Path, Tensor] = {}
        self._open: dict[Path, io.FileIO] = {}

    def __enter__(self) -> "StoredFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files. Mapped tensors keep their own hold on the data."""
        for file in self._open.values():
            file.close()
        self._open.clear()
        self._maps.clear()

    def view(self, name: str) -> Tensor:
        """Map a tensor: no memory of its own, pages come from the disk as they are touched.

        The mapping is private: writing into the tensor copies the touched pages and never changes the file.
        """
        stored = self.tensors[name]
        if stored.nbytes == 0:
            return torch.empty(stored.shape, dtype=stored.dtype)
        if stored.file not in self._maps:
            try:
                self._maps[stored.file] = torch.from_file(
                    str(stored.file), shared=False, size=stored.file.stat().st_size, dtype=torch.uint8
                )
            except (RuntimeError, OSError) as error:
                raise CheckpointError(f"cannot map {stored.file} into memory: {error}") from error
        raw = self._maps[stored.file][stored.start : stored.stop]
        if (
            stored.start % stored.dtype.itemsize
        ):  # written by a careless tool; only a copy can be viewed as wider values
            raw = raw.clone()
        return raw.view(stored.dtype).view(stored.shape)

    def read(self, name: str) -> Tensor:
        """Read a tensor into memory of its own."""
        stored = self.tensors[name]
        tensor = torch.empty(stored.shape, dtype=stored.dtype)
        self._fill(stored, tensor)
        return tensor

    def read_into(self, name: str, place: Tensor) -> None:
        """Read a tensor straight into `place` (contiguous, same shape), converting where the dtypes differ."""
        stored = self.tensors[name]
        assert tuple(place.shape) == stored.shape, (name, place.shape, stored.shape)
        if place.dtype == stored.dtype and place.is_contiguous():
            self._fill(stored, place)
        else:
            place.copy_(self.read(name))

    def _fill(self, stored: StoredTensor, place: Tensor) -> None:
        # Read rather than copied from a mapping: mapped pages would count as a second copy of the weights.
        if stored.nbytes == 0:
            return
        try:
            if stored.file not in self._open:
                self._open[stored.file] = io.FileIO(stored.file)
            file = self._open[stored.file]
            file.seek(stored.start)
            left = place.flatten().view(torch.uint8).numpy().data.cast("B")
            while left:
                count = file.readinto(left)
                if not count:
                    raise CheckpointError(f"{stored.file} became shorter while {stored.name} was read")
                left = left[count:]
        except OSError as error:
            raise CheckpointError(f"cannot read {stored.name} from {stored.file}: {error}") from error


def open_folder(folder: str | os.PathLike[str]) -> StoredFolder:
    """Open the safetensors files of a folder: those its index lists, or `model.safetensors`.

    Raises:
        CheckpointError: no weights, a missing, truncated or damaged file, an index that disagrees with its files, or
            one that points out of the folder; the file or tensor is named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}")
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if index.is_file():
        return _open_indexed(folder, index)
    if single.is_file():
        return StoredFolder(folder, read_header(single), [single], _notes_on_other_files(folder, [single]))
    raise _no_weights(folder)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read and check one file's header: every tensor's place, with no gap, no overlap and nothing after the last.

    Raises:
        CheckpointError: it is truncated or damaged; names the file, and expected and actual bytes.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > _LARGEST_HEADER:
                raise CheckpointError(f"{path} is no safetensors file: it has no header")
            if 8 + length > size:
                raise CheckpointError(
                    f"{path} is truncated: its header alone needs {8 + length:,} bytes, but the file has {size:,}",
                    way_out="try downloading or copying it again",
                )
            text = file.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        header = json.loads(text, object_pairs_hook=_no_repeats)
    except _RepeatedError as error:
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


class _RepeatedError(ValueError):
    """A key that stands twice in one JSON object, where the second would silently win."""


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedError(key)
        found[key] = value
    return found


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


def _open_indexed(folder: Path, index: Path) -> StoredFolder:
    weight_map, total = _read_index(index)
    tensors: dict[str, StoredTensor] = {}
    files = sorted({folder / name for name in weight_map.values()})
    for file in files:
        if not file.is_file():
            waiting = [name for name, place in weight_map.items() if place == file.name]
            raise CheckpointError(
                f"{file} is missing: {index.name} says that it holds {_some(waiting)}",
                way_out="try downloading or copying it again",
            )
        for name, stored in read_header(file).items():
            if name in tensors:
                raise CheckpointError(f"the tensor {name} is in two files, {tensors[name].file} and {file}")
            if name not in weight_map:
                raise CheckpointError(f"{file} holds {name}, which {index.name} does not list")
            tensors[name] = stored
    for name, place in weight_map.items():
        if name not in tensors or tensors[name].file.name != place:
            raise CheckpointError(f"{index.name} says that {name} is in {place}, but {folder / place} does not hold it")
    notes = _notes_on_other_files(folder, files)
    actual = sum(stored.nbytes for stored in tensors.values())
    if total is not None and total != actual:
        notes.append(f"{index.name} gives a total of {total:,} bytes, but its tensors have {actual:,}")
    return StoredFolder(folder, tensors, files, notes)


def _read_index(index: Path) -> tuple[dict[str, str], int | None]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_no_repeats)
    except _RepeatedError as error:
        raise CheckpointError(f"{index} lists {error} twice") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {index}: {error}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(place, str) for place in weight_map.values()):
        raise CheckpointError(f'{index} is damaged: it has no "weight_map" of tensor names and file names')
    for name, place in weight_map.items():
        # Files beside the index only: a map that points elsewhere could make us read any file of the reader's.
        if place != os.path.basename(place) or place in ("", ".", "..") or "\\" in place or ":" in place:
            raise CheckpointError(f"{index} says that {name} is in {place!r}, but only a file beside the index is read")
        if not place.endswith(".safetensors"):
            raise CheckpointError(f"{index} says that {name} is in {place!r}, but only *.safetensors files are read")
    metadata = content.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return weight_map, total if isinstance(total, int) else None


def _notes_on_other_files(folder: Path, files: list[Path]) -> list[str]:
    """Weights that lie there and are not read, or that other tools would read instead."""
    others = sorted(path for path in folder.glob("*.safetensors") if path not in files)
    if folder / SINGLE_NAME in others:
        raise CheckpointError(
            f"{folder} holds both {SINGLE_NAME} and an {INDEX_NAME} that does not list it: other tools read the one, "
            f"and cueva the "
            "other",
            way_out="try removing whichever is stale",
        )
    return [f"{path.name} is in the directory, but no index lists it: it is not read" for path in others]


def _no_weights(folder: Path) -> CheckpointError:
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if shards:
        return CheckpointError(
            f"{folder} holds {_some(shards)}, but neither {SINGLE_NAME} nor {INDEX_NAME}",
            way_out=f"try downloading {INDEX_NAME}, or naming a single file {SINGLE_NAME}",
        )
    pickled = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
    if pickled:
        return CheckpointError(
            f"{folder} holds weights only as {_some(pickled)}: such files are pickled and may run code when opened, "
            f"so cueva reads "
            "none",
            way_out="try converting them to safetensors with the tool that wrote them",
        )
    return CheckpointError(f"{folder} holds no weights: there is neither {SINGLE_NAME} nor {INDEX_NAME}")


def _some(names: list[str]) -> str:
    """Up to five names, and how many more."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5:,} more"
