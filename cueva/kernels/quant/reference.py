"""Blocks from floats and floats from blocks, in plain PyTorch: the definition `native.hpp` is held to, byte for byte.

Letters of this folder: Z blocks, Y bytes, W values of a sub-block, G sub-blocks (of many blocks, side by side). The
arithmetic is float32 in a fixed order, so that another implementation that keeps the order gets the same bytes. Q8_0
and Q4_0 are whole here; for Q4_K and Q6_K this file packs and unpacks what `search` chose.
"""

import torch
from torch import Tensor

from cueva.kernels.quant.formats import BlockFormat
from cueva.kernels.quant.search import search_q4_k, search_q6_k

BLOCKS_AT_ONCE = 1024
"""Blocks of 256 values taken in one go by the search: a megabyte, so that its many passes stay in the caches."""


def quantise(rows_OK: Tensor, block: BlockFormat) -> Tensor:
    """Store checked rows as blocks; see the door."""
    count = rows_OK.numel() // block.values
    raw_ZY = torch.empty(count, block.bytes, dtype=torch.uint8, device=rows_OK.device)
    x_ZK = rows_OK.reshape(count, block.values)
    step = BLOCKS_AT_ONCE * 256 // block.values
    for start in range(0, count, step):
        raw_ZY[start : start + step] = _QUANTISE[block.name](x_ZK[start : start + step].float())
    return raw_ZY.view(*rows_OK.shape[:-1], block.row_bytes(rows_OK.shape[-1]))


def dequantise(raw_OY: Tensor, block: BlockFormat) -> Tensor:
    """Expand checked blocks; see the door."""
    raw_ZY = raw_OY.reshape(-1, block.bytes)
    return _DEQUANTISE[block.name](raw_ZY).view(*raw_OY.shape[:-1], block.row_values(raw_OY.shape[-1]))


# --- scales in float16 ------------------------------------------------------------------------------------------------


def _half_bytes(d_Z1: Tensor) -> Tensor:
    """(Z, 1) float32 to (Z, 2) bytes, rounded to the nearest even float16."""
    return d_Z1.to(torch.float16).view(torch.uint8)


def _half(raw_Z2: Tensor) -> Tensor:
    """(Z, 2) bytes to (Z, 1) float32."""
    return raw_Z2.contiguous().view(torch.float16).float()


def _inverse(d_Z1: Tensor) -> Tensor:
    """1 / d, and 0 where that is infinite: such a scale is zero as a float16 anyway."""
    inverse_Z1 = 1 / d_Z1
    return torch.where(inverse_Z1.isinf(), 0.0, inverse_Z1)


# --- Q8_0 and Q4_0 ----------------------------------------------------------------------------------------------------


def _quantise_q8_0(x_ZK: Tensor) -> Tensor:
    d_Z1 = x_ZK.abs().amax(-1, keepdim=True) / 127
    scaled_ZK = x_ZK * _inverse(d_Z1)
    # Halves go away from zero, as C's roundf has it; torch.round would send them to the even neighbour.
    size_ZK, whole_ZK = scaled_ZK.abs(), scaled_ZK.abs().floor()
    q_ZK = torch.copysign(whole_ZK + (size_ZK - whole_ZK >= 0.5), scaled_ZK)
    return torch.cat([_half_bytes(d_Z1), q_ZK.to(torch.int8).view(torch.uint8)], dim=-1)


def _dequantise_q8_0(raw_ZY: Tensor) -> Tensor:
    return raw_ZY[:, 2:].contiguous().view(torch.int8).float() * _half(raw_ZY[:, :2])


def _quantise_q4_0(x_ZK: Tensor) -> Tensor:
    # The value of largest magnitude, sign and all, becomes -8: the scale is negative where that value is positive.
    extreme_Z1 = x_ZK.gather(-1, x_ZK.abs().argmax(-1, keepdim=True))
    d_Z1 = extreme_Z1 / -8
    q_ZK = (x_ZK * _inverse(d_Z1) + 8.5).trunc().clamp(0, 15).to(torch.uint8)
    return torch.cat([_half_bytes(d_Z1), q_ZK[:, :16] | q_ZK[:, 16:] << 4], dim=-1)


def _dequantise_q4_0(raw_ZY: Tensor) -> Tensor:
    q_ZK = torch.cat([raw_ZY[:, 2:] & 15, raw_ZY[:, 2:] >> 4], dim=-1)
    return (q_ZK.float() - 8) * _half(raw_ZY[:, :2])


# --- Q4_K -------------------------------------------------------------------------------------------------------------
# Eight sub-blocks of 32. Bytes: d, m, the twelve bytes of scales and minima, then q: each run of 32 bytes holds one
# sub-block in its low halves and the next in its high halves.


def _quantise_q4_k(x_ZK: Tensor) -> Tensor:
    found = search_q4_k(x_ZK)
    scale_Z8, minimum_Z8, q_Z8W = found.scale_Z8, found.minimum_Z8, found.q_Z8W
    # The first four of each have six bits of a byte; the last four lie in a byte together, four bits each, and their
    # top pairs of bits sit above the first four.
    packed_Z12 = torch.cat(
        [
            scale_Z8[:, :4] | scale_Z8[:, 4:] >> 4 << 6,
            minimum_Z8[:, :4] | minimum_Z8[:, 4:] >> 4 << 6,
            scale_Z8[:, 4:] & 15 | (minimum_Z8[:, 4:] & 15) << 4,
        ],
        dim=-1,
    )
    pairs_Z128 = (q_Z8W[:, 0::2] | q_Z8W[:, 1::2] << 4).flatten(1)
    return torch.cat([_half_bytes(found.d_Z1), _half_bytes(found.m_Z1), packed_Z12, pairs_Z128], dim=-1)


def _dequantise_q4_k(raw_ZY: Tensor) -> Tensor:
    low_Z4, high_Z4, both_Z4 = raw_ZY[:, 4:8], raw_ZY[:, 8:12], raw_ZY[:, 12:16]
    scale_Z8 = torch.cat([low_Z4 & 63, both_Z4 & 15 | low_Z4 >> 6 << 4], dim=-1)
    minimum_Z8 = torch.cat([high_Z4 & 63, both_Z4 >> 4 | high_Z4 >> 6 << 4], dim=-1)
    pairs_Z4W = raw_ZY[:, 16:].unflatten(-1, (4, 32))
    q_Z8W = torch.stack([pairs_Z4W & 15, pairs_Z4W >> 4], dim=2).flatten(1, 2)
    scale_Z81 = (_half(raw_ZY[:, :2]) * scale_Z8.float())[..., None]
    minimum_Z81 = (_half(raw_ZY[:, 2:4]) * minimum_Z8.float())[..., None]
    return (scale_Z81 * q_Z8W.float() - minimum_Z81).flatten(1)


# --- Q6_K -------------------------------------------------------------------------------------------------------------
# Sixteen sub-blocks of 16, in two halves of 128 values. In a half, 64 bytes hold the low four bits (value k and value
# k + 64 share a byte) and 32 bytes the high two (values k, k + 32, k + 64, k + 96 share one). Then scales, then d.


def _quantise_q6_k(x_ZK: Tensor) -> Tensor:
    found = search_q6_k(x_ZK)
    q_Z256 = found.q_Z16W.flatten(1)
    low_Z22F = (q_Z256 & 15).unflatten(-1, (2, 2, 64))
    high_Z24H = (q_Z256 >> 4).unflatten(-1, (2, 4, 32))
    low_Z128 = (low_Z22F[:, :, 0] | low_Z22F[:, :, 1] << 4).flatten(1)
    high_Z64 = (
        high_Z24H[:, :, 0] | high_Z24H[:, :, 1] << 2 | high_Z24H[:, :, 2] << 4 | high_Z24H[:, :, 3] << 6
    ).flatten(1)
    return torch.cat([low_Z128, high_Z64, found.scale_Z16.view(torch.uint8), _half_bytes(found.d_Z1)], dim=-1)


def _dequantise_q6_k(raw_ZY: Tensor) -> Tensor:
    low_Z2F, high_Z2H = raw_ZY[:, :128].unflatten(-1, (2, 64)), raw_ZY[:, 128:192].unflatten(-1, (2, 32))
    low_Z256 = torch.stack([low_Z2F & 15, low_Z2F >> 4], dim=2).flatten(1)
    high_Z256 = torch.stack([high_Z2H >> shift & 3 for shift in (0, 2, 4, 6)], dim=2).flatten(1)
    q_Z16W = ((low_Z256 | high_Z256 << 4).float() - 32).unflatten(-1, (16, 16))
    scale_Z16 = _half(raw_ZY[:, 208:]) * raw_ZY[:, 192:208].contiguous().view(torch.int8).float()
    return (scale_Z16[..., None] * q_Z16W).flatten(1)


_QUANTISE = {
    "q8_0": _quantise_q8_0,
    "q4_0": _quantise_q4_0,
    "q4_k": _quantise_q4_k,
    "q6_k": _quantise_q6_k,
}
_DEQUANTISE = {
    "q8_0": _dequantise_q8_0,
    "q4_0": _dequantise_q4_0,
    "q4_k": _dequantise_q4_k,
    "q6_k": _dequantise_q6_k,
}
