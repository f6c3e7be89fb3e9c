"""Latent attention's two inner loops: the door.

`attend_expanded` works on keys and values raised from the latent (training, long prefill); `attend_absorbed` works on
the cached rows themselves (decode, verification). `absorbed_is_cheaper` says which costs less arithmetic.
"""

from cueva.kernels.attend.reference import absorbed_is_cheaper, attend_absorbed, attend_expanded, document_mask

BACKENDS = ("torch",)

__all__ = ["BACKENDS", "absorbed_is_cheaper", "attend_absorbed", "attend_expanded", "document_mask"]
