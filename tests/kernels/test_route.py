"""The router: what decides, what weighs, and the mistakes other implementations made."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cueva.errors import ShapeError
from cueva.kernels.route import Routing, route
from tests.strategies import RouteCase, routings


def plain_route(case: RouteCase) -> tuple[list[list[int]], list[list[float]]]:
    """The report's words as loops over Python numbers: an independent second reading."""
    how = case.how
    chosen_all, weights_all = [], []
    for logits in case.logit_TE.double().tolist():
        t = torch.tensor(logits, dtype=torch.float64)
        score = (t.sigmoid() if how["scoring"] == "sigmoid" else t.softmax(0)).tolist()
        bias = case.bias_E.tolist() if case.bias_E is not None else [0.0] * len(score)
        choice = [s + b for s, b in zip(score, bias, strict=True)]
        size = len(score) // how["groups"]
        groups = [list(range(g * size, (g + 1) * size)) for g in range(how["groups"])]

        def worth(group: list[int], choice: list[float] = choice) -> float:
            best = sorted((choice[e] for e in group), reverse=True)
            return best[0] + best[1] if how["group_score"] == "top2" else best[0]

        kept = sorted(groups, key=worth, reverse=True)[: how["groups_kept"]] if how["groups"] > 1 else groups
        reachable = list(itertools.chain(*kept))
        chosen = sorted(reachable, key=lambda e: (-choice[e], e))[: how["chosen"]]
        weights = [score[e] for e in chosen]
        if how["normalise"]:
            weights = [w / (sum(weights) + 1e-20) for w in weights]
        chosen_all.append(chosen)
        weights_all.append([w * how["scale"] for w in weights])
    return chosen_all, weights_all


@given(case=routings())
def test_routing_equals_the_reports_words_written_as_loops(case: RouteCase) -> None:
    routing = route(case.logit_TE, case.bias_E, **case.how)
    chosen, weights = plain_route(case)
    assert routing.expert_TK.tolist() == chosen
    torch.testing.assert_close(routing.weight_TK, torch.tensor(weights), atol=1e-5, rtol=1e-5)


@given(case=routings(), shift=st.floats(-2, 2, width=32))
def test_adding_one_constant_to_every_bias_changes_nothing(case: RouteCase, shift: float) -> None:
    """Only differences between biases matter, which holds only if groups not kept are minus infinity, not zero."""
    assert case.bias_E is not None
    before = route(case.logit_TE, case.bias_E, **case.how)
    after = route(case.logit_TE, case.bias_E + shift, **case.how)
    assert torch.equal(before.expert_TK, after.expert_TK)
    assert torch.equal(before.weight_TK, after.weight_TK), "the bias must not weigh"


@given(case=routings())
def test_every_chosen_expert_lies_in_a_kept_group_even_when_all_choices_are_negative(case: RouteCase) -> None:
    routing = route(case.logit_TE, torch.full_like(case.logit_TE[0], -3.0), **case.how)
    group_TK = routing.expert_TK // (case.logit_TE.shape[1] // case.how["groups"])
    for row in group_TK.tolist():
        assert len(set(row)) <= case.how["groups_kept"]


@given(case=routings())
def test_weights_add_up_to_the_scale_when_normalised_and_to_scaled_scores_when_not(case: RouteCase) -> None:
    routing = route(case.logit_TE, case.bias_E, **case.how)
    expected = torch.full((len(routing.weight_TK),), case.how["scale"])
    if not case.how["normalise"]:
        expected = case.how["scale"] * routing.score_TE.gather(1, routing.expert_TK).sum(1)
    torch.testing.assert_close(routing.weight_TK.sum(1), expected)


@given(case=routings())
def test_loads_count_every_token_and_slot_once(case: RouteCase) -> None:
    routing = route(case.logit_TE, case.bias_E, **case.how)
    assert routing.load_E.dtype == torch.int64
    assert int(routing.load_E.sum()) == routing.expert_TK.numel()
    counted_T = torch.zeros(len(case.logit_TE), dtype=torch.bool)
    counted_T[0] = True
    assert route(case.logit_TE, case.bias_E, counted_T=counted_T, **case.how).load_E.sum() == case.how["chosen"]


def test_forty_thousand_tokens_are_counted_to_the_unit() -> None:
    """In bfloat16 counts near 40,000 are spaced 256 apart."""
    logit_TE = torch.tensor([[3.0, 0.0]]).repeat(40_001, 1)
    assert route(logit_TE, None, chosen=1).load_E.tolist() == [40_001, 0]


def test_equal_scores_choose_the_lowest_ids_of_the_kept_groups() -> None:
    flat = route(torch.zeros(3, 8), torch.zeros(8), chosen=4)
    assert flat.expert_TK.tolist() == [[0, 1, 2, 3]] * 3
    bias_E = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1])
    grouped = route(torch.zeros(1, 8), bias_E, chosen=2, groups=4, groups_kept=2)
    assert grouped.expert_TK.tolist() == [[4, 5]]


def test_a_group_counts_by_its_two_best_choices_not_by_its_best() -> None:
    # Group 0 has the single best expert, group 1 the best pair.
    logit_TE = torch.tensor([[0.9, 0.1, 0.7, 0.7]]).logit()
    how = {"chosen": 1, "groups": 2, "groups_kept": 1}
    assert route(logit_TE, None, group_score="top2", **how).expert_TK.item() == 2
    assert route(logit_TE, None, group_score="max", **how).expert_TK.item() == 0


def test_the_bias_takes_part_in_the_score_of_a_group() -> None:
    logit_TE = torch.tensor([[0.5, 0.5, 0.4, 0.4]]).logit()
    how = {"chosen": 1, "groups": 2, "groups_kept": 1}
    assert route(logit_TE, torch.zeros(4), **how).expert_TK.item() == 0
    assert route(logit_TE, torch.tensor([0.0, 0.0, 0.0, 0.3]), **how).expert_TK.item() == 3


def test_no_gradient_reaches_the_bias_and_the_scores_get_theirs_through_the_weights() -> None:
    logit_TE = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    bias_E = torch.zeros(8, requires_grad=True)
    routing = route(logit_TE, bias_E, chosen=2, normalise=False)
    routing.weight_TK.sum().backward()
    assert bias_E.grad is None
    assert logit_TE.grad is not None
    picked = torch.zeros(5, 8, dtype=torch.bool).scatter_(1, routing.expert_TK, True)
    assert (logit_TE.grad[picked] != 0).all()
    assert (logit_TE.grad[~picked] == 0).all()


def test_scores_that_all_underflow_give_no_nan() -> None:
    routing = route(torch.full((1, 4), -200.0), None, chosen=2)
    assert torch.isfinite(routing.weight_TK).all()


def test_a_bias_of_the_wrong_length_is_refused_with_both_numbers() -> None:
    with pytest.raises(ShapeError, match="bias_E has 3 entries, but the router scores 4 experts"):
        route(torch.zeros(1, 4), torch.zeros(3), chosen=1)
    with pytest.raises(ShapeError, match="4 experts cannot be split into 3 equal groups"):
        route(torch.zeros(1, 4), None, chosen=1, groups=3)


def test_routing_is_a_named_tuple_of_four() -> None:
    assert Routing._fields == ("expert_TK", "weight_TK", "score_TE", "load_E")
    assert dataclasses.is_dataclass(RouteCase)
