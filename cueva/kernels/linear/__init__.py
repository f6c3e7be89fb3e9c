"""Products with stored weights: `PackedMatrix` keeps matrices in tiles and multiplies them natively.

The definition is `reference.py`; how tiles lie in memory says `tiles.hpp`, the order of summation `matvec.hpp`.
"""

from cueva.kernels.linear.packed import FORMATS, PackedMatrix
from cueva.kernels.linear.reference import linear, stored, with_byte_activations

__all__ = ["FORMATS", "PackedMatrix", "linear", "stored", "with_byte_activations"]
