"""FP8 weights in blocks: E4M3 codes, and one scale for every block of (usually) 128 x 128 of them.

    weight = code * scale        # multiply, although the scale's name on disk ends in `_inv`

Blocks are counted from the top left; the last row and column of blocks may be ragged (576 rows are 4.5 blocks, so 5).
The block size comes from the config, never from rows / scale rows, which is wrong for a ragged edge.

Here also: G, J rows and columns of blocks; O, I rows and columns of the matrix.

Source: DeepSeek-V3 report (arXiv:2412.19437), section 3.3; `weight_dequant` in deepseek-ai/DeepSeek-V3
(`inference/kernel.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from cueva.checkpoint.names import scale_shape
from cueva.errors import ConfigError, ShapeError

E4M3: Final = torch.float8_e4m3fn
E4M3_MAX: Final = 448.0
"""The largest E4M3 value (code 0x7e). There is no infinity."""

SCALE_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu)

# Keeps an all-zero or subnormal block from dividing by zero; a power of two, so that it is also a ue8m0 scale.
_SMALLEST_SCALE: Final = 2.0**-126


@dataclass(frozen=True, slots=True)
class Fp8Format:
    """What a config's `quantization_config` says about its FP8 weights."""

    block: tuple[int, int]
    """Rows (out) and columns (in) that share a scale."""
    scale_fmt: str | None = None
    """`ue8m0`: every scale is a power of two. None: any float32."""


class Quantised(NamedTuple):
    """A matrix in FP8."""

    code_OI: Tensor
    """float8_e4m3fn."""
    scale_GJ: Tensor
    """float32, larger than zero."""


def read_quantization_config(value: Any) -> Fp8Format | None:
    """Understand the `quantization_config` of a published config, or refuse it by the mechanism it names.

    Raises:
        ConfigError: another method than block-scaled FP8 in E4M3.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"`quantization_config` is {value!r}, but it must be an object")
    method = value.get("quant_method")
    if method != "fp8":
        raise ConfigError(
            f"`quantization_config.quant_method` is {method!r}: of quantised weights only block-scaled 'fp8' is "
            f"supported",
            way_out="try the model's bfloat16 or FP8 directory",
        )
    known = {"quant_method", "fmt", "weight_block_size", "activation_scheme", "scale_fmt", "modules_to_not_convert"}
    for key in value:
        if key not in known and value[key] not in (None, False):
            raise ConfigError(f"`quantization_config.{key}` is {value[key]!r}, a part of FP8 that cueva does not know")
    if value.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise ConfigError(f"`quantization_config.fmt` is {value['fmt']!r}, but only 'e4m3' is supported")
    if value.get("activation_scheme", "dynamic") != "dynamic":
        raise ConfigError(
            f"`quantization_config.activation_scheme` is {value['activation_scheme']!r}: stored scales of activations "
            f"are not "
            "supported, only 'dynamic' is"
        )
    scale_fmt = value.get("scale_fmt")
    if scale_fmt not in (None, "float", "ue8m0"):
        raise ConfigError(f"`quantization_config.scale_fmt` is {scale_fmt!r}; supported are 'ue8m0' and none")
    block = value.get("weight_block_size")
    if (
        not isinstance(block, list | tuple)
        or len(block) != 2
        or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in block)
    ):
        raise ConfigError(
            f"`quantization_config.weight_block_size` is {block!r}, but FP8 weights need two whole numbers, such as "
            f"[128, 128]"
        )
    return Fp8Format((block[0], block[1]), None if scale_fmt == "float" else scale_fmt)


def dequantise(code_OI: Tensor, scale_GJ: Tensor, *, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Multiply each block by its scale in float32, then cast once.

    Args:
        code_OI: float8_e4m3fn.
        scale_GJ: float32, another float dtype, or float8_e8m0fnu (powers of two).
        block: rows and columns of a block.
        dtype: of the result.

    Raises:
        ShapeError: the grid of scales does not cover the matrix.

    >>> one = torch.tensor([[1.0]]).to(torch.float8_e4m3fn)
    >>> dequantise(one, torch.tensor([[2.0]]), block=(128, 128), dtype=torch.float32)
    tensor([[2.]])
    """
    _check_grid(code_OI, scale_GJ, block)
    rows, columns = code_OI.shape
    # Spread over columns only: spreading over both would make a second matrix.
    scale_GI = scale_GJ.float().repeat_interleave(block[1], dim=1)[:, :columns]
    weight_OI = torch.empty(rows, columns, dtype=dtype, device=code_OI.device)
    for g, top in enumerate(range(0, rows, block[0])):
        weight_OI[top : top + block[0]] = code_OI[top : top + block[0]].float() * scale_GI[g]
    return weight_OI


def quantise(weight_OI: Tensor, *, block: tuple[int, int], scale_fmt: str | None = None) -> Quantised:
    """Give each block the scale that maps its largest value to 448, and round to E4M3.

    A ragged edge block counts only the values it has. An all-zero block gets a tiny scale and codes 0. With `ue8m0`
    scales are rounded up to a power of two. Values are clamped before the cast, which on older PyTorch made NaN of what
    is too large.
    """
    rows, columns = weight_OI.shape
    grid_rows, grid_columns = scale_shape((rows, columns), block)
    padded = torch.zeros(grid_rows * block[0], grid_columns * block[1], device=weight_OI.device)
    padded[:rows, :columns] = weight_OI
    blocks_GOJI = padded.view(grid_rows, block[0], grid_columns, block[1])
    scale_GJ = (blocks_GOJI.abs().amax(dim=(1, 3)) / E4M3_MAX).clamp_min(_SMALLEST_SCALE)
    if scale_fmt == "ue8m0":
        # mantissa in [1/2, 1): exactly 1/2 is a power of two already. Exact, where log2 might round.
        mantissa_GJ, exponent_GJ = torch.frexp(scale_GJ)
        scale_GJ = torch.ldexp(torch.ones_like(scale_GJ), exponent_GJ - (mantissa_GJ == 0.5).int())
    code_GOJI = (blocks_GOJI / scale_GJ[:, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)
    return Quantised(code_GOJI.view_as(padded)[:rows, :columns].contiguous(), scale_GJ)


def _check_grid(code_OI: Tensor, scale_GJ: Tensor, block: tuple[int, int]) -> None:
    expected = scale_shape((code_OI.shape[0], code_OI.shape[1]), block)
    if tuple(scale_GJ.shape) != expected:
        raise ShapeError(
            f"a matrix of {code_OI.shape[0]} x {code_OI.shape[1]} in blocks of {block[0]} x {block[1]} needs "
            f"{expected[0]} x {expected[1]} scales, but there are {' x '.join(map(str, scale_GJ.shape))}"
        )
