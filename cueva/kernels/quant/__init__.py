"""Weights in the block formats of GGUF: the door.

`quantise` turns rows into blocks and `dequantise` turns blocks into float32, byte for byte as the `gguf` package reads
and (for Q8_0 and Q4_0) writes them. `native.hpp` holds the same functions in C++, equal to the byte.
"""

import torch
from torch import Tensor

from cueva.errors import CuevaError, ShapeError
from cueva.kernels import native
from cueva.kernels.quant import reference
from cueva.kernels.quant.formats import BLOCK_FORMATS, BlockFormat, block_format, stored_format

BACKENDS = ("torch",)
NUMBERS = {"q8_0": 3, "q4_0": 4, "q4_k": 5, "q6_k": 6}
"""The formats as the extension numbers them (`Format` in kernels/native/plan.hpp)."""


def check_rows(rows_OK: Tensor, block: BlockFormat) -> None:
    """Refuse what a format cannot hold.

    Raises:
        ShapeError: the rows are not whole blocks.
        CuevaError: a dtype that is not float32, bfloat16 or float16; NaN or infinity; a value beyond
            `block.largest`, for which the float16 scale would become infinite.
    """
    if rows_OK.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise CuevaError(f"weights to quantise must be float32, bfloat16 or float16, not {rows_OK.dtype}")
    if rows_OK.dim() < 1:
        raise ShapeError("weights to quantise are rows of values, but a single number was given")
    block.row_bytes(rows_OK.shape[-1])
    if not rows_OK.numel():
        return
    # aminmax propagates NaN and makes no copy.
    low, high = (float(end) for end in torch.aminmax(rows_OK))
    largest = max(-low, high)
    if not largest < float("inf"):
        odd = ~torch.isfinite(rows_OK)
        place = odd.nonzero()[0].tolist()
        raise CuevaError(
            f"{int(odd.sum())} of {rows_OK.numel()} weights are NaN or infinite (the first at {place}); "
            f"{block.name} can only hold numbers"
        )
    if largest > block.largest:
        raise CuevaError(
            f"a weight of magnitude {largest:g} is too large for {block.name}, whose float16 scale reaches "
            f"{block.largest:g}",
            way_out="try bf16 or f32 for this tensor",
        )


def quantise(rows_OK: Tensor, format: str, *, threads: int = 1) -> Tensor:
    """Store rows as blocks.

    Q8_0 and Q4_0 give the bytes that `gguf.quants.quantize` gives. Q4_K and Q6_K choose scales (and minima) by a
    least-squares search, never with a larger squared error in any block than rounding between its extremes.

    Args:
        rows_OK: float32, bfloat16 or float16; K a multiple of the format's values. Leading dimensions beside O are
            kept. Values too small for a float16 scale become zero.
        format: a key of `BLOCK_FORMATS`.
        threads: of the native kernel, which does the work where it was built; the bytes are the same.

    Returns:
        uint8, (O, Y) with Y = K // values * bytes.

    Raises:
        ShapeError: K is not a whole number of blocks.
        CuevaError: unknown format, NaN, infinity, or a value whose scale overflows float16.

    >>> quantise(torch.linspace(-1, 1, 64).view(2, 32), "q4_0").shape
    torch.Size([2, 18])
    """
    block = block_format(format)
    check_rows(rows_OK, block)
    module = native.extension()
    if module is None:
        return reference.quantise(rows_OK.detach(), block)
    rows_OK = rows_OK.detach().float().cpu().contiguous()
    width = rows_OK.shape[-1]
    raw_OY = torch.empty(*rows_OK.shape[:-1], block.row_bytes(width), dtype=torch.uint8)
    module.quantise(
        native.instruction_set(),
        NUMBERS[format],
        rows_OK.data_ptr(),
        rows_OK.numel() // width,
        width,
        raw_OY.data_ptr(),
        threads,
    )
    return raw_OY


def dequantise(raw_OY: Tensor, format: str) -> Tensor:
    """Expand blocks to float32, to the bit as `gguf.quants.dequantize` does.

    Args:
        raw_OY: uint8, whole blocks in the last dimension.
        format: a key of `BLOCK_FORMATS`.

    Returns:
        float32, (O, K) with K = Y // bytes * values.

    Raises:
        ShapeError: Y is not a whole number of blocks.
        CuevaError: unknown format, or a dtype that is not uint8.
    """
    block = block_format(format)
    if raw_OY.dtype != torch.uint8 or raw_OY.dim() < 1:
        raise CuevaError(f"stored blocks are uint8 rows, not {raw_OY.dtype} of shape {tuple(raw_OY.shape)}")
    block.row_values(raw_OY.shape[-1])
    return reference.dequantise(raw_OY, block)


__all__ = [
    "BACKENDS",
    "BLOCK_FORMATS",
    "BlockFormat",
    "block_format",
    "check_rows",
    "dequantise",
    "quantise",
    "stored_format",
]
