"""The router: scores, choice and weights, in the order of the report. Float32 throughout.

Letters beside the project's: G groups, M groups kept, V experts of one group.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cueva.errors import ShapeError

NORM_FLOOR = 1e-20
"""Added to a token's sum of scores before dividing, as the published code does: it guards 0/0 when every chosen sigmoid
underflows and changes no float32 sum above 2e-13."""


class Routing(NamedTuple):
    """Where one gate sent its tokens."""

    expert_TK: Tensor
    """int64: the chosen experts, no repeats in a row, best first, ties to the lower id."""
    weight_TK: Tensor
    """float32: how much each answer counts."""
    score_TE: Tensor
    """float32: every expert's score, without the balance bias."""
    load_E: Tensor
    """int64: how many counted (token, slot) pairs went to each expert."""


def route(
    logit_TE: Tensor,
    bias_E: Tensor | None,
    *,
    chosen: int,
    groups: int = 1,
    groups_kept: int = 1,
    group_score: Literal["top2", "max"] = "top2",
    scoring: Literal["sigmoid", "softmax"] = "sigmoid",
    normalise: bool = True,
    scale: float = 1.0,
    counted_T: Tensor | None = None,
) -> Routing:
    """Pick `chosen` experts for each token and weigh their answers.

    The bias decides who is picked and never how much a picked expert counts, so the load can be balanced without
    touching the gradient. Groups that are not kept are minus infinity: with zero, as some published code has it, a
    masked expert would win over a kept one whose choice is negative.

    Args:
        logit_TE: float32 product of activations and centroids.
        bias_E: float32, in score units, or None where the family has none.
        chosen: experts per token (K).
        groups: equal groups of consecutive experts (G).
        groups_kept: groups a token may reach (M).
        group_score: a group counts by the sum of its two best choices, or by its best.
        scoring: how a logit becomes a score.
        normalise: divide a token's K weights by their sum.
        scale: multiplies the weights last; with `normalise`, what a token's weights add up to.
        counted_T: bool, the positions that count towards the load (None: all). Padding must not.

    Raises:
        ShapeError: the bias does not have one entry per expert, or the experts do not split into the groups.

    Source: DeepSeek-V3 report (arXiv:2412.19437), eqs. 12-16 and section 2.1.2 (node-limited routing); the group
        score is two
    experts whatever K and M are, as in all published code (the report says K/M).
    """
    experts = logit_TE.shape[-1]
    if bias_E is not None and bias_E.numel() != experts:
        raise ShapeError(f"bias_E has {bias_E.numel()} entries, but the router scores {experts} experts")
    if experts % groups:
        raise ShapeError(f"{experts} experts cannot be split into {groups} equal groups")

    # 1. Scores (eq. 15).
    score_TE = logit_TE.sigmoid() if scoring == "sigmoid" else logit_TE.softmax(-1)

    # 2. The choice, and only the choice, sees the bias (eq. 16). No gradient passes through a choice.
    choice_TE = score_TE.detach()
    if bias_E is not None:
        choice_TE = choice_TE + bias_E

    # 3. Keep the best groups.
    if groups > 1:
        choice_TGV = choice_TE.unflatten(-1, (groups, -1))
        group_TG = choice_TGV.topk(2, dim=-1).values.sum(-1) if group_score == "top2" else choice_TGV.amax(-1)
        kept_TM = best(group_TG, groups_kept)
        dropped_TG = torch.ones_like(group_TG, dtype=torch.bool).scatter_(-1, kept_TM, False)
        choice_TE = choice_TGV.masked_fill(dropped_TG[..., None], -torch.inf).flatten(-2)

    # 4. The best experts, weighed by their scores (eqs. 13, 14).
    expert_TK = best(choice_TE, chosen)
    weight_TK = score_TE.gather(-1, expert_TK)
    if normalise:
        weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + NORM_FLOOR)
    weight_TK = weight_TK * scale

    # Returned, never accumulated in a module: recomputation may replay this, and the caller counts each token once
    # per step.
    counted_TK = expert_TK if counted_T is None else expert_TK[counted_T]
    load_E = torch.bincount(counted_TK.flatten(), minlength=experts)
    return Routing(expert_TK, weight_TK, score_TE, load_E)


def best(value_TE: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` largest entries of a row, best first, ties to the lower (unlike `topk`)."""
    return value_TE.sort(dim=-1, descending=True, stable=True).indices[..., :count]
