"""Routed experts, plainly: the definition, and the same with groups padded to a fixed number of rows."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def swiglu(x_TD: Tensor, gate_up_GD: Tensor, down_DF: Tensor) -> Tensor:
    """One feed-forward: `down(silu(gate x) * up x)`."""
    gate_TF, up_TF = F.linear(x_TD, gate_up_GD).chunk(2, dim=-1)
    return F.linear(F.silu(gate_TF) * up_TF, down_DF)


def combine(answer_TKD: Tensor, weight_TK: Tensor) -> Tensor:
    """Add up a token's weighted answers in float32, slot by slot: an order that no neighbour changes."""
    total_TD = answer_TKD[:, 0].float() * weight_TK[:, 0, None]
    for slot in range(1, weight_TK.shape[1]):
        total_TD = total_TD + answer_TKD[:, slot].float() * weight_TK[:, slot, None]
    return total_TD.to(answer_TKD.dtype)


def experts_loop(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor) -> Tensor:
    """Every expert in turn answers the tokens that chose it. An expert nobody chose gets a gradient of exactly zero."""
    answer_TKD = x_TD.new_zeros(*expert_TK.shape, x_TD.shape[-1])
    for expert in range(gate_up_EGD.shape[0]):
        token, slot = torch.where(expert_TK == expert)
        answer_TKD[token, slot] = swiglu(x_TD[token], gate_up_EGD[expert], down_EDF[expert]).to(answer_TKD.dtype)
    return combine(answer_TKD, weight_TK)


def experts_tiles(
    x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, *, tile: int
) -> Tensor:
    """As `experts_loop`, but every product has exactly `tile` rows, the unused ones zero.

    A matrix library picks its order of summation by shape. With the shape fixed, a token's answer has the same bits
    alone, in a crowd, and in any row.
    """
    answer_TKD = x_TD.new_zeros(*expert_TK.shape, x_TD.shape[-1])
    for expert in expert_TK.unique().tolist():
        token, slot = torch.where(expert_TK == expert)
        for some_token, some_slot in zip(token.split(tile), slot.split(tile), strict=True):
            rows = len(some_token)
            padded_TD = x_TD.new_zeros(tile, x_TD.shape[-1])
            padded_TD[:rows] = x_TD[some_token]
            answer_TKD[some_token, some_slot] = swiglu(padded_TD, gate_up_EGD[expert], down_EDF[expert])[:rows]
    return combine(answer_TKD, weight_TK)
