"""A model into one GGUF file: the number format of every tensor, then the file, whole or not at all."""

import contextlib
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from cueva.checkpoint.directory import CheckpointWarning
from cueva.checkpoint.gguf.metadata import (
    ARCHITECTURE,
    Value,
    departures,
    metadata,
    refuse_what_llama_cpp_computes_differently,
)
from cueva.checkpoint.gguf.tensors import GGUFTensor, gguf_tensors
from cueva.checkpoint.gguf.vocabulary import vocabulary
from cueva.errors import CheckpointError, DependencyError, nearest
from cueva.files import disk_errors, fsync_folder, require_space
from cueva.kernels.quant import BLOCK_FORMATS, quantise, stored_format
from cueva.model import CausalLM
from cueva.text import Tokenizer

TYPES: Final[Mapping[str, str]] = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
    "q4_k": "MOSTLY_Q4_K_S",
    "q6_k": "MOSTLY_Q6_K",
}
"""The types a file may have, and what GGUF calls such a file (`gguf.LlamaFileType`)."""

_ENDS: Final = ("token_embd.weight", "output.weight")
"""Embedding and head."""
_PLAIN: Final = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_HEADER_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class GGUFReport:
    """What was written."""

    path: Path
    file_bytes: int
    types: Mapping[str, str]
    """The type of every tensor, by its name in the file."""
    fallbacks: Mapping[str, str]
    """Tensors that are not in the type asked for, and the sentence that says why."""
    notes: tuple[str, ...]
    """What a reader of the file has to know: where it departs from the model, what was left out."""

    @property
    def counts(self) -> Mapping[str, int]:
        """How many tensors have each type."""
        return Counter(self.types.values())


def write_gguf(
    model: CausalLM,
    path: str | os.PathLike[str],
    type: str = "q8_0",
    tokenizer: Tokenizer | None = None,
    *,
    mtp: bool = False,
) -> GGUFReport:
    """Write a model as one GGUF file of llama.cpp's architecture `deepseek2`.

    Tensors are quantised one after another, so memory needs room for one of them beside the model. Norms, routers and
    the routers' biases are always float32. In a "q4_k" file embedding and head are Q6_K. A matrix whose rows are not
    whole blocks falls back to Q8_0, and where that does not fit either to float16; the report names each. A file that
    exists is replaced when the new one is complete.

    llama-cpp-python overrides two of the file's YaRN keys with its own arguments: a model whose `beta_fast` or
    `beta_slow` is not 32 or 1 needs `yarn_beta_fast=` and `yarn_beta_slow=` when it is opened there.

    Args:
        model: on any device, in any float dtype.
        path: the file; its folder is made if absent.
        type: a key of `TYPES`.
        tokenizer: byte-level BPE, of ours or published; None: the file takes and gives ids only ("no_vocab").
        mtp: put the MTP module into the same file, behind the layers, as llama.cpp expects it (`load_mtp`, exactly one
            module); False leaves the drafter out and says so.

    Returns:
        What became what.

    Raises:
        DependencyError: the package `gguf` is absent.
        CheckpointError: a shape that llama.cpp would compute differently; an unknown type; a tokenizer that does not
            fit; no room or no permission.
        CuevaError: weights that the type cannot hold (NaN, infinity, too large).

    Warns:
        CheckpointWarning: each of the report's notes.
    """
    if type not in TYPES:
        raise CheckpointError(
            f"there is no GGUF type {type!r}{nearest(type, TYPES)}; the types are: {', '.join(TYPES)}"
        )
    target = Path(path)
    if target.is_dir():
        raise CheckpointError(f"{target} is a folder", way_out=f"try a file in it: {target / 'model.gguf'}")
    gguf = _package()
    config = model.config
    refuse_what_llama_cpp_computes_differently(config, mtp=mtp)
    words, notes = vocabulary(config, tokenizer)
    notes = (*departures(config), *notes)
    if config.num_nextn_predict_layers and not mtp:
        notes = (*notes, f"the drafter ({config.num_nextn_predict_layers} MTP modules) is not in the file")
    tensors = list(gguf_tensors(model, mtp=mtp))
    chosen = {tensor.name: _type_of(tensor, type) for tensor in tensors}
    for note in notes:
        warnings.warn(f"{target.name}: {note}", CheckpointWarning, stacklevel=2)

    general: dict[str, Value] = {
        "general.name": target.stem,
        "general.file_type": int(gguf.LlamaFileType[TYPES[type]]),
        "general.quantization_version": int(gguf.GGML_QUANT_VERSION),
    }
    _write(gguf, target, {**general, **metadata(config, mtp=mtp), **words}, tensors, chosen)
    return GGUFReport(
        path=target,
        file_bytes=target.stat().st_size,
        types=chosen,
        fallbacks={
            tensor.name: f"rows of {tensor.shape[-1]} values are not whole blocks of {_wanted(tensor, type)}"
            for tensor in tensors
            if chosen[tensor.name] != _wanted(tensor, type)
        },
        notes=notes,
    )


# --- private ----------------------------------------------------------------------------------------------------------


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise DependencyError("writing GGUF needs the package gguf: pip install 'cueva[gguf]'") from error
    return gguf


def _wanted(tensor: GGUFTensor, type: str) -> str:
    """The type before its width is looked at."""
    return "f32" if tensor.float32 else stored_format(type, 256, end=tensor.name in _ENDS)


def _type_of(tensor: GGUFTensor, type: str) -> str:
    if tensor.float32:
        return "f32"
    return stored_format(type, tensor.shape[-1], end=tensor.name in _ENDS, plain="f16")


def _bytes_of(tensor: GGUFTensor, type: str) -> tuple[int, ...]:
    """The tensor's shape in bytes."""
    width = tensor.shape[-1]
    stored = width * _PLAIN[type].itemsize if type in _PLAIN else BLOCK_FORMATS[type].row_bytes(width)
    return (*tensor.shape[:-1], stored)


def _stored(tensor: GGUFTensor, type: str) -> Tensor:
    """The tensor's bytes, uint8, contiguous."""
    values = tensor.make()
    if values.is_meta:
        raise CheckpointError(f"{tensor.name} has no values: the model was built on the meta device and never filled")
    values = values.cpu()
    assert tuple(values.shape) == tensor.shape, (tensor.name, values.shape, tensor.shape)
    if type not in _PLAIN:
        return quantise(values, type)
    made = values.to(_PLAIN[type]).contiguous()
    if type == "f16" and not bool((made.isfinite() | ~values.isfinite()).all()):
        raise CheckpointError(
            f"{tensor.name} has values beyond 65,504, which float16 cannot hold", way_out='try type="bf16" or "f32"'
        )
    return made.view(torch.uint8)


def _write(
    gguf: Any, target: Path, keys: Mapping[str, Value], tensors: list[GGUFTensor], chosen: Mapping[str, str]
) -> None:
    """Write a temporary sibling and put it in place when it is complete and on the disk."""
    shapes = {tensor.name: _bytes_of(tensor, chosen[tensor.name]) for tensor in tensors}
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    needed = sum(sizes.values()) + _HEADER_BYTES
    with disk_errors(target, needed):
        target.parent.mkdir(parents=True, exist_ok=True)
        require_space(target, needed)
        new = target.with_name(f".{target.name}.cueva-new")
        writer = gguf.GGUFWriter(new, ARCHITECTURE)
        try:
            for key, value in keys.items():
                _add(writer, key, value)
            for tensor in tensors:
                kind = gguf.GGMLQuantizationType[chosen[tensor.name].upper()]
                writer.add_tensor_info(tensor.name, shapes[tensor.name], np.dtype(np.uint8), sizes[tensor.name], kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors:
                writer.write_tensor_data(_stored(tensor, chosen[tensor.name]).numpy())
            writer.flush()
            for file in writer.fout:
                os.fsync(file.fileno())
            writer.close()
            new.replace(target)
            fsync_folder(target.parent)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)


def _add(writer: Any, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
