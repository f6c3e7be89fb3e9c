"""Rows cut from token shards."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cueva.errors import TextError
from cueva.text import Document, Packing, Tokenizer, sequential, tokenize
from cueva.text.packing import permutation
from tests.text.strategies import PackingCase, Stream, packings, stream


def document_of(shards: Stream, tokens: Any) -> Any:
    """Tokens of these corpora are numbered through, so each tells which document it is from."""
    return np.searchsorted(shards.starts, tokens, side="right") - 1


@given(case=packings(), epoch=st.integers(0, 3))
@example(case=PackingCase(stream([2]), 1, 0), epoch=0)
def test_an_epoch_uses_every_token_once_but_for_the_end_that_fills_no_row(case: PackingCase, epoch: int) -> None:
    packing = Packing(case.shards, case.length, case.seed)
    rows = [packing.row(epoch, index).ids for index in range(packing.rows_per_epoch)]
    inputs = np.concatenate([row[:-1] for row in rows])
    targets = np.concatenate([row[1:] for row in rows])
    assert len(set(inputs.tolist())) == len(inputs) == packing.rows_per_epoch * case.length
    assert len(set(targets.tolist())) == len(targets)
    left_out = len(case.shards.tokens) - len(targets) - 1
    assert 0 <= left_out < case.length


@given(case=packings(), epoch=st.integers(0, 3))
def test_within_a_document_the_order_is_kept_and_ids_tell_documents_apart(case: PackingCase, epoch: int) -> None:
    packing = Packing(case.shards, case.length, case.seed)
    for index in range(packing.rows_per_epoch):
        ids, document = packing.row(epoch, index)
        assert ids.shape == document.shape == (case.length + 1,)
        assert ids.dtype == document.dtype == np.int64
        assert document[0] == 0
        assert set(np.diff(document).tolist()) <= {0, 1}
        within = np.diff(document) == 0
        assert (np.diff(ids)[within] == 1).all(), "the next token of the same document follows"
        same = document_of(case.shards, ids)
        assert (same[1:][within] == same[:-1][within]).all()
        assert np.isin(ids[1:][~within], case.shards.starts).all(), "a new document begins with its first token"


@given(case=packings(), data=st.data())
def test_rows_do_not_depend_on_the_order_in_which_they_are_asked_for(case: PackingCase, data: st.DataObject) -> None:
    one, other = (Packing(case.shards, case.length, case.seed) for _ in range(2))
    numbers = [(epoch, index) for epoch in range(3) for index in range(one.rows_per_epoch)]
    forward = {number: one.row(*number) for number in numbers}
    for number in data.draw(st.permutations(numbers)):
        again = other.row(*number)
        assert np.array_equal(again.ids, forward[number].ids)
        assert np.array_equal(again.document, forward[number].document)


@given(case=packings(), workers=st.integers(1, 4), first=st.integers(0, 30), rows=st.integers(1, 8))
def test_a_batch_is_the_same_however_many_workers_share_it(
    case: PackingCase, workers: int, first: int, rows: int
) -> None:
    packing = Packing(case.shards, case.length, case.seed)
    ids_BT, document_BT = packing.batch(range(first, first + rows))
    assert ids_BT.shape == document_BT.shape == (rows, case.length + 1)
    for worker in range(workers):
        mine = list(range(first, first + rows))[worker::workers]
        if mine:
            own = pickle.loads(pickle.dumps(Packing(case.shards, case.length, case.seed)))
            got_BT, documents_BT = own.batch(mine)
            assert np.array_equal(got_BT, ids_BT[worker::workers])
            assert np.array_equal(documents_BT, document_BT[worker::workers])


def test_a_row_of_the_whole_run_is_a_row_of_an_epoch() -> None:
    packing = Packing(stream([30, 20, 10]), 7, 3)
    assert packing.rows_per_epoch == 8
    ids_BT, _ = packing.batch([7, 8, 17])
    for row, (epoch, index) in zip(ids_BT, [(0, 7), (1, 0), (2, 1)], strict=True):
        assert np.array_equal(row, packing.row(epoch, index).ids)


def test_the_order_is_fixed_for_all_versions_of_numpy() -> None:
    """Golden: a run begun today has to see the same rows after an upgrade."""
    assert permutation(10, 7, 0, 0).tolist() == GOLDEN
    ids, document = Packing(stream([5, 4, 6, 3]), 6, 7).row(1, 1)
    assert (ids.tolist(), document.tolist()) == GOLDEN_ROW


GOLDEN: list[int] = [8, 4, 3, 6, 2, 1, 0, 5, 9, 7]
GOLDEN_ROW: tuple[list[int], list[int]] = ([5, 6, 7, 8, 15, 16, 17], [0, 0, 0, 0, 1, 1, 1])


def test_seeds_and_epochs_differ() -> None:
    shards = stream([3] * 50)
    rows = [Packing(shards, 149, seed).row(epoch, 0).ids.tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(row) for row in rows}) == 4
    assert all(sorted(row) == list(range(150)) for row in rows)


def test_a_corpus_shorter_than_one_row_is_said() -> None:
    with pytest.raises(TextError, match=r"the corpus has 12 tokens, but one row takes 13 \(a length of 12") as raised:
        Packing(stream([5, 7]), 12, 0)
    assert raised.value.way_out == "try a length of 11 or less, or more text"
    assert Packing(stream([5, 7]), 11, 0).rows_per_epoch == 1


@pytest.mark.parametrize(("length", "seed", "sentence"), [(0, 0, "a row of 0 positions"), (4, -1, "the seed is -1")])
def test_a_row_without_length_and_a_negative_seed_are_said(length: int, seed: int, sentence: str) -> None:
    with pytest.raises(TextError, match=sentence):
        Packing(stream([9]), length, seed)


@pytest.mark.parametrize(("epoch", "index"), [(0, 8), (0, -1), (-1, 0)])
def test_a_row_that_does_not_exist_is_said(epoch: int, index: int) -> None:
    with pytest.raises(TextError, match="rows 0 to 7"):
        Packing(stream([30, 30]), 7, 0).row(epoch, index)


# --- evaluation -------------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(2, 40), min_size=1, max_size=12), length=st.integers(1, 50))
@example(sizes=[2], length=1)
@example(sizes=[11, 10, 12], length=10)
def test_evaluation_predicts_every_token_once_from_its_own_documents_start(sizes: list[int], length: int) -> None:
    shards = stream(sizes)
    rows = sequential(shards, length)
    targets: list[int] = []
    for index in range(len(rows)):
        ids, document = rows.row(index)
        assert ids.shape == document.shape == (length + 1,)
        predicted = (document[1:] == document[:-1]) & (document[1:] >= 0)
        targets += ids[1:][predicted].tolist()
        padding = document < 0
        assert not padding[0]
        assert (np.diff(padding.astype(int)) >= 0).all(), "padding is at the end"
        for piece in range(document.max() + 1):
            part = ids[document == piece]
            assert len(part) > 1
            assert len(set(document_of(shards, part).tolist())) == 1
            # A piece begins a document, or `length` tokens after the piece before.
            assert (part[0] - shards.starts[document_of(shards, part[0])]) % length == 0
    assert targets == sorted(set(range(sum(sizes))) - set(shards.starts.tolist()))
    assert rows.targets == len(targets)


def test_short_documents_share_a_row_and_the_rest_is_padding() -> None:
    rows = sequential(stream([3, 4, 9]), 7)
    assert len(rows) == 3
    ids_BT, document_BT = rows.batch(range(3))
    assert document_BT.tolist() == [[0, 0, 0, 1, 1, 1, 1, -1], [0] * 8, [0, 0] + [-1] * 6]
    assert ids_BT[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert ids_BT[2, :2].tolist() == [14, 15]


def test_nothing_to_evaluate_is_said() -> None:
    with pytest.raises(TextError, match="nothing to evaluate"):
        sequential(stream([1, 1]), 4)
    with pytest.raises(TextError, match="there is no row 1"):
        sequential(stream([4]), 4).row(1)


def test_real_documents_begin_with_the_begin_token_and_end_with_the_end_token(tokenizer: Tokenizer) -> None:
    """Filler is never a label: where a document ends, the id changes with the next begin token, not before."""
    shards = tokenize([Document("uno dos", "a"), Document("tres", "b"), Document("cuatro cinco seis", "c")], tokenizer)
    ids, document = Packing(shards, len(shards.tokens) - 1, 0).row(0, 0)
    for number in range(3):
        part = ids[document == number].tolist()
        assert (part[0], part[-1]) == (0, 1)
        assert 0 not in part[1:]
        assert 1 not in part[:-1]
