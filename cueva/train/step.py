"""The training step: rows of ids in, one move of the weights and of the balance biases out.

Read this file first. `training_step` is the whole of it; what it calls is in `loss.py`, `balance.py` and
`optimizer.py`.

A step may be cut into micro-batches of any sizes: what is divided by a number of tokens or rows is divided by that
number *for the whole step*, counted before the first forward pass, and expert loads are added up before they are used.
So the cut changes memory and time, and nothing else; the same will hold when other processes compute some of the
micro-batches.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cueva.model import CausalLM, States
from cueva.train.balance import apply_balance, max_violation, sequence_loss
from cueva.train.batches import Batch
from cueva.train.loss import IGNORE, piece_rows, read_head, targets, visible_documents
from cueva.train.optimizer import clip_gradients, gradient_norm
from cueva.train.schedule import Dials


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did."""

    loss: float
    """Nats per token, main head."""
    mtp_loss: tuple[float, ...]
    """Nats per token of each depth, before any weight."""
    mtp_match: tuple[float, ...]
    """How often each depth's likeliest token was the target."""
    sequence_loss: float
    """Mean over rows, sum over gates, before alpha; `gate_count` is perfect balance. 0 when alpha is 0."""
    grad_norm: float
    """Before clipping."""
    load_GE: Tensor
    """int64: pairs of token and slot that each gate sent to each expert."""
    positions: int
    """Token positions computed, without padding."""
    targets: int
    """Tokens the main loss is a mean of."""
    skipped: str | None
    """Why nothing was moved; None when all was."""

    @property
    def max_vio(self) -> list[float]:
        """MaxVio of each gate."""
        return [max_violation(load_E) for load_E in self.load_GE]


@dataclass(frozen=True, slots=True)
class Totals:
    """What a step's sums are divided by, one number per depth, the main head first."""

    targets: tuple[int, ...]
    rows: tuple[int, ...]
    """Rows with at least one position that counts."""
    positions: tuple[int, ...]
    """Positions that a depth's block computes from tokens of one document: no padding, no filler."""

    @staticmethod
    def of(batches: Sequence[Batch], depths: int, *, document_mask: bool) -> "Totals":
        """Count over all micro-batches of a step."""
        counts, rows, positions = [0] * (depths + 1), [0] * (depths + 1), [0] * (depths + 1)
        for batch in batches:
            document_BU = visible_documents(batch.document_BU, mask=document_mask)
            counted_BT = document_BU[:, :-1] >= 0
            for depth in range(depths + 1):
                positions[depth] += int(counted_BT.sum())
                counts[depth] += int((targets(batch.ids_BU, document_BU, depth) != IGNORE).sum())
                rows[depth] += int(counted_BT.any(-1).sum())
                # Depth k + 1 reads token i + k + 1, which is what depth k was to predict, in all rows but the last.
                counted_BT = targets(batch.ids_BU, document_BU, depth)[:, :-1] != IGNORE
        return Totals(tuple(counts), tuple(rows), tuple(positions))


def training_step(
    model: CausalLM, optimizer: torch.optim.Optimizer, batches: Sequence[Batch], dials: Dials
) -> StepReport:
    """Learn from some rows: one move of the optimizer, one move of every balance bias.

    Args:
        model: float32 weights; its gradients are replaced.
        optimizer: from `build_optimizer`.
        batches: the step's rows, in micro-batches that fit the memory.
        dials: rate, weights and switches of this step.

    Returns:
        What happened. When the loss or the gradient is not finite, weights, optimizer and biases are as before.
    """
    # 1. Count first: every mean below is over the whole step.
    depths = model.config.num_nextn_predict_layers
    totals = Totals.of(batches, depths, document_mask=dials.document_mask)

    # 2. Forward and backward, one micro-batch after another; gradients, sums and loads add up.
    optimizer.zero_grad(set_to_none=True)
    sums = Sums(model)
    for batch in batches:
        add_gradients(model, batch, totals, sums, dials)

    # 3. Is this a step that may be taken?
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(gradient_norm(parameters))
    report = sums.report(totals, norm)
    if report.skipped is not None:
        optimizer.zero_grad(set_to_none=True)
        return report

    # 4. Move the weights.
    if dials.clip is not None:
        clip_gradients(parameters, norm, dials.clip)
    for group in optimizer.param_groups:
        group["lr"] = dials.lr
    optimizer.step()

    # 5. Move the biases against the load of this step; the next step is the first to see them.
    apply_balance(model, report.load_GE, dials.bias_speed, dials.bias_rule)
    return report


def add_gradients(model: CausalLM, batch: Batch, totals: Totals, sums: "Sums", dials: Dials) -> None:
    """Forward and backward of one micro-batch: its share of the step's gradient is added to the parameters."""
    document_BU = visible_documents(batch.document_BU, mask=dials.document_mask)
    document_BT = document_BU[:, :-1]

    # 1. Through the blocks, up to what the heads read.
    with arithmetic(batch.ids_BU.device, dials):
        states = model.states(batch.ids_BU[:, :-1], needed(document_BT), recompute=dials.recompute)
    sums.add_loads(states)

    # 2. Each head against its targets; the backward pass begins here, and stops at the states.
    hidden = [states.hidden_BTD, *states.mtp_hidden]
    gradients: list[Tensor | None] = []
    for depth, hidden_BTD in enumerate(hidden):
        target_BT = targets(batch.ids_BU, document_BU, depth)
        share = 1.0 if depth == 0 else dials.mtp_weight / (len(hidden) - 1)
        reading = read_head(
            head(model, depth, dials),
            hidden_BTD,
            target_BT,
            rows=piece_rows(model.config.vocab_size),
            weight=share / max(totals.targets[depth], 1),
        )
        sums.add_reading(depth, reading.nats, (reading.choice_BT == target_BT).sum())
        gradients.append(reading.gradient_BTD)

    # 3. The sequence-wise loss of every gate, a mean over the rows of the step.
    roots = list(hidden)
    if dials.sequence_loss > 0 and states.routings:
        counted = [document_BT >= 0, *states.mtp_valid]
        loss = torch.zeros((), device=document_BT.device)
        for depth, routing in zip(gate_depths(model), states.routings, strict=True):
            one = sequence_loss(routing, counted[depth], dials.sequence_loss_choice)
            loss = loss + one / max(totals.rows[depth], 1)
        sums.sequence_loss += loss.detach().double()
        roots.append(loss)
        gradients.append(torch.full_like(loss, dials.sequence_loss))

    # 4. Back through the blocks, once for all of it.
    torch.autograd.backward(roots, gradients)


class Sums:
    """What adds up over the micro-batches of a step, on the device, in int64 and float64."""

    def __init__(self, model: CausalLM):
        self.model = model
        device = next(model.parameters()).device
        heads = model.config.num_nextn_predict_layers + 1
        self.nats = torch.zeros(heads, dtype=torch.float64, device=device)
        self.hits = torch.zeros(heads, dtype=torch.int64, device=device)
        self.sequence_loss = torch.zeros((), dtype=torch.float64, device=device)
        gates, experts = model.config.gate_count, model.config.n_routed_experts or 0
        self.load_GE = torch.zeros(gates, experts, dtype=torch.int64, device=device)

    def add_loads(self, states: States) -> None:
        """Add what the forward pass counted; recomputation in the backward pass does not come by here."""
        if states.routings:
            self.load_GE += torch.stack([routing.load_E for routing in states.routings])

    def add_reading(self, depth: int, nats: Tensor, hits: Tensor) -> None:
        """Add one head's answers."""
        self.nats[depth] += nats
        self.hits[depth] += hits

    def report(self, totals: Totals, grad_norm: float) -> StepReport:
        """Turn sums into means, and judge whether they are numbers."""
        load_GE = self.load_GE.cpu()
        chosen = self.model.config.num_experts_per_tok
        expected = [chosen * totals.positions[depth] for depth in gate_depths(self.model)]
        assert load_GE.sum(-1).tolist() == expected, f"loads {load_GE.sum(-1).tolist()}, pairs {expected}"
        means = [float(nats) / max(count, 1) for nats, count in zip(self.nats, totals.targets, strict=True)]
        match = [int(hits) / max(count, 1) for hits, count in zip(self.hits, totals.targets, strict=True)]
        skipped = None
        if not all(math.isfinite(mean) for mean in means):
            skipped = (
                f"the loss is {means[0]}" if not math.isfinite(means[0]) else f"an MTP loss is not finite: {means[1:]}"
            )
        elif not math.isfinite(grad_norm):
            skipped = f"the gradient norm is {grad_norm}"
        elif totals.targets[0] == 0:
            skipped = "there is nothing to predict in these rows"
        return StepReport(
            loss=means[0],
            mtp_loss=tuple(means[1:]),
            mtp_match=tuple(match[1:]),
            sequence_loss=float(self.sequence_loss),
            grad_norm=grad_norm,
            load_GE=load_GE,
            positions=totals.positions[0],
            targets=totals.targets[0],
            skipped=skipped,
        )


def arithmetic(device: torch.device, dials: Dials) -> contextlib.AbstractContextManager[object]:
    """The precision of matrix products: bfloat16 by autocast, weights and sums staying float32, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dials.precision == "bfloat16")


def head(model: CausalLM, depth: int, dials: Dials) -> Callable[[Tensor], Tensor]:
    """The function that turns a depth's states into logits, in the precision of the run."""

    def logits(state_ND: Tensor) -> Tensor:
        with arithmetic(state_ND.device, dials):
            return model.logits(state_ND, depth)

    return logits


def needed(document_BT: Tensor) -> Tensor | None:
    """None when every row is one document without padding: attention then needs no mask, and is faster."""
    return None if bool((document_BT == document_BT[:, :1]).all()) and bool((document_BT >= 0).all()) else document_BT


def gate_depths(model: CausalLM) -> list[int]:
    """The depth of each gate's rows: 0 for the main layers, then 1, 2, ... for the MTP modules."""
    gates, depths = model.config.gate_count, model.config.num_nextn_predict_layers
    return [0] * (gates - depths) + list(range(1, depths + 1)) if gates else []
