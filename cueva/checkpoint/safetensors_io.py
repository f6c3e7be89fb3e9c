"""A folder of safetensors files: opened once, checked, and mapped rather than copied.

Every file is opened when the folder is, and read and mapped through that one handle: should a save put a new directory
in this one's place meanwhile, headers and data still belong together. Nothing is unpickled: a folder with only `*.bin`
files is refused.
"""

import io
import json
import mmap
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from cueva.checkpoint.safetensors_header import RepeatedError, StoredTensor, no_repeats, read_header
from cueva.errors import CheckpointError

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"


class StoredFolder:
    """The tensors of a model directory: `tensors` by name, `files`, and `notes` about what is odd but harmless.

    Data is read or mapped only when asked for. Close it, or use it as a context manager; tensors that were mapped stay
    valid.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self.notes: list[str] = []
        self._open: dict[Path, io.FileIO] = {}
        self._maps: dict[Path, Tensor] = {}
        self._mapped: dict[Path, mmap.mmap] = {}
        self._closing = ExitStack()

    def __enter__(self) -> "StoredFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files. Mapped tensors keep their own hold on the data."""
        self._closing.close()
        self._maps.clear()
        self._mapped.clear()

    @property
    def files(self) -> list[Path]:
        """The files that were opened."""
        return list(self._open)

    def open(self, path: Path) -> dict[str, StoredTensor]:
        """Open one more file and read its header."""
        try:
            file = self._closing.enter_context(io.FileIO(path))
            found = read_header(path, file)
        except FileNotFoundError:
            raise CheckpointError(f"there is no file {path}") from None
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        self._open[path] = file
        return found

    def view(self, name: str) -> Tensor:
        """Map a tensor: no memory of its own, pages come from the disk as they are touched.

        The mapping is private: writing into the tensor copies the touched pages and never changes the file.
        """
        stored = self.tensors[name]
        if stored.nbytes == 0:
            return torch.empty(stored.shape, dtype=stored.dtype)
        if stored.file not in self._maps:
            try:
                mapped = mmap.mmap(self._open[stored.file].fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"cannot map {stored.file} into memory: {error}") from error
            self._mapped[stored.file] = mapped
            self._maps[stored.file] = torch.frombuffer(mapped, dtype=torch.uint8)
        raw = self._maps[stored.file][stored.start : stored.stop]
        if stored.start % stored.dtype.itemsize:
            # Written by a careless tool: only a copy can be viewed as wider values.
            raw = raw.clone()
        return raw.view(stored.dtype).view(stored.shape)

    def forget(self, name: str) -> None:
        """Give the pages of a mapped tensor back to the system.

        Only for views that nobody wrote to: they stay valid, and read the file again.
        """
        stored = self.tensors[name]
        mapped = self._mapped.get(stored.file)
        if mapped is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        # Whole pages only; the one that this tensor shares with the next goes with the next.
        first = -(-stored.start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = stored.stop // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            mapped.madvise(mmap.MADV_DONTNEED, first, length)

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
    stored = StoredFolder(folder)
    try:
        if (folder / INDEX_NAME).is_file():
            _open_indexed(stored, folder / INDEX_NAME)
        elif (folder / SINGLE_NAME).is_file():
            stored.tensors = stored.open(folder / SINGLE_NAME)
        else:
            raise _no_weights(folder)
        stored.notes += _notes_on_other_files(folder, stored.files)
    except BaseException:
        stored.close()
        raise
    return stored


# --- private ----------------------------------------------------------------------------------------------------------


def _open_indexed(stored: StoredFolder, index: Path) -> None:
    weight_map, total = _read_index(index)
    tensors = stored.tensors
    for file in sorted({stored.folder / name for name in weight_map.values()}):
        if not file.is_file():
            waiting = [name for name, place in weight_map.items() if place == file.name]
            raise CheckpointError(
                f"{file} is missing: {index.name} says that it holds {_some(waiting)}",
                way_out="try downloading or copying it again",
            )
        for name, tensor in stored.open(file).items():
            if name in tensors:
                raise CheckpointError(f"the tensor {name} is in two files, {tensors[name].file} and {file}")
            if name not in weight_map:
                raise CheckpointError(f"{file} holds {name}, which {index.name} does not list")
            tensors[name] = tensor
    for name, place in weight_map.items():
        if name not in tensors or tensors[name].file.name != place:
            where = stored.folder / place
            raise CheckpointError(f"{index.name} says that {name} is in {place}, but {where} does not hold it")
    actual = sum(tensor.nbytes for tensor in tensors.values())
    if total is not None and total != actual:
        stored.notes.append(f"{index.name} gives a total of {total:,} bytes, but its tensors have {actual:,}")


def _read_index(index: Path) -> tuple[dict[str, str], int | None]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=no_repeats)
    except RepeatedError as error:
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
