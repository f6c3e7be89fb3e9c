"""What a product with stored weights means, in plain PyTorch.

A weight format decides two things: which numbers the weights become (`stored`), and whether the activations that meet
them in decoding are rounded to signed bytes (`with_byte_activations`). The product itself is float32.

Letters here also: I inputs of a product, O outputs.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cueva.kernels import quant

BYTE_FORMATS = frozenset(quant.BLOCK_FORMATS)
"""Formats whose decode products take activations as signed bytes."""
ACTIVATION_BLOCK = 32
"""Columns of an activation that share a scale."""
SMALLEST_LARGEST = 2.0**-118
"""Blocks whose largest activation is no larger count as zeros: its inverse would overflow."""


def stored(weight_OI: Tensor, format: str) -> Tensor:
    """Return the float32 numbers that a weight has once it is stored in `format` ("f32", "bf16" or a block format)."""
    if format == "f32":
        return weight_OI.float()
    if format == "bf16":
        return weight_OI.to(torch.bfloat16).float()
    return quant.dequantise(quant.quantise(weight_OI.float(), format), format)


def with_byte_activations(x_TI: Tensor) -> Tensor:
    """Round activations as decode products with block formats do: 32 columns share a scale, largest magnitude 127."""
    padding = -x_TI.shape[-1] % ACTIVATION_BLOCK
    blocks = F.pad(x_TI.float(), (0, padding)).unflatten(-1, (-1, ACTIVATION_BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True)
    # One division, as the kernels do it: a number over a tensor would be a reciprocal and a product.
    inverse = torch.full_like(largest, 127.0) / largest
    inverse = torch.where(largest > SMALLEST_LARGEST, inverse, torch.zeros_like(largest))
    return ((blocks * inverse).round() * (largest / 127.0)).flatten(-2)[..., : x_TI.shape[-1]]


def linear(x_TI: Tensor, weight_OI: Tensor, format: str, *, prefill: bool) -> Tensor:
    """Multiply activations with a weight stored in `format`, in float32.

    Args:
        x_TI: activations.
        weight_OI: the numbers before they are stored.
        format: of the weight.
        prefill: prompt rows meet the widened weights with activations as they are.

    Returns:
        float32, (T, O).
    """
    x_TI = x_TI.float()
    if format in BYTE_FORMATS and not prefill:
        x_TI = with_byte_activations(x_TI)
    return x_TI @ stored(weight_OI, format).T
