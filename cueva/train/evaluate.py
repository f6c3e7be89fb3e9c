"""How well a model predicts text it was not trained on: bits per byte, MTP losses, and what drafting would accept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cueva.model import CausalLM
from cueva.train.batches import Rows, bits_per_byte, take_batches, target_bytes
from cueva.train.loss import IGNORE, piece_rows, read_head, targets, visible_documents
from cueva.train.schedule import Dials
from cueva.train.step import arithmetic, head, needed


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a pass over held-out text gave."""

    loss: float
    """Nats per token, main head."""
    bits_per_byte: float | None
    """All nats of the main head / ln 2 / UTF-8 bytes of the tokens predicted; None when bytes are unknown."""
    mtp_loss: tuple[float, ...]
    """Nats per token of each depth."""
    acceptance: tuple[float, ...]
    """How often each depth's likeliest token is the main head's likeliest for the same place: greedy drafting would
    keep it."""
    targets: int
    """Tokens predicted."""


@torch.no_grad()
def evaluate(
    model: CausalLM, data: Rows, rows: int, at_once: int, dials: Dials, token_bytes_A: Tensor | None = None
) -> Evaluation:
    """Score the first `rows` rows of some text: the same ones every time.

    Args:
        model: any; nothing in it is changed and no load is counted.
        data: held-out text.
        rows: how many of its rows; at most one epoch.
        at_once: rows of a batch.
        dials: for the precision. Documents never see each other here, whatever the training does: the number must not
            depend on what happens to lie beside a document.
        token_bytes_A: int64, UTF-8 bytes of each token; special tokens have none.
    """
    heads = model.config.num_nextn_predict_layers + 1
    device = next(model.parameters()).device
    nats, counts, agreed, text_bytes = [0.0] * heads, [0] * heads, [0] * heads, 0
    for batch in take_batches(data, range(rows), at_once, device):
        document_BU = visible_documents(batch.document_BU, mask=True)
        with arithmetic(device, dials):
            states = model.states(batch.ids_BU[:, :-1], needed(document_BU[:, :-1]))
        main_choice_BT = batch.ids_BU[:, :0]
        for depth, hidden_BTD in enumerate([states.hidden_BTD, *states.mtp_hidden]):
            target_BT = targets(batch.ids_BU, document_BU, depth)
            reading = read_head(
                head(model, depth, dials), hidden_BTD, target_BT, rows=piece_rows(model.config.vocab_size)
            )
            nats[depth] += float(reading.nats)
            counts[depth] += int((target_BT != IGNORE).sum())
            if depth == 0:
                main_choice_BT = reading.choice_BT
            # Row i of depth k and row i + k of the main head speak of the same token, i + k + 1.
            same_BT = (reading.choice_BT == main_choice_BT[:, depth:]) & (target_BT != IGNORE)
            agreed[depth] += int(same_BT.sum())
        if token_bytes_A is not None:
            text_bytes += target_bytes([batch], token_bytes_A, document_mask=True)
    means = [total / max(count, 1) for total, count in zip(nats, counts, strict=True)]
    return Evaluation(
        loss=means[0],
        bits_per_byte=bits_per_byte(nats[0], text_bytes),
        mtp_loss=tuple(means[1:]),
        acceptance=tuple(hits / max(count, 1) for hits, count in zip(agreed[1:], counts[1:], strict=True)),
        targets=counts[0],
    )
