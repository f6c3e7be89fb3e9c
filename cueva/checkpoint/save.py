"""A model into a directory in the published format, whole or not at all.

What is saved opens in `transformers`, vLLM and SGLang. Experts are split, both copies that readers of MTP modules look
for are written for every depth, and a tied head is left out as published files do.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from cueva.checkpoint.config_file import CONFIG_NAME, departures, write_config
from cueva.checkpoint.directory import CheckpointWarning
from cueva.checkpoint.known_keys import words
from cueva.checkpoint.load import model_dtype, place_of
from cueva.checkpoint.names import TensorEntry, inventory
from cueva.checkpoint.safetensors_write import TensorToWrite, write_folder
from cueva.config import ModelConfig
from cueva.errors import CheckpointError, ConfigError
from cueva.files import atomic_folder, disk_errors
from cueva.model import CausalLM

GENERATION_NAME: Final = "generation_config.json"

# Replaced by every save: never carried over from the directory that was there before.
_WEIGHTS: Final = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth")
_TOKENIZER: Final = words(
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt "
    "tokenizer.model",
    "chat_template.jinja chat_template.json",
)


class SavesItself(Protocol):
    """What a tokenizer must be able to do."""

    def save(self, folder: Any) -> Any:
        """Write its files into a folder."""
        ...


def save_model(
    model: CausalLM,
    path: str | os.PathLike[str],
    *,
    tokenizer: SavesItself | None = None,
    generation: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5_000_000_000,
    dtype: str | torch.dtype | None = None,
) -> None:
    """Write a model directory: config, weights, generation config and, when given, the tokenizer.

    The directory appears when it is complete and on the disk; until then what was there stays, and after an error or a
    crash remains. It may be the one that the model was loaded from. Files of an older directory that are no weights (a
    tokenizer, a README) are kept unless replaced.

    Dtypes on disk: the balance bias is always float32. A router's `gate.weight`, float32 in memory, is written in the
    model's dtype only where that loses nothing, which is so for weights that came from a published file; else in
    float32, so that a model routes the same before and after. Readers accept both. Everything else is in `dtype`.

    Args:
        model: on any device.
        path: the directory. One that exists must be a model directory or empty.
        tokenizer: saved beside the weights through its `save(folder)`.
        generation: content of generation_config.json; None keeps an existing one, or writes the special tokens only.
        max_shard_bytes: largest size of one file's tensors.
        dtype: None keeps the dtype of the model.

    Raises:
        CheckpointError: no room or no permission, found before anything is overwritten; a directory that is none of
            ours; a parameter that the format has no name for; values that float16 cannot hold.

    Warns:
        CheckpointWarning: the shape leaves its family (an ablation), so that other tools will not reproduce the model,
            and why.
    """
    if max_shard_bytes < 1:
        raise ConfigError(f"max_shard_bytes is {max_shard_bytes}, but a shard holds at least one byte")
    target = Path(path)
    _refuse_foreign_folder(target)
    stored = model.model.embed_tokens.weight.dtype
    dtype = model_dtype("auto" if dtype is None else dtype, stored)
    tensors = _tensors(model, dtype)
    for departure in departures(model.config):
        warnings.warn(
            f"other tools will not reproduce this model: `{departure.key}` {departure.why}",
            CheckpointWarning,
            stacklevel=2,
        )
    carried = _carried_over(target, with_tokenizer=tokenizer is None, with_generation=generation is None)
    needed = sum(tensor.nbytes for tensor in tensors) + _header_bytes(tensors)
    with atomic_folder(target, needed_bytes=needed) as folder:
        with disk_errors(target, needed):
            write_folder(folder, tensors, max_shard_bytes)
            write_config(model.config, folder, dtype)
            for old in carried:
                _link(old, folder / old.name)
            if generation is not None or not (folder / GENERATION_NAME).exists():
                content = _special_tokens(model.config) if generation is None else dict(generation)
                (folder / GENERATION_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(folder)


# --- private ----------------------------------------------------------------------------------------------------------


def _tensors(model: CausalLM, dtype: torch.dtype) -> list[TensorToWrite]:
    """What to write, from the inventory of the config; every parameter in memory must have its place there."""
    state = model.state_dict()
    entries = inventory(model.config)
    used = {entry.parameter for entry in entries.values()} | {entry.copy_of for entry in entries.values()}
    if model.config.tie_word_embeddings:
        used.add("lm_head.weight")
    if surplus := sorted(state.keys() - used):
        raise CheckpointError(
            f"the published format has no name for {len(surplus)} of the model's tensors: {', '.join(surplus[:5])}",
            way_out="try saving the model without what was added to it (an adapter can be merged first)",
        )
    tensors = []
    for entry in entries.values():
        source = entry.parameter if entry.parameter in state else entry.copy_of
        assert source in state, (entry.name, source)
        tensors.append(_to_write(entry, state[source], dtype))
    return tensors


def _to_write(entry: TensorEntry, tensor: Tensor, dtype: torch.dtype) -> TensorToWrite:
    if entry.is_router_bias or (entry.is_router_weight and not _survives(tensor, dtype)):
        dtype = torch.float32
    if tensor.is_meta:
        raise CheckpointError(
            f"{entry.parameter} has no values: the model was built on the meta device and never filled"
        )

    def make() -> Tensor:
        part = tensor if entry.expert is None else place_of(entry, tensor)
        made = part.detach().to(device="cpu", dtype=dtype)
        if (
            dtype == torch.float16
            and part.dtype != dtype
            and not bool((made.isfinite() | ~part.cpu().isfinite()).all())
        ):
            raise CheckpointError(
                f"{entry.name} holds values that float16 cannot (its largest is 65,504)", way_out="try dtype='bfloat16'"
            )
        return made

    return TensorToWrite(entry.name, dtype, entry.shape, make)


def _survives(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a cast loses nothing."""
    return tensor.is_meta or torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)


def _header_bytes(tensors: list[TensorToWrite]) -> int:
    """About what the headers, the index and the small JSON files take; errs upwards."""
    return sum(2 * len(tensor.name) + 160 for tensor in tensors) + 16_384


def _special_tokens(config: ModelConfig) -> dict[str, Any]:
    eos = list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else config.eos_token_id
    tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": eos, "pad_token_id": config.pad_token_id}
    return {key: value for key, value in tokens.items() if value is not None}


def _refuse_foreign_folder(target: Path) -> None:
    """A save replaces a whole folder: never one that holds something else, such as a home directory."""
    if target.is_dir() and not (target / CONFIG_NAME).is_file() and any(target.iterdir()):
        raise CheckpointError(
            f"{target} holds files but no {CONFIG_NAME}, so it is no model directory, and a save would replace it",
            way_out="try a new or empty directory",
        )


def _carried_over(target: Path, *, with_tokenizer: bool, with_generation: bool) -> list[Path]:
    """What of the old directory stays in the new one."""
    if not target.is_dir():
        return []
    replaced = (
        {CONFIG_NAME} | (set() if with_generation else {GENERATION_NAME}) | (set() if with_tokenizer else _TOKENIZER)
    )
    return [old for old in sorted(target.iterdir()) if old.name not in replaced and not old.name.endswith(_WEIGHTS)]


def _link(old: Path, new: Path) -> None:
    """Take a file or folder over without copying it where the file system allows."""
    if old.is_dir() and not old.is_symlink():
        shutil.copytree(old, new, symlinks=True, copy_function=_link_file)
    else:
        _link_file(str(old), str(new))


def _link_file(old: str, new: str) -> None:
    if not os.path.islink(old):
        try:
            os.link(old, new)
            return
        except OSError:
            pass
    shutil.copy2(old, new)
