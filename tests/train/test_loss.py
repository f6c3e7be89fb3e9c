"""Targets and cross-entropy: against brute force, against autograd, and against every way to cut the work."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from cueva.train.loss import IGNORE, piece_rows, read_head, targets, visible_documents
from tests.train.harness import packed_batch


@given(
    document=st.lists(st.integers(-1, 2), min_size=2, max_size=12).map(sorted),
    depth=st.integers(0, 3),
    mask=st.booleans(),
)
def test_a_target_is_the_token_ahead_if_it_is_in_the_row_and_document(
    document: list[int], depth: int, mask: bool
) -> None:
    document = [d for d in document if d >= 0] + [d for d in document if d < 0]  # padding comes last
    ids = list(range(100, 100 + len(document)))
    seen = visible_documents(torch.tensor([document]), mask=mask)
    found = targets(torch.tensor([ids]), seen, depth)[0].tolist()
    length = len(ids) - 1
    expected = []
    for i in range(max(length - depth, 0)):
        j = i + depth + 1
        same = document[i] == document[j] if mask else document[i] >= 0
        expected.append(ids[j] if same and document[j] >= 0 else IGNORE)
    assert found == expected


def test_no_target_is_written_as_a_token() -> None:
    """Token 0 is a word like any other; a filler target of 0 would be learned."""
    ids = torch.zeros(1, 5, dtype=torch.int64)
    assert targets(ids, torch.tensor([[0, 0, 1, 1, -1]]), 0).tolist() == [[0, IGNORE, 0, IGNORE]]


def heads(seed: int = 0, rows: int = 3, length: int = 7, vocab: int = 30) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, 8, generator=generator)
    weight = torch.randn(vocab, 8, generator=generator) * 2
    target = torch.randint(0, vocab, (rows, length), generator=generator)
    target[torch.rand(rows, length, generator=generator) < 0.3] = IGNORE
    return hidden, weight, target


@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_cross_entropy_and_its_gradients_equal_autograds_however_it_is_cut(rows: int) -> None:
    hidden, weight, target = heads()
    x, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    expected = F.cross_entropy((x @ w.T).flatten(0, 1), target.flatten(), ignore_index=IGNORE, reduction="sum")
    (expected * 0.25).backward()

    head = weight.clone().requires_grad_()
    reading = read_head(lambda state: F.linear(state, head).float(), hidden, target, rows=rows, weight=0.25)
    assert float(reading.nats) == pytest.approx(expected.item(), rel=1e-6)
    assert reading.gradient_BTD is not None
    assert head.grad is not None
    torch.testing.assert_close(reading.gradient_BTD.double(), x.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(head.grad.double(), w.grad, atol=1e-6, rtol=1e-5)
    assert torch.equal(reading.choice_BT, (x @ w.T).argmax(-1))


def test_pieces_hold_no_more_logits_than_the_budget_and_never_too_few_rows() -> None:
    assert piece_rows(4096, 16 * 2**20) == 1024
    assert piece_rows(129_280, 16 * 2**20) == 256
    held = []
    hidden, weight, target = heads(length=40)

    def logits(state: torch.Tensor) -> torch.Tensor:
        held.append(len(state))
        return F.linear(state, weight)

    read_head(logits, hidden, target, rows=32)
    assert held == [32, 32, 32, 24]


def test_reading_without_a_weight_leaves_no_gradient_and_gives_the_same_numbers() -> None:
    hidden, weight, target = heads()
    head = weight.clone().requires_grad_()
    plain = read_head(lambda state: F.linear(state, head), hidden, target, rows=5)
    with_gradient = read_head(lambda state: F.linear(state, head), hidden, target, rows=5, weight=1.0)
    assert plain.gradient_BTD is None
    assert torch.equal(plain.nats, with_gradient.nats)
    assert torch.equal(plain.choice_BT, with_gradient.choice_BT)
    reading = read_head(lambda state: F.linear(state, head.detach()), hidden[:, :0], target[:, :0], rows=5)
    assert float(reading.nats) == 0.0
    assert reading.choice_BT.shape == (3, 0)


@given(scale=st.floats(0, 1e4), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_large_logits_stay_finite(scale: float, seed: int) -> None:
    hidden, weight, target = heads(seed)
    head = (weight * scale).requires_grad_()
    reading = read_head(lambda state: F.linear(state, head), hidden, target, rows=8, weight=1.0)
    assert math.isfinite(float(reading.nats))
    assert head.grad is not None
    assert bool(head.grad.isfinite().all())


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    target = torch.tensor([[3, IGNORE, 5]])
    reading = read_head(lambda state: torch.zeros(len(state), 129_280), torch.zeros(1, 3, 2), target, rows=2)
    assert float(reading.nats) / 2 == pytest.approx(11.769736, abs=1e-5)


def test_unmasked_rows_are_one_document_with_their_padding_left_out() -> None:
    batch = packed_batch(padding=3)
    seen = visible_documents(batch.document_BU, mask=False)
    assert set(seen.unique().tolist()) == {-1, 0}
    assert torch.equal(seen < 0, batch.document_BU < 0)
    assert torch.equal(visible_documents(batch.document_BU, mask=True), batch.document_BU)
