"""A model directory, opened and checked before anything is built from it.

Checking needs only the config and the headers: every tensor that the config asks for must be there with its shape, and
nothing else. The one exception is the number of MTP modules, where config and tensors of published directories are
known to disagree: `transformers` drops the modules' tensors on save and leaves the key, and older files have the
tensors without the key.
"""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from cueva.checkpoint.checks import check_fp8, check_names, check_tensors
from cueva.checkpoint.config_file import ConfigReading, read_config_file
from cueva.checkpoint.fp8 import E4M3, dequantise
from cueva.checkpoint.names import (
    EMBEDDING,
    HEAD,
    SCALE_SUFFIX,
    TensorEntry,
    inventory,
    mtp_prefix,
    scale_name,
)
from cueva.checkpoint.safetensors_io import INDEX_NAME, SINGLE_NAME, StoredFolder, open_folder
from cueva.config import ModelConfig
from cueva.errors import CheckpointError, ConfigError
from cueva.files import recover_folder

_IGNORED: Final = re.compile(r"\.rotary_emb\.inv_freq$")  # old files repeat what the config says
_LAYER: Final = re.compile(r"^model\.layers\.(\d+)\.")
_COMPARED_AT_ONCE: Final = 1 << 24
_ATTEMPTS: Final = 5


class CheckpointWarning(UserWarning):
    """A model directory is odd, and was read all the same."""


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A model directory whose config and tensors agree."""

    folder: Path
    config: ModelConfig
    """With as many MTP modules as have tensors."""
    reading: ConfigReading
    stored: StoredFolder
    entries: dict[str, TensorEntry]
    """The tensors of the inventory that are there; MTP copies may be absent."""
    warnings: tuple[str, ...]

    def __enter__(self) -> "ModelDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.stored.close()

    def is_plain(self, name: str, dtype: torch.dtype) -> bool:
        """Whether a tensor's bytes on disk are what a tensor of this dtype in memory holds."""
        return self.stored.tensors[name].dtype == dtype

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor's values: mapped where the dtypes agree, else read, dequantised and cast."""
        if self.is_plain(name, dtype):
            return self.stored.view(name)
        return self._converted(name, dtype)

    def read_into(self, name: str, place: Tensor) -> None:
        """Read a tensor's values straight into a part of a larger one."""
        if self.stored.tensors[name].dtype == E4M3:
            place.copy_(self._converted(name, place.dtype))
        else:
            self.stored.read_into(name, place)

    def _converted(self, name: str, dtype: torch.dtype) -> Tensor:
        tensor = self.stored.read(name)
        if tensor.dtype != E4M3:
            return tensor.to(dtype)
        assert self.reading.quantisation is not None
        return dequantise(
            tensor, self.stored.read(scale_name(name)), block=self.reading.quantisation.block, dtype=dtype
        )

    def differing_copies(self) -> list[str]:
        """The MTP copies of embedding and head that are not what they copy. Reads them and their originals.

        Raises:
            CheckpointError: the config ties head and embedding, and the file has a head that is another.
        """
        if HEAD in self.stored.tensors and HEAD not in self.entries and not self._equal(HEAD, EMBEDDING):
            raise CheckpointError(
                f"{self.folder}: `tie_word_embeddings` is true, but {HEAD} differs from {EMBEDDING}",
                way_out="try `tie_word_embeddings: false` in config.json, if the head is right",
            )
        copies = [entry for entry in self.entries.values() if entry.copy_of is not None]
        return [entry.name for entry in copies if not self._equal(entry.name, str(entry.copy_of))]

    def _equal(self, one: str, other: str) -> bool:
        same_dtype = self.stored.tensors[one].dtype == self.stored.tensors[other].dtype != E4M3
        if not same_dtype:
            return torch.equal(self.tensor(one, torch.float32), self.tensor(other, torch.float32))
        # Bit by bit, a piece at a time: as numbers, equal NaNs would differ.
        a = self.stored.view(one).flatten().view(torch.uint8)
        b = self.stored.view(other).flatten().view(torch.uint8)
        pieces = range(0, len(a), _COMPARED_AT_ONCE)
        return all(torch.equal(a[n : n + _COMPARED_AT_ONCE], b[n : n + _COMPARED_AT_ONCE]) for n in pieces)


def open_directory(path: str | os.PathLike[str]) -> ModelDirectory:
    """Open a model directory and check that its config and its tensors describe one model.

    Raises:
        ConfigError: config.json describes no model that cueva knows.
        CheckpointError: files or tensors are missing, damaged, surplus or of another shape; the first five are named.
    """
    folder = Path(path)
    recover_folder(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no model directory {folder}")
    for _ in range(_ATTEMPTS):
        # A running training may put a new directory in this one's place between two of our files. Then start again:
        # config and shards of two saves must never meet.
        before = _identity(folder)
        try:
            opened = _open_once(folder)
        except (CheckpointError, ConfigError):
            if _identity(folder) == before:
                raise
            continue
        if _identity(folder) == before:
            return opened
        opened.stored.close()
    raise CheckpointError(f"{folder} was replaced again and again while it was opened", way_out="try again later")


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Read the shape of a model from a directory or a config.json.

    Where weights lie beside the config they decide how many MTP modules there are (only headers are read). A config
    alone has as many as it says, and none when it does not say.

    Raises:
        ConfigError, CheckpointError: as `open_directory`.
    """
    place = Path(path)
    recover_folder(place)
    reading = read_config_file(place)
    folder = place if place.is_dir() else place.parent
    if not any((folder / name).is_file() for name in (INDEX_NAME, SINGLE_NAME)):
        return reading.config
    with open_folder(folder) as stored:
        return _settle_depths(reading, _weight_names(stored), folder)[0]


# --- private ----------------------------------------------------------------------------------------------------------


def _identity(folder: Path) -> tuple[int, ...] | None:
    """What tells a folder from another under the same name."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _open_once(folder: Path) -> ModelDirectory:
    reading = read_config_file(folder)
    stored = open_folder(folder)
    try:
        names = _weight_names(stored)
        config, warnings = _settle_depths(reading, names, folder)
        entries = inventory(config)
        check_names(folder, config, entries, names)
        entries = {name: entry for name, entry in entries.items() if name in names}
        check_tensors(folder, stored, entries)
        warnings = [*reading.warnings, *stored.notes, *warnings, *check_fp8(folder, reading, stored)]
    except BaseException:
        stored.close()
        raise
    return ModelDirectory(folder, config, reading, stored, entries, tuple(warnings))


def _weight_names(stored: StoredFolder) -> set[str]:
    """Names that the inventory must account for. `transformers` writes empty tensors where no expert is shared."""
    return {
        name
        for name, tensor in stored.tensors.items()
        if tensor.nbytes and not name.endswith(SCALE_SUFFIX) and not _IGNORED.search(name)
    }


def _settle_depths(reading: ConfigReading, names: set[str], folder: Path) -> tuple[ModelConfig, list[str]]:
    """Believe the tensors about the number of MTP modules.

    The key and none of a depth's tensors: fewer depths, with a warning. No key (or 0) and tensors: as many as there
    are, with a warning. Some of a depth's tensors: an error, found later by name.
    """
    main, given = reading.config.num_hidden_layers, reading.depths_given or 0
    layers = {int(match[1]) for name in names if (match := _LAYER.match(name))}
    if given:
        absent = [depth for depth in range(1, given + 1) if main + depth - 1 not in layers]
        kept = absent[0] - 1 if absent else given
        if absent and absent != list(range(absent[0], given + 1)):
            raise CheckpointError(
                f"{folder}: the tensors of MTP depth {absent[0]} are missing, but deeper ones, which read its state, "
                f"are there"
            )
        if not absent:
            return reading.config, []
        shown = ", ".join(f"{depth} ({mtp_prefix(reading.config, depth)}*)" for depth in absent[:5])
        warning = (
            f"config.json promises {given} MTP module{'s' * (given > 1)}, but there is no tensor of depth {shown}: "
            f"loaded with {kept}"
        )
        return dataclasses.replace(reading.config, num_nextn_predict_layers=kept), [warning]
    # A layer behind the last counts as an MTP module if it has what only they have; else it is surplus, and named as
    # such.
    found = 0
    while (
        f"model.layers.{main + found}.enorm.weight" in names or f"model.layers.{main + found}.eh_proj.weight" in names
    ):
        found += 1
    if not found:
        return reading.config, []
    says = "does not mention" if reading.depths_given is None else "denies"
    warning = f"config.json {says} MTP modules, but there are tensors of {found}: loaded with {found}"
    return dataclasses.replace(reading.config, num_nextn_predict_layers=found), [warning]
