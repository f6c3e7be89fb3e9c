"""Attention's inner loops: borders of documents, and which form costs less."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cueva.kernels import backends
from cueva.kernels.attend import absorbed_is_cheaper, attend_absorbed, attend_expanded, document_mask


@given(rows=st.lists(st.lists(st.integers(-1, 3), min_size=6, max_size=6), min_size=1, max_size=3))
def test_a_position_sees_exactly_the_earlier_ones_of_its_document_and_padding_only_itself(rows) -> None:
    mask = document_mask(torch.tensor(rows))
    for b, row in enumerate(rows):
        for t in range(6):
            for s in range(6):
                expected = s == t or (s < t and row[s] == row[t] and row[t] >= 0)
                assert bool(mask[b, 0, t, s]) == expected


def test_an_absorbed_query_equals_one_against_explicit_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    ql_THC, qr_THR = torch.randn(3, 2, 8, generator=generator), torch.randn(3, 2, 4, generator=generator)
    rows_SX = torch.randn(7, 12, generator=generator)
    mixed = attend_absorbed(ql_THC, qr_THR, rows_SX, scale=0.3)
    for t in range(3):
        for h in range(2):
            seen = rows_SX[: 7 - 3 + t + 1]
            score_S = 0.3 * (seen[:, :8] @ ql_THC[t, h] + seen[:, 8:] @ qr_THR[t, h])
            torch.testing.assert_close(mixed[t, h], score_S.softmax(0) @ seen[:, :8])


def test_new_queries_see_all_cached_rows_and_their_own_past() -> None:
    """The mask of T new rows over S cached ones is not T x T: DeepSeek's demo has it wrong beyond a start of zero."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, n, 2, 8, generator=generator) for n in (9, 9, 9))
    whole = attend_expanded(q, k, v, scale=0.4, mask=None)
    torch.testing.assert_close(attend_expanded(q[:, 5:], k, v, scale=0.4, mask=None), whole[:, 5:])


@pytest.mark.parametrize(("new", "cheaper"), [(1, True), (16, True), (170, True), (171, False), (256, False)])
def test_published_shapes_change_form_between_170_and_171_new_tokens_on_a_long_cache(new: int, cheaper: bool) -> None:
    assert absorbed_is_cheaper(new, 10_000_000 + new, latent=512, nope=128, value=128) == cheaper


@given(new=st.integers(1, 600))
def test_with_nothing_cached_the_absorbed_form_never_wins(new: int) -> None:
    assert not absorbed_is_cheaper(new, new, latent=512, nope=128, value=128)


def test_a_measured_factor_moves_the_border() -> None:
    assert absorbed_is_cheaper(200, 100_200, latent=512, nope=128, value=128, factor=1.5)


def test_every_operation_lists_its_backends() -> None:
    listed = backends()
    assert set(listed) == {"attend", "experts", "route"}
    assert all(listed.values())
