"""Model directories to read, and ways to spoil them."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from cueva.checkpoint import CheckpointWarning, inventory
from cueva.checkpoint.fp8 import quantise
from cueva.config import ModelConfig
from cueva.model import CausalLM


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; `...` removes one."""
    file = folder / "config.json"
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a directory with one file."""
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()}, file, {"format": "pt"})


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of every file, read by the safetensors library."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= safetensors.torch.load_file(file)
    return found


def drop(folder: Path, prefix: str) -> None:
    """Remove every tensor whose name begins so."""
    edit_tensors(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefix)])


def quantise_folder(folder: Path, config: ModelConfig, *, scale_fmt: str | None = None, e8m0: bool = False) -> None:
    """Make a plain directory one like the published FP8 files, in blocks of 16 x 8, so that small shapes are ragged."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name, entry in inventory(config).items():
            if entry.fp8:
                tensors[name], scale = quantise(tensors[name].float(), block=(16, 8), scale_fmt=scale_fmt)
                tensors[f"{name}_scale_inv"] = scale.to(torch.float8_e8m0fnu) if e8m0 else scale
            elif not entry.is_router_bias:
                tensors[name] = tensors[name].bfloat16()

    edit_tensors(folder, change)
    quantisation = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 8], "activation_scheme": "dynamic"}
    edit_config(folder, quantization_config=quantisation | ({"scale_fmt": scale_fmt} if scale_fmt else {}))


def assert_same_model(one: CausalLM, other: CausalLM) -> None:
    """Every parameter and buffer equal, bit for bit."""
    assert one.config == other.config
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@contextmanager
def no_warnings() -> Iterator[None]:
    """A directory in order is read without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        yield
