"""Routed experts: three backends, one function."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cueva.errors import CuevaError, ShapeError
from cueva.kernels.experts import backends, experts

BACKENDS = ["loop", "grouped", "tiles"]


def case(seed: int, tokens: int, count: int, chosen: int, *, width: int = 16, inner: int = 12, used: int | None = None):
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(tokens, width, generator=generator)
    pool = count if used is None else used
    expert_TK = torch.rand(tokens, pool, generator=generator).argsort(1)[:, :chosen]
    weight_TK = torch.rand(tokens, chosen, generator=generator)
    gate_up = torch.randn(count, 2 * inner, width, generator=generator)
    down = torch.randn(count, width, inner, generator=generator)
    return [x_TD, expert_TK, weight_TK, gate_up, down]


def dense_answer(x_TD, expert_TK, weight_TK, gate_up_EGD, down_EDF):
    """Every expert answers every token; a token's choices are then weighed: quadratic, obvious, float64."""
    x_TD, gate_up_EGD, down_EDF = x_TD.double(), gate_up_EGD.double(), down_EDF.double()
    gate_ETF, up_ETF = torch.einsum("td,egd->etg", x_TD, gate_up_EGD).chunk(2, -1)
    answer_ETD = torch.einsum("etf,edf->etd", gate_ETF * gate_ETF.sigmoid() * up_ETF, down_EDF)
    weight_TE = torch.zeros(len(x_TD), len(down_EDF), dtype=torch.float64).scatter_(1, expert_TK, weight_TK.double())
    return torch.einsum("te,etd->td", weight_TE, answer_ETD)


@pytest.mark.parametrize("backend", BACKENDS)
@given(seed=st.integers(0, 999), tokens=st.integers(0, 20), count=st.integers(3, 8), chosen=st.integers(1, 3))
@settings(max_examples=30)
def test_every_backend_computes_the_definition(backend, seed: int, tokens: int, count: int, chosen: int) -> None:
    arguments = case(seed, tokens, count, chosen)
    answer = experts(*arguments, backend=backend)
    # Sums of 12 to 16 float32 products of size about 50: 1e-4 is some hundred roundings.
    torch.testing.assert_close(answer.double(), dense_answer(*arguments), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_those_of_the_plain_definition(backend) -> None:
    arguments = case(1, 15, 6, 2)
    leaves = [arguments[0], arguments[2], arguments[3], arguments[4]]
    for leaf in leaves:
        leaf.requires_grad_(True)
    direction = torch.randn(15, 16, generator=torch.Generator().manual_seed(2))
    got = torch.autograd.grad((experts(*arguments, backend=backend) * direction).sum(), leaves)
    expected = torch.autograd.grad((dense_answer(*arguments) * direction).sum(), leaves)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_expert_nobody_chose_gets_a_gradient_of_exactly_zero(backend) -> None:
    arguments = case(3, 10, 8, 2, used=3)
    arguments[3].requires_grad_(True)
    experts(*arguments, backend=backend).square().sum().backward()
    gradient = arguments[3].grad
    assert (gradient[3:] == 0).all()
    assert (gradient[:3] != 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_expert_may_get_every_token(backend) -> None:
    arguments = case(4, 30, 5, 1, used=1)
    torch.testing.assert_close(
        experts(*arguments, backend=backend).double(), dense_answer(*arguments), atol=1e-3, rtol=1e-4
    )


def test_memory_beyond_the_last_group_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """`grouped_mm` leaves rows behind the last offset unwritten; fill fresh memory with NaN and look for it."""
    plain_empty = torch.empty_like

    def poisoned(tensor, *args, **kwargs):
        made = plain_empty(tensor, *args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty_like", poisoned)
    assert torch.isfinite(experts(*case(5, 9, 8, 2, used=2), backend="grouped")).all()


def test_a_tokens_bits_do_not_depend_on_the_crowd_in_tiles() -> None:
    x_TD, expert_TK, weight_TK, gate_up, down = case(6, 8, 4, 2, width=64, inner=48)
    together = experts(x_TD, expert_TK, weight_TK, gate_up, down, tile=8)
    for token in range(8):
        one = slice(token, token + 1)
        alone = experts(x_TD[one], expert_TK[one], weight_TK[one], gate_up, down, tile=8)
        assert torch.equal(alone[0], together[token])


def test_tokens_that_are_not_active_reach_no_expert() -> None:
    arguments = case(7, 6, 4, 2)
    active_T = torch.tensor([True, False, True, True, False, True])
    masked = experts(*arguments, active_T=active_T)
    assert (masked[~active_T] == 0).all()
    torch.testing.assert_close(masked[active_T], experts(*arguments)[active_T])


def test_bfloat16_answers_are_added_in_float32() -> None:
    arguments = case(8, 12, 6, 3)
    half = [a.bfloat16() if a.is_floating_point() and i != 2 else a for i, a in enumerate(arguments)]
    answer = experts(*half, backend="loop")
    assert answer.dtype == torch.bfloat16
    scale = float(dense_answer(*half).abs().max())
    torch.testing.assert_close(answer.double(), dense_answer(*half), atol=scale * 2**-6, rtol=2**-6)


def test_widths_that_grouped_mm_refuses_fall_back_to_the_loop_and_by_name_to_a_sentence() -> None:
    arguments = case(9, 5, 4, 2, width=6, inner=5)
    torch.testing.assert_close(experts(*arguments).double(), dense_answer(*arguments), atol=1e-3, rtol=1e-4)
    with pytest.raises(CuevaError, match=r"multiples of 16 bytes.*widths 6 and 5"):
        experts(*arguments, backend="grouped")


def test_shapes_that_do_not_fit_are_named() -> None:
    x_TD, expert_TK, weight_TK, gate_up, down = case(10, 5, 4, 2)
    with pytest.raises(ShapeError, match="width 8 do not fit"):
        experts(x_TD[:, :8], expert_TK, weight_TK, gate_up, down)
    with pytest.raises(ShapeError, match="5 tokens need as many rows"):
        experts(x_TD, expert_TK[:3], weight_TK[:3], gate_up, down)


def test_the_backends_present_are_listed_with_the_default_first() -> None:
    assert backends()[0] == "grouped"
