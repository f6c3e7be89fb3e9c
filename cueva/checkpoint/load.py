"""Weights from a model directory into a model, without a second copy of them.

A tensor that is on disk as it will be in memory is mapped: it takes no memory until it is touched, and what is touched
can be given back to the system. Stacked experts are allocated once and read expert by expert into their place. So the
peak is the model and one tensor. Mappings are private: training may write into the weights, and the file stays as it
is.
"""

import os
import warnings
from collections import defaultdict
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cueva.checkpoint.directory import CheckpointWarning, ModelDirectory, open_directory
from cueva.checkpoint.names import EMBEDDING, TensorEntry
from cueva.errors import ConfigError
from cueva.model import CausalLM, MTPModule

MODEL_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
) -> CausalLM:
    """Open a model directory in the published format.

    Everything is checked by name and shape before anything is built. Router weights and biases are float32 in memory
    whatever `dtype` says; any float dtype is accepted on disk, and block-scaled FP8 is dequantised exactly. An MTP
    module's copies of embedding and head are compared with the originals: equal ones are shared, others stay that
    module's own, with a warning.

    Args:
        path: a directory with config.json and safetensors files.
        dtype: of the weights in memory: "float32", "bfloat16", "float16", or "auto": as the embedding is stored.
        device: where the model goes once it is built in main memory.

    Raises:
        ConfigError: config.json describes no model that cueva knows; or no such dtype.
        CheckpointError: tensors are missing, surplus, damaged or of another shape.

    Warns:
        CheckpointWarning: the directory is odd in a way that does not keep it from being read; one sentence each.
    """
    with open_directory(path) as directory:
        wanted = model_dtype(dtype, directory.stored.tensors[EMBEDDING].dtype)
        differing = directory.differing_copies()
        for sentence in (*directory.warnings, *_about_copies(directory, differing)):
            warnings.warn(sentence, CheckpointWarning, stacklevel=2)
        with torch.device("meta"), _NothingDrawn():
            model = CausalLM(directory.config)
            _make_room_for_copies(model, differing)
        _fill(model, directory, wanted, differing)
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not left, left
    return model.to(device)


def model_dtype(dtype: str | torch.dtype, stored: torch.dtype) -> torch.dtype:
    """The dtype that a name means; `stored` is what "auto" stands for, float32 where a model cannot compute in it.

    Raises:
        ConfigError: a model cannot have this dtype.
    """
    if dtype == "auto":
        return stored if stored in MODEL_DTYPES.values() else torch.float32
    if isinstance(dtype, str):
        if dtype in MODEL_DTYPES:
            return MODEL_DTYPES[dtype]
    elif dtype in MODEL_DTYPES.values():
        return dtype
    raise ConfigError(f"dtype is {dtype!r}, but a model is one of {', '.join(MODEL_DTYPES)} or 'auto'")


# --- private ----------------------------------------------------------------------------------------------------------


class _NothingDrawn(TorchFunctionMode):
    """Skip the weights that PyTorch's layers draw for themselves: on the meta device that imports its compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _about_copies(directory: ModelDirectory, differing: list[str]) -> list[str]:
    return [
        f"{name} is not the copy of {directory.entries[name].copy_of} that it is in other files: kept as that MTP "
        f"module's own"
        for name in differing
    ]


def _make_room_for_copies(model: CausalLM, differing: list[str]) -> None:
    """Give an MTP module an embedding or a head of its own, where its file copy is another."""
    for name in differing:
        layer = name.split(".")[2]
        module = model.model.layers[int(layer)]
        assert isinstance(module, MTPModule)
        if name.endswith(".embed_tokens.weight"):
            module.embed_tokens = nn.Embedding(model.config.vocab_size, model.config.hidden_size)
        else:
            module.shared_head.head = nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)


def _fill(model: CausalLM, directory: ModelDirectory, dtype: torch.dtype, differing: list[str]) -> None:
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    parts: defaultdict[str, list[TensorEntry]] = defaultdict(list)
    for entry in directory.entries.values():
        if entry.copy_of is None or entry.name in differing:
            parts[entry.parameter].append(entry)
    for parameter, entries in parts.items():
        first = entries[0]
        kept = torch.float32 if first.is_router_bias or first.is_router_weight else dtype
        if first.expert is None:
            _assign(model, parameter, directory.tensor(first.name, kept))
            continue
        stacked = torch.empty(shapes[parameter], dtype=kept)
        for entry in entries:
            directory.read_into(entry.name, place_of(entry, stacked))
        _assign(model, parameter, stacked)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight


def place_of(entry: TensorEntry, stacked: Tensor) -> Tensor:
    """The part of a stacked parameter that an expert's tensor is."""
    assert entry.expert is not None
    place = stacked[entry.expert]
    return place if entry.rows is None else place[slice(*entry.rows)]


def _assign(model: CausalLM, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a meta parameter or buffer; nothing is copied."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, leaf, nn.Parameter(tensor) if leaf in dict(module.named_parameters(recurse=False)) else tensor)
