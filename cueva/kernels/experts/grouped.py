"""Routed experts by grouped matrix products.

Sort the tokens by expert, multiply group by group, put the answers back.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cueva.kernels.experts.reference import combine


def grouped_fits(x_TD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor) -> bool:
    """Whether `grouped_mm` takes these tensors: it wants every row to be a whole multiple of 16 bytes."""
    if not hasattr(F, "grouped_mm") or x_TD.device.type == "meta":
        return False
    size = x_TD.element_size()
    return all(width * size % 16 == 0 for width in (gate_up_EGD.shape[1], gate_up_EGD.shape[2], down_EDF.shape[2]))


def experts_grouped(
    x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Compute what `experts_loop` defines with two grouped products and no scatter-add."""
    tokens, chosen = expert_TK.shape
    flat_N = expert_TK.flatten()

    # 1. Sort the (token, slot) pairs by expert; stable, so that equal inputs give equal bits. N = T K pairs.
    order_N = flat_N.argsort(stable=True)
    place_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))
    ends_E = torch.bincount(flat_N, minlength=gate_up_EGD.shape[0]).cumsum(0).to(torch.int32)
    x_ND = _Spread.apply(x_TD, order_N, place_N, chosen)

    # 2. Every group through its expert. The offsets end exactly at N: rows behind the last group would stay unwritten.
    gate_NF, up_NF = F.grouped_mm(x_ND, gate_up_EGD.transpose(-2, -1), offs=ends_E).chunk(2, dim=-1)
    answer_ND = F.grouped_mm(F.silu(gate_NF) * up_NF, down_EDF.transpose(-2, -1), offs=ends_E)

    # 3. Back to the order of the tokens, and add up.
    answer_ND = _Permute.apply(answer_ND, place_N, order_N)
    return combine(answer_ND.unflatten(0, (tokens, chosen)), weight_TK)


class _Permute(torch.autograd.Function):
    """Reorder rows. Knowing the inverse, the gradient is a gather too, where indexing would scatter and add."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_N: Tensor, inverse_N: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_N)
        return x_ND[order_N]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse_N,) = ctx.saved_tensors
        return grads[0][inverse_N], None, None


class _Spread(torch.autograd.Function):
    """Copy each token to its K places. The gradient gathers the K rows and adds them slot by slot."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_N: Tensor, place_N: Tensor, chosen: int) -> Tensor:
        ctx.save_for_backward(place_N)
        ctx.chosen = chosen
        return x_TD[order_N // chosen]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (place_N,) = ctx.saved_tensors
        return grads[0][place_N].unflatten(0, (-1, ctx.chosen)).sum(1), None, None, None
