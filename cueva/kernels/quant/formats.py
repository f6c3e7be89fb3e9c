"""The four block formats of GGUF that weights are stored in here: sizes and limits, no arithmetic.

A row of K values is cut into blocks; a block holds its values as small whole numbers and what turns them back into
floats. Little-endian throughout; `half` is an IEEE float16.

    q8_0    32 values,  34 bytes   half d; 32 int8 q                                        x = d q
    q4_0    32 values,  18 bytes   half d; 16 bytes of q, values 0-15 low, 16-31 high       x = d (q - 8)
    q4_k   256 values, 144 bytes   half d; half m; 12 bytes of 8 scales and 8 minima, 6 bits each; 128 bytes of q
                                   sub-block of 32:                                         x = d scale q - m minimum
    q6_k   256 values, 210 bytes   128 bytes of low halves of q, 64 bytes of high pairs; 16 int8 scales; half d
                                   sub-block of 16:                                         x = d scale (q - 32)

Source: the reader of the `gguf` package (`gguf.quants`), which the tests hold every byte against.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cueva.errors import CuevaError, ShapeError, nearest

HALF_MAX: Final = 65504.0
"""The largest finite float16; no scale of a block can be larger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFormat:
    """How a run of consecutive values of a row is stored."""

    name: str
    values: int
    """Values in a block; K must be a multiple."""
    bytes: int
    """Bytes of a block."""
    gguf_type: int
    """The number by which a GGUF file names the format (`gguf.GGMLQuantizationType`)."""
    largest: float
    """The largest magnitude whose scale still fits a float16; larger values are refused."""

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per value, scales included."""
        return 8 * self.bytes / self.values

    def row_bytes(self, width: int) -> int:
        """Return the bytes of a row of `width` values (Y of K).

        Raises:
            ShapeError: `width` is not a whole number of blocks.
        """
        if width % self.values or width < 1:
            below = width // self.values * self.values
            near = f"{below} or {below + self.values}" if below else f"{self.values}"
            raise ShapeError(
                f"rows of {width} values do not fit {self.name}, whose blocks hold {self.values}: {near} would fit",
                way_out="try q8_0, whose blocks hold 32" if self.values > 32 and width % 32 == 0 and width else
                "try bf16 or f16 for this tensor, which take any width",
            )  # fmt: skip
        return width // self.values * self.bytes

    def row_values(self, stored: int) -> int:
        """Return the values in a row of `stored` bytes (K of Y).

        Raises:
            ShapeError: `stored` is not a whole number of blocks.
        """
        if stored % self.bytes or stored < 1:
            raise ShapeError(
                f"rows of {stored} bytes are not whole blocks of {self.name}, which are {self.bytes} bytes"
            )
        return stored // self.bytes * self.values


BLOCK_FORMATS: Final[Mapping[str, BlockFormat]] = MappingProxyType(
    {
        "q8_0": BlockFormat(name="q8_0", values=32, bytes=34, gguf_type=8, largest=127 * HALF_MAX),
        "q4_0": BlockFormat(name="q4_0", values=32, bytes=18, gguf_type=2, largest=8 * HALF_MAX),
        # The minimum is the tighter of the two limits: 6 bits times a half.
        "q4_k": BlockFormat(name="q4_k", values=256, bytes=144, gguf_type=12, largest=63 * HALF_MAX),
        # 27 is the smallest divisor the search tries (`search.LEVELS_Q6_K`).
        "q6_k": BlockFormat(name="q6_k", values=256, bytes=210, gguf_type=14, largest=27 * 127 * HALF_MAX),
    }
)


def block_format(name: str) -> BlockFormat:
    """Take a format by its name.

    Raises:
        CuevaError: there is no such format; the message lists those that exist.
    """
    if name not in BLOCK_FORMATS:
        known = ", ".join(BLOCK_FORMATS)
        raise CuevaError(f"there is no block format {name!r}{nearest(name, BLOCK_FORMATS)}; the formats are: {known}")
    return BLOCK_FORMATS[name]


def stored_format(asked: str, columns: int, *, end: bool = False, plain: str = "bf16") -> str:
    """The format that a matrix is stored in when a whole model is asked for in one format.

    Args:
        asked: for the model: a key of `BLOCK_FORMATS`, or any other name, which is kept.
        columns: inputs of the matrix.
        end: embedding or head, whose errors reach every logit: Q6_K in a Q4_K model, as is usual.
        plain: the format of matrices whose columns are no whole blocks of any kind.
    """
    wanted = "q6_k" if end and asked == "q4_k" else asked
    for name in (wanted, "q8_0"):
        if name not in BLOCK_FORMATS or columns % BLOCK_FORMATS[name].values == 0:
            return name
    return plain
