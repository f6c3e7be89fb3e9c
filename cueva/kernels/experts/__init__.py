"""The routed experts of one layer: the door.

Three backends compute the same function:

* `loop`: one expert after another, the definition;
* `grouped`: tokens sorted by expert and three grouped matrix products (`torch.nn.functional.grouped_mm`);
* `tiles`: as `loop`, each expert's tokens padded to a fixed number of rows, so that a token's bits do not depend on
  how many others chose the same expert. Decoding and verification use it.
"""

import functools
from typing import Literal

import torch
from torch import Tensor

from cueva.errors import CuevaError, ShapeError
from cueva.kernels.experts.grouped import experts_grouped, grouped_fits
from cueva.kernels.experts.reference import experts_loop, experts_tiles

Backend = Literal["loop", "grouped", "tiles"]


@functools.cache
def backends() -> tuple[Backend, ...]:
    """The backends present, the default first."""
    return ("grouped", "loop", "tiles") if hasattr(torch.nn.functional, "grouped_mm") else ("loop", "tiles")


def experts(
    x_TD: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
    gate_up_EGD: Tensor,
    down_EDF: Tensor,
    *,
    active_T: Tensor | None = None,
    tile: int | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Send each token to its experts and add up their weighted answers.

    Args:
        x_TD: the tokens.
        expert_TK: int64, the experts of each token; any expert may get all tokens or none.
        weight_TK: float32, how much each answer counts (after `down_proj`).
        gate_up_EGD: `gate_proj` rows, then `up_proj` rows, of every expert (G = 2F).
        down_EDF: `down_proj` of every expert.
        active_T: bool; tokens that are not active reach no expert and get zeros (None: all are).
        tile: rows of one product in the `tiles` backend; giving it chooses that backend.
        backend: by name; None takes the fastest that fits the shapes.

    Returns:
        (T, D) in the dtype of `x_TD`; the K answers are added in float32, in the order of the slots.

    Raises:
        ShapeError: shapes that do not fit together.
        CuevaError: a backend asked for by name is absent or does not take these shapes.

    Source: DeepSeek-V3 report (arXiv:2412.19437), eq. 12, without dropping tokens (section 2.1.2).
    """
    count, width = gate_up_EGD.shape[0], gate_up_EGD.shape[2]
    if x_TD.shape[-1] != width or tuple(down_EDF.shape) != (count, width, gate_up_EGD.shape[1] // 2):
        raise ShapeError(
            f"tokens of width {x_TD.shape[-1]} do not fit experts of shapes {tuple(gate_up_EGD.shape)} and "
            f"{tuple(down_EDF.shape)}"
        )
    if expert_TK.shape != weight_TK.shape or expert_TK.shape[0] != x_TD.shape[0]:
        raise ShapeError(
            f"{x_TD.shape[0]} tokens need as many rows of choices and weights; got {tuple(expert_TK.shape)} and "
            f"{tuple(weight_TK.shape)}"
        )
    if active_T is not None:
        out_TD = torch.zeros_like(x_TD)
        out_TD[active_T] = experts(
            x_TD[active_T], expert_TK[active_T], weight_TK[active_T], gate_up_EGD, down_EDF, tile=tile, backend=backend
        )
        return out_TD
    fits = grouped_fits(x_TD, gate_up_EGD, down_EDF)
    if backend is None:
        backend = "tiles" if tile is not None else "grouped" if fits else "loop"
    if backend == "tiles":
        return experts_tiles(x_TD, expert_TK, weight_TK, gate_up_EGD, down_EDF, tile=tile or 8)
    if backend == "loop":
        return experts_loop(x_TD, expert_TK, weight_TK, gate_up_EGD, down_EDF)
    if not fits:
        raise CuevaError(
            "the grouped backend needs torch's grouped_mm and rows that are whole multiples of 16 bytes; "
            f"got widths {width} and {down_EDF.shape[2]} in {x_TD.dtype}",
            way_out="try backend='loop'",
        )
    return experts_grouped(x_TD, expert_TK, weight_TK, gate_up_EGD, down_EDF)


__all__ = ["Backend", "backends", "experts", "experts_grouped", "experts_loop", "experts_tiles", "grouped_fits"]
