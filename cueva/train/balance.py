"""Keeping the experts' loads even: the bias that moves against the load, and the sequence-wise loss beside it.

The bias is not learned. After each optimizer step every gate's bias moves by a fixed amount against the load counted
over the whole step: down where an expert had more than the mean, up where it had less. Counts come out of the forward
pass (`Routing.load_E`) and are added up by the caller, so recomputation, evaluation and padding cannot disturb them.

Source: DeepSeek-V3 report (arXiv:2412.19437), section 2.1.2; Wang et al. (arXiv:2408.15664).
"""

from typing import Literal

import torch
from torch import Tensor

from cueva.errors import ShapeError
from cueva.kernels.route import Routing
from cueva.model import CausalLM


@torch.no_grad()
def bias_step(bias_E: Tensor, load_E: Tensor, speed: float, rule: Literal["sign", "proportional"] = "sign") -> None:
    """Move one gate's bias, in place.

    Args:
        bias_E: float32, in score units. In bfloat16 steps of 0.001 would vanish against a bias of 5.
        load_E: int64 counts of a whole step. Their mean is never formed: sign(sum - E * load) is exact.
        speed: gamma.
        rule: `sign`, the report's; `proportional` moves by the error relative to the mean (arXiv:2408.15664, section
            4.3).
    """
    assert bias_E.dtype == torch.float32, f"a balance bias in {bias_E.dtype} loses its steps"
    assert load_E.dtype == torch.int64, f"loads counted in {load_E.dtype} lose their units"
    error_E = load_E.sum() - load_E * load_E.numel()
    if rule == "sign":
        bias_E.add_(error_E.sign().to(torch.float32), alpha=speed)
    else:
        bias_E.add_((error_E.double() / load_E.sum().clamp_min(1)).to(torch.float32), alpha=speed)


def apply_balance(
    model: CausalLM, load_GE: Tensor, speed: float, rule: Literal["sign", "proportional"] = "sign"
) -> None:
    """Move the bias of every gate of the model, MTP modules included; once per optimizer step, not when it was skipped.

    Args:
        model: whose gates; families without a bias have nothing to move.
        load_GE: int64, one row per gate in the order of `model.gates()`.
        speed: gamma of this step.
        rule: see `bias_step`.

    Raises:
        ShapeError: there is not one row for each gate.
    """
    gates = model.gates()
    if len(gates) != load_GE.shape[0]:
        raise ShapeError(f"loads of {load_GE.shape[0]} gates were counted, but the model has {len(gates)}")
    if not model.config.has_router_bias:
        return
    moved = 0
    for (_, gate), load_E in zip(gates, load_GE, strict=True):
        if gate.e_score_correction_bias is not None:
            bias_step(gate.e_score_correction_bias, load_E.to(gate.e_score_correction_bias.device), speed, rule)
            moved += 1
    assert moved == model.config.gate_count, f"{moved} biases moved, but the model has {model.config.gate_count} gates"


def max_violation(load_E: Tensor) -> float:
    """MaxVio (arXiv:2408.15664, eq. 4): how far the busiest expert is above the mean, as a share of the mean.

    0 is perfect, E/K - 1 the worst; no load at all is 0.
    """
    total = int(load_E.sum())
    return float(load_E.max()) * load_E.numel() / total - 1 if total else 0.0


def sequence_loss(routing: Routing, counted_BT: Tensor, choice: Literal["literal", "actual"] = "literal") -> Tensor:
    """Sum over sequences of `sum_e f_e P_e` for one gate (eqs. 17-20, without alpha).

    f_e is how much of the sequence expert e would get, E times; P_e the mean of its share of each token's scores.
    Perfect balance is exactly 1 per sequence, the worst E/K. Eq. 18 as printed ranks the plain scores, without bias or
    groups; we follow it. A sequence is a row, documents packed into it together. Only P has a gradient.

    Args:
        routing: of B * T tokens.
        counted_BT: bool, the positions that are no padding; a row without any adds nothing.
        choice: `literal`: the K best plain scores; `actual`: the experts that were chosen, with bias and groups.
    """
    rows, length = counted_BT.shape
    score_BTE = routing.score_TE.unflatten(0, (rows, length))
    experts, chosen = score_BTE.shape[-1], routing.expert_TK.shape[-1]
    counted_BT1 = counted_BT.unsqueeze(-1).float()
    tokens_B1 = counted_BT1.sum(1).clamp_min(1)

    # 1. f: who would be chosen, how often (eq. 18).
    if choice == "literal":
        expert_BTK = score_BTE.detach().topk(chosen, dim=-1).indices
    else:
        expert_BTK = routing.expert_TK.unflatten(0, (rows, length))
    taken_BTE = torch.zeros_like(score_BTE, requires_grad=False).scatter_(-1, expert_BTK, 1.0)
    f_BE = (taken_BTE * counted_BT1).sum(1) * (experts / chosen) / tokens_B1

    # 2. P: how much of each token's scores (eqs. 19, 20).
    share_BTE = score_BTE / score_BTE.sum(-1, keepdim=True)
    p_BE = (share_BTE * counted_BT1).sum(1) / tokens_B1
    return (f_BE * p_BE).sum()
