"""Weights in tiles for the native kernels: quantised, laid out and, where it pays, on huge pages."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from cueva.errors import CuevaError, RequestError, ShapeError, nearest
from cueva.kernels import native, quant

FORMATS: Final[Mapping[str, int]] = {
    "f32": 0,
    "bf16": 1,
    "fp8": 2,
    **quant.NUMBERS,
    "rows_f32": 7,
    "rows_bf16": 8,
}
"""Formats by name, as the extension numbers them (`Format` in kernels/native/plan.hpp)."""
SOURCES: Final = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Dtypes that weights may come in, as the extension numbers them."""
ROWS_AT_ONCE: Final = 4096
"""Rows quantised at once: bounds the float32 copy."""
FP8_BLOCK: Final = 128


class PackedMatrix:
    """Equal matrices stored in one block, ready to multiply.

    Attributes:
        native: the extension's object, for a plan.
        bytes: memory taken.
    """

    def __init__(
        self,
        format: str,
        rows: int,
        columns: int,
        *,
        count: int = 1,
        turns: int = 1,
        isa: str | None = None,
        threads: int,
    ):
        """Make room; `fill` brings the weights.

        Args:
            format: a key of `FORMATS` that is stored in tiles.
            rows: outputs of each part of a matrix.
            columns: inputs.
            count: how many matrices.
            turns: parts of each matrix whose tiles take turns: 2 for gate and up projection.
            isa: instruction set; None: the chosen one.
            threads: that pack and quantise.

        Raises:
            RequestError: no such format, or no native extension.
        """
        module = native.extension()
        if module is None:
            raise RequestError(f"packed weights need the native kernels: {native.missing()}")
        if format not in FORMATS or format.startswith("rows"):
            raise RequestError(f"there is no weight format {format!r}{nearest(format, list(FORMATS)[:7])}")
        self.format, self.rows, self.columns, self.count, self.turns = format, rows, columns, count, turns
        self.isa = isa or native.instruction_set() or ""
        self._threads = threads
        self._module = module
        self.native: Any = module.Matrices(self.isa, FORMATS[format], count, rows, columns, turns)

    @classmethod
    def mapped(cls, weight_OI: Tensor, *, isa: str | None = None) -> "PackedMatrix":
        """Take a float32 or bfloat16 matrix as it lies, row by row: nothing is copied, products are slower.

        Args:
            weight_OI: contiguous in its columns; kept alive.
            isa: instruction set; None: the chosen one.
        """
        if weight_OI.dtype not in (torch.float32, torch.bfloat16) or weight_OI.stride(1) != 1:
            raise ShapeError(f"only float32 and bfloat16 rows can be used as they lie, not {weight_OI.dtype}")
        module = native.extension()
        if module is None:
            raise RequestError(f"packed weights need the native kernels: {native.missing()}")
        packed = cls.__new__(cls)
        packed.format = "rows_f32" if weight_OI.dtype == torch.float32 else "rows_bf16"
        packed.rows, packed.columns = weight_OI.shape
        packed.count = packed.turns = 1
        packed.isa = isa or native.instruction_set() or ""
        packed._threads, packed._module = 1, module
        packed.native = module.Matrices(
            packed.isa,
            FORMATS[packed.format],
            packed.rows,
            packed.columns,
            weight_OI.data_ptr(),
            weight_OI.stride(0) * weight_OI.element_size(),
            weight_OI,
        )
        return packed

    @property
    def bytes(self) -> int:
        """Memory taken, padding included; nothing for mapped weights."""
        return self.native.bytes

    def fill(self, weight_OI: Tensor, index: int = 0, part: int = 0) -> None:
        """Store one matrix (or one of its parts).

        Args:
            weight_OI: float32, bfloat16 or float16, any strides.
            index: which matrix.
            part: which of the parts that take turns.

        Raises:
            ShapeError: of another shape.
            CuevaError: values that the format cannot hold.
        """
        self._check(weight_OI)
        if weight_OI.dtype not in SOURCES:
            raise CuevaError(f"weights are float32, bfloat16 or float16, not {weight_OI.dtype}")
        if self.format == "fp8":
            raise CuevaError("fp8 weights are codes with scales", way_out="try fill_fp8")
        if self.format in ("f32", "bf16"):
            self._pack(index, part, 0, weight_OI, SOURCES[weight_OI.dtype])
            return
        for first in range(0, self.rows, ROWS_AT_ONCE):
            rows_OI = weight_OI[first : first + ROWS_AT_ONCE].float().contiguous()
            self._pack(index, part, first, self._blocks(rows_OI), -1)

    def fill_blocks(self, raw_OY: Tensor, index: int = 0, part: int = 0) -> None:
        """Store one matrix from GGUF blocks as a file has them: uint8, (O, bytes of a row)."""
        expected = (self.rows, quant.block_format(self.format).row_bytes(self.columns))
        if tuple(raw_OY.shape) != expected or raw_OY.dtype != torch.uint8:
            raise ShapeError(f"blocks have shape {tuple(raw_OY.shape)}, but {expected} are expected")
        self._pack(index, part, 0, raw_OY.contiguous(), -1)

    def fill_fp8(
        self,
        code_OI: Tensor,
        scale_GJ: Tensor,
        index: int = 0,
        part: int = 0,
        *,
        scale_row: int = 0,
        scale_column: int = 0,
    ) -> None:
        """Store one matrix from E4M3 codes and their 128 x 128 scales, to the bit.

        Args:
            code_OI: float8_e4m3fn, any strides.
            scale_GJ: float32 scales of the whole tensor that the codes are a part of.
            index: which matrix.
            part: which of the parts that take turns.
            scale_row: where the part begins in that tensor.
            scale_column: a multiple of 128.

        Raises:
            ShapeError: of another shape, or NaN codes.
        """
        self._check(code_OI)
        rows = (scale_row + self.rows - 1) // FP8_BLOCK + 1
        columns = (scale_column + self.columns - 1) // FP8_BLOCK + 1
        if scale_column % FP8_BLOCK or scale_GJ.dim() != 2 or scale_GJ.shape[0] < rows or scale_GJ.shape[1] < columns:
            raise ShapeError(
                f"{tuple(scale_GJ.shape)} scales do not cover {self.rows} x {self.columns} codes from row {scale_row}, "
                f"column {scale_column} on: one is needed for each {FP8_BLOCK} x {FP8_BLOCK}"
            )
        # Stored times 2^8: what is finite has to stay so.
        if bool((scale_GJ.float().isfinite() & (scale_GJ.float().abs() >= 2.0**120)).any()):
            raise CuevaError("an FP8 scale of 2^120 or more cannot be used: with it the largest weights overflow")
        codes_OI = code_OI.view(torch.uint8)
        if bool(((codes_OI & 0x7F) == 0x7F).any()):
            raise ShapeError("the FP8 weights hold NaN, with which nothing can be computed")
        scale_GJ = scale_GJ.float().contiguous()
        self.native.pack(
            index,
            part,
            0,
            self.rows,
            -1,
            codes_OI.data_ptr(),
            codes_OI.stride(0),
            codes_OI.stride(1),
            scale_GJ.data_ptr(),
            scale_GJ.stride(0),
            scale_row,
            scale_column,
            self._threads,
        )

    def set_bias(self, bias_O: Tensor, index: int = 0) -> None:
        """Add a bias to every product of one matrix."""
        bias_O = bias_O.detach().float().contiguous()
        if bias_O.numel() != self.rows:
            raise ShapeError(f"a bias of {bias_O.numel()} values does not fit {self.rows} outputs")
        self.native.set_bias(index, bias_O.data_ptr())

    def unpack(self, index: int = 0) -> Tensor:
        """Return the numbers stored, float32 (O, I); tiles that take turns as they lie, sixteen rows each."""
        rows = self.rows if self.turns == 1 else -(-self.rows // 16) * 16 * self.turns
        out_OI = torch.empty(rows, self.columns)
        self.native.unpack(index, out_OI.data_ptr())
        return out_OI

    def unpack_rows(self, ids: Tensor) -> Tensor:
        """Return some rows of the first matrix, float32 (len(ids), I); `ids` is int64 and ascending."""
        ids = ids.to(torch.int64).contiguous()
        out_OI = torch.empty(len(ids), self.columns)
        self.native.unpack_rows(0, ids.data_ptr(), len(ids), out_OI.data_ptr())
        return out_OI

    def linear(self, x_TI: Tensor, index: int = 0, *, prefill: bool = False, threads: int = 1) -> Tensor:
        """Multiply: float32 (T, I) to (T, O), as a decode step does it or as a prompt does."""
        if x_TI.dim() != 2 or x_TI.shape[1] != self.columns:
            raise ShapeError(f"activations have shape {tuple(x_TI.shape)}, but (T, {self.columns}) is expected")
        x_TI = x_TI.float().contiguous()
        rows = self.rows if self.turns == 1 else -(-self.rows // 16) * 16 * self.turns
        out_TO = torch.empty(len(x_TI), rows)
        self.native.linear(index, x_TI.data_ptr(), len(x_TI), prefill, out_TO.data_ptr(), threads)
        return out_TO

    def _check(self, weight_OI: Tensor) -> None:
        if tuple(weight_OI.shape) != (self.rows, self.columns):
            raise ShapeError(
                f"a weight has shape {tuple(weight_OI.shape)}, but ({self.rows}, {self.columns}) is expected"
            )

    def _blocks(self, rows_OI: Tensor) -> Tensor:
        return quant.quantise(rows_OI, self.format, threads=self._threads)

    def _pack(self, index: int, part: int, first_row: int, source: Tensor, kind: int) -> None:
        size = source.element_size()
        self.native.pack(
            index,
            part,
            first_row,
            len(source),
            kind,
            source.data_ptr(),
            source.stride(0) * size,
            source.stride(1) * size,
            0,
            0,
            0,
            0,
            self._threads,
        )
