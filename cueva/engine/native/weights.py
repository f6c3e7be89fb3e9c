"""Where the native engine's weights come from: a model in memory, or a model directory tensor by tensor.

From a directory nothing is held twice: each tensor is mapped, stored in tiles, and its pages are given back, so the
peak is the packed model and one tensor. FP8 tensors are handed on as they are, codes and scales.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cueva.checkpoint.directory import ModelDirectory
from cueva.checkpoint.fp8 import E4M3
from cueva.checkpoint.names import scale_name
from cueva.config import ModelConfig
from cueva.errors import RequestError
from cueva.kernels.linear.packed import FP8_BLOCK
from cueva.model import CausalLM


class Fp8(NamedTuple):
    """A matrix as FP8 files hold it."""

    code_OI: Tensor
    """float8_e4m3fn."""
    scale_GJ: Tensor
    """float32, one for each 128 x 128."""


class Weights(Protocol):
    """What a plan asks of a source. Names are the published ones, experts one by one."""

    config: ModelConfig

    def tensor(self, name: str) -> Tensor:
        """A tensor in a float dtype; FP8 is dequantised to float32."""
        ...

    def fp8(self, name: str) -> Fp8 | None:
        """A matrix as it is stored, if it is stored in FP8."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name that is not a copy of another."""
        ...

    def done(self, name: str) -> None:
        """Say that a tensor is not needed again."""
        ...


class ModuleWeights:
    """The weights of a model in memory, which stays as it is."""

    def __init__(self, model: CausalLM):
        """Take the tensors of `model`; they are on the CPU or are fetched one by one."""
        self.config = model.config
        # Detached tensors share the counter by which PyTorch notices changes.
        self._tensors = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}

    def state(self) -> tuple[int, ...]:
        """A number for each tensor that changes whenever PyTorch changes it in place."""
        return tuple(0 if tensor.is_inference() else tensor._version for tensor in self._tensors.values())

    def tensor(self, name: str) -> Tensor:
        """A tensor, from its place among the stacked experts if it is one's."""
        if name in self._tensors:
            return self._tensors[name].cpu()
        prefix, _, rest = name.partition(".experts.")
        number, projection, _ = rest.split(".")
        if projection == "down_proj":
            return self._tensors[f"{prefix}.experts.down_proj"][int(number)].cpu()
        both_GD = self._tensors[f"{prefix}.experts.gate_up_proj"][int(number)].cpu()
        inner = len(both_GD) // 2
        return both_GD[:inner] if projection == "gate_proj" else both_GD[inner:]

    def fp8(self, name: str) -> Fp8 | None:
        """Return None: models in memory are not in FP8."""
        return None

    def has(self, name: str) -> bool:
        """Whether the model has a tensor of its own under this name."""
        return name in self._tensors

    def done(self, name: str) -> None:
        """Nothing to give back: the model is somebody else's."""


class DirectoryWeights:
    """The weights of an open model directory."""

    def __init__(self, directory: ModelDirectory):
        """Read from `directory`, which stays open until the plan is made."""
        self.config = directory.config
        self._directory = directory
        self._own_copies = set(directory.differing_copies())

    def tensor(self, name: str) -> Tensor:
        """A tensor, mapped where it is stored as a float."""
        stored = self._directory.stored.tensors[name].dtype
        wanted = stored if stored in (torch.float32, torch.bfloat16, torch.float16) else torch.float32
        return self._directory.tensor(name, wanted)

    def fp8(self, name: str) -> Fp8 | None:
        """Codes and scales as stored, if the matrix is FP8 in blocks of 128 x 128."""
        stored = self._directory.stored
        if stored.tensors[name].dtype != E4M3:
            return None
        quantisation = self._directory.reading.quantisation
        if quantisation is None or quantisation.block != (FP8_BLOCK, FP8_BLOCK):
            block = None if quantisation is None else quantisation.block
            raise RequestError(
                f"{name} is in FP8 blocks of {block}, but the native engine computes with 128 x 128",
                way_out="try weights='bf16'",
            )
        return Fp8(stored.read(name), stored.read(scale_name(name)).float())

    def has(self, name: str) -> bool:
        """Whether the directory has it and it is no mere copy."""
        entry = self._directory.entries.get(name)
        return entry is not None and (entry.copy_of is None or name in self._own_copies)

    def done(self, name: str) -> None:
        """Give the mapped pages back."""
        self._directory.stored.forget(name)
