"""States in, loss out: cross-entropy of the main head and of every MTP depth, each over its own targets.

The whole loss of a step is the main loss plus `lambda / depths` times the sum of the depths' losses (eq. 25). Each is
a sum over valid targets divided by their number *in the whole step*, so it does not depend on how rows are split into
micro-batches. The report divides a depth by T rather than by its T - k terms; we divide by the terms.

A head is read a few hundred rows at a time. Softmax and cross-entropy are then cheap to differentiate by hand, in the
memory of the logits: softmax minus one-hot. So no more than one piece of the logits exists at a time, and none is
computed twice.

One letter beside the project's: U = T + 1, the ids of a row including its last target.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

IGNORE: Final = -100
"""A target that is none. Never a token id: token 0 is a word like any other."""
LOGITS_BYTES: Final = 16 * 2**20
"""Logits held at once: on a CPU they should stay in its caches."""
FEWEST_ROWS: Final = 256
"""Each piece adds to the head's gradient, a matrix as large as the head; fewer rows than this and that is what takes
the time."""


class Reading(NamedTuple):
    """What a head made of its states."""

    nats: Tensor
    """float64 scalar: the negative log-likelihood of all targets, added up."""
    choice_BT: Tensor
    """int64: the likeliest token."""
    gradient_BTD: Tensor | None
    """Of `weight * nats` by the states; None when no weight was given."""


def visible_documents(document_BU: Tensor, *, mask: bool) -> Tensor:
    """Say which document each id belongs to, for attention and targets; -1 is padding.

    Without the mask a row is one document.
    """
    return document_BU if mask else torch.where(document_BU < 0, -1, 0)


def targets(ids_BU: Tensor, document_BU: Tensor, depth: int) -> Tensor:
    """What row i of a depth should say: the token at i + depth + 1, if that lies in the same document.

    Args:
        ids_BU: rows of T + 1 ids.
        document_BU: from `visible_documents`.
        depth: 0 is the main head.

    Returns:
        int64, (B, T - depth), `IGNORE` where there is no target.
    """
    ahead = depth + 1
    here_BT, there_BT = document_BU[:, :-ahead], document_BU[:, ahead:]
    return torch.where((here_BT == there_BT) & (there_BT >= 0), ids_BU[:, ahead:], IGNORE)


def piece_rows(vocab_size: int, budget_bytes: int = LOGITS_BYTES) -> int:
    """How many rows of float32 logits fit the budget, but no fewer than `FEWEST_ROWS`."""
    return max(FEWEST_ROWS, budget_bytes // (4 * vocab_size))


def read_head(
    logits: Callable[[Tensor], Tensor],
    hidden_BTD: Tensor,
    target_BT: Tensor,
    *,
    rows: int,
    weight: float | None = None,
) -> Reading:
    """Compare a head's answers with the targets, and, given a weight, start the backward pass.

    Args:
        logits: states (N, D) to float32 logits (N, A); its parameters get their gradients here.
        hidden_BTD: states after a final norm. Their own gradient is returned, not passed on.
        target_BT: token ids or `IGNORE`.
        rows: of one piece; only memory and speed depend on it (`piece_rows`).
        weight: what the summed nats are multiplied with in the loss; None: no gradients.
    """
    shape = target_BT.shape
    hidden_ND, target_N = hidden_BTD.detach().flatten(0, 1), target_BT.flatten()
    nats = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
    choices: list[Tensor] = []
    gradients: list[Tensor] = []
    for start in range(0, len(target_N), rows):
        some = slice(start, start + rows)
        state_ND = hidden_ND[some].requires_grad_(weight is not None)
        valid_N1 = (target_N[some] != IGNORE).unsqueeze(-1)
        target_N1 = target_N[some].clamp_min(0).unsqueeze(-1)
        with torch.set_grad_enabled(weight is not None):
            logit_NA = logits(state_ND)

        # 1. Log-sum-exp around the largest logit, written over the logits.
        x_NA = logit_NA.detach()
        wanted_N1 = x_NA.gather(-1, target_N1)
        largest_N1, choice_N1 = x_NA.max(-1, keepdim=True)
        total_N1 = x_NA.sub_(largest_N1).exp_().sum(-1, keepdim=True)
        nats += torch.where(valid_N1, total_N1.log() + largest_N1 - wanted_N1, 0.0).sum(dtype=torch.float64)
        choices.append(choice_N1.squeeze(-1))

        # 2. Its derivative: softmax minus one-hot, nothing where there is no target.
        if weight is not None:
            weight_N1 = valid_N1 * weight
            x_NA.mul_(weight_N1 / total_N1).scatter_add_(-1, target_N1, -weight_N1)
            logit_NA.backward(x_NA)
            assert state_ND.grad is not None
            gradients.append(state_ND.grad)
    empty_N = torch.zeros(0, dtype=torch.int64, device=hidden_ND.device)
    return Reading(
        nats,
        torch.cat([empty_N, *choices]).view(shape),
        torch.cat([hidden_ND[:0], *gradients]).view_as(hidden_BTD) if weight is not None else None,
    )
