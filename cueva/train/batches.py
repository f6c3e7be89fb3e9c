"""Rows of text as the step sees them: by number, in micro-batches.

A row is known by one number that counts through all epochs. Which rows a step learns from follows from how many came
before it, never from who computes them, so a run can be resumed, replayed, or later shared between processes, row by
row.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from cueva.train.loss import IGNORE, targets, visible_documents


class Batch(NamedTuple):
    """Some rows: the T ids that the model reads and the last target (U = T + 1)."""

    ids_BU: Tensor
    """int64."""
    document_BU: Tensor
    """int64: which document each id belongs to; negative is padding."""


class Rows(Protocol):
    """Text cut into rows of T + 1 ids (`cueva.text.Packing`)."""

    @property
    def rows_per_epoch(self) -> int:
        """How many rows there are before they come again in another order."""
        ...

    def batch(self, step_rows: Sequence[int], /) -> tuple[NDArray[Any], NDArray[Any]]:
        """Ids and documents of these rows, both (B, T + 1) int64; always the same for the same numbers."""
        ...


def take_batches(data: Rows, rows: range, at_once: int, device: torch.device) -> list[Batch]:
    """Fetch rows by number, `at_once` in each micro-batch."""
    batches: list[Batch] = []
    for start in range(rows.start, rows.stop, at_once):
        ids, document = data.batch(range(start, min(start + at_once, rows.stop)))
        batches.append(Batch(torch.from_numpy(ids).to(device), torch.from_numpy(document).to(device)))
    return batches


def target_bytes(batches: Sequence[Batch], token_bytes_A: Tensor, *, document_mask: bool) -> int:
    """UTF-8 bytes of all tokens that the main head is to predict, given those of each token."""
    total = 0
    for batch in batches:
        target_BT = targets(batch.ids_BU, visible_documents(batch.document_BU, mask=document_mask), 0)
        total += int(token_bytes_A[target_BT[target_BT != IGNORE].cpu()].sum())
    return total


def bits_per_byte(nats: float, text_bytes: int) -> float | None:
    """Bits the model needs for a byte of text: comparable whatever the tokenizer. None when there were no bytes."""
    return nats / math.log(2) / text_bytes if text_bytes > 0 else None
