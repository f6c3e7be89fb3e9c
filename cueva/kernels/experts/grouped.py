"""Routed experts by grouped matrix products.

Sort the tokens by expert, multiply group by group, put the answers back.
"""

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
    ends_E = torch.bincount(flat_N, minlength=gate_up_EGD.shape[0]).cumsum(0).to(torch.int32)
    x_ND = x_TD[order_N // chosen]

    # 2. Every group through its expert. The offsets end exactly at N: rows behind the last group would stay unwritten.
    gate_NF, up_NF = F.grouped_mm(x_ND, gate_up_EGD.transpose(-2, -1), offs=ends_E).chunk(2, dim=-1)
    answer_ND = F.grouped_mm(F.silu(gate_NF) * up_NF, down_EDF.transpose(-2, -1), offs=ends_E)

    # 3. Back to the order of the tokens, and add up.
    place_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))
    return combine(answer_ND[place_N].unflatten(0, (tokens, chosen)), weight_TK)
