from dataclasses import dataclass

import numpy as np
import pytest

from cueva.config import PRESETS, model_config
from cueva.engine.controller import GRANT, MOST_AUTO, SAFETY_MOST, DraftController
from cueva.engine.corrections import bucket
from cueva.engine.costs import LearnedCosts
from cueva.engine.nominal import NominalCosts
from cueva.engine.odds import NEIGHBOUR_WEIGHT, Odds
from cueva.engine.rounds import Situation


@dataclass
class Flat:
    """Rows cost nothing, a step of drafting always the same."""

    step: float
    row: float = 0.0

    def verify(self, rows: float, cached: float) -> float:
        return 1.0 + self.row * (rows - 1)

    def draft(self, rows: float, cached: float) -> float:
        return self.step

    def known(self, rows: int, cached: float) -> float:
        return 1e9


def settled(acceptance: float, costs: Flat, rounds: int = 600, seed: int = 0) -> list[int]:
    """What is chosen, round after round, if every draft stays with the same probability."""
    coin, controller, chosen = np.random.default_rng(seed), DraftController(), []
    for _ in range(rounds):
        drafts = controller.choose(costs, Situation(100))
        accepted = 0
        while accepted < drafts and coin.random() < acceptance:
            accepted += 1
        controller.observe(drafts, accepted)
        controller.settle(accepted + 1)
        chosen.append(drafts)
    return chosen


# --- the choice -------------------------------------------------------------------------------------------------------


def test_nothing_is_drafted_where_nothing_is_accepted_but_for_rare_looks() -> None:
    """A look costs 0.2 of a plain round, and 0.75% of the time may be lost on looks: one round in 27, in the end."""
    late = settled(0.0, Flat(0.2), rounds=2400)[1200:]
    assert set(late) == {0, 1}
    assert 0.02 < np.mean(late) < 0.06


def test_dear_looks_are_rarer_than_cheap_ones() -> None:
    cheap, dear = (np.mean(settled(0.0, Flat(step), rounds=2000)[200:]) for step in (0.1, 0.8))
    assert 0 < dear < cheap / 3


def test_as_many_as_possible_are_drafted_where_all_are_accepted() -> None:
    chosen = settled(1.0, Flat(0.1))
    assert chosen[:4] == [1, 2, 4, 4]
    assert set(chosen[2:]) == {MOST_AUTO}


def test_nothing_is_ever_drafted_where_a_draft_costs_what_it_saves() -> None:
    assert set(settled(0.9, Flat(1.2))) == {0}


def test_a_fuller_pass_is_counted() -> None:
    """Verification rows of all sequences add up, and so may be too dear for eight though they pay for one."""
    for sequences, wanted in ((1, True), (8, False)):
        controller = DraftController()
        for _ in range(60):
            controller.observe(1, 1)
        costs = Flat(0.1, row=0.01 if sequences == 1 else 0.9)
        assert (controller.choose(costs, Situation(9, sequences=sequences)) > 0) == wanted


def test_rows_that_run_in_any_case_are_slowed_down_too() -> None:
    """One drafts beside fifteen that do not: all wait for its step, and gain nothing."""
    controller = DraftController()
    for _ in range(60):
        controller.observe(1, 1)
    assert controller.choose(Flat(0.3), Situation(9)) > 0
    controller = DraftController()
    for _ in range(60):
        controller.observe(1, 1)
    assert controller.choose(Flat(0.3), Situation(9, others=15)) == 0


def test_text_that_becomes_easy_is_noticed_soon() -> None:
    controller, chosen = DraftController(), []
    for number in range(500):
        drafts = controller.choose(Flat(0.3), Situation(9))
        accepted = 0 if number < 250 else drafts
        controller.observe(drafts, accepted)
        controller.settle(accepted + 1)
        chosen.append(drafts)
    assert np.mean(np.array(chosen[100:250]) > 0) < 0.1
    assert min(chosen[-150:]) >= 1


def test_the_limit_is_kept() -> None:
    controller = DraftController()
    for _ in range(9):
        controller.observe(4, 4)
    assert [controller.choose(Flat(0.01), Situation(limit)) for limit in (0, 1, 2, 9)] == [0, 1, 2, 4]


@pytest.mark.parametrize("seed", range(3))
def test_losses_stop_drafting_whatever_the_estimates_say(seed: int) -> None:
    """Rounds that take twice as long as the costs promise: all that is lost is what is granted, and a few rounds."""
    coin, controller, lost = np.random.default_rng(seed), DraftController(), 0.0
    for _ in range(2000):
        drafts = controller.choose(Flat(0.1), Situation(100))
        accepted = 0
        while accepted < drafts and coin.random() < 0.5:
            accepted += 1
        controller.observe(drafts, accepted)
        cost = 1.0 if drafts == 0 else 2 * (1.0 + 0.1 * drafts)
        controller.settle(accepted + 1, cost)
        lost += cost - (accepted + 1)
    assert lost < 2000 * GRANT * 1.1 + 2 * SAFETY_MOST


# --- how often drafts stay --------------------------------------------------------------------------------------------


def test_drafts_behind_the_first_rejected_one_teach_nothing() -> None:
    odds = Odds(4)
    odds.observe(0, 4, 1)
    assert odds.seen() == {0: (pytest.approx(odds.chances(0)[0]), pytest.approx(odds.chances(0)[1]))}
    assert odds.chances(0)[0] > Odds(4).chances(0)[0]
    assert odds.chances(0)[1] < Odds(4).chances(0)[1]


def test_a_new_range_of_lengths_starts_from_its_neighbour_and_then_goes_its_own_way() -> None:
    odds = Odds(2)
    for _ in range(200):
        odds.observe(3, 1, 0)
        odds.observe(5, 1, 1)
    assert odds.chances(2)[0] == pytest.approx(odds.chances(3)[0], abs=0.02)
    assert odds.chances(6)[0] == pytest.approx(odds.chances(5)[0], abs=0.05)
    for _ in range(round(2 * NEIGHBOUR_WEIGHT)):
        odds.observe(6, 1, 0)
    assert odds.chances(6)[0] < 0.5 < odds.chances(5)[0]


def test_ranges_of_lengths_are_powers_of_two() -> None:
    assert [bucket(n) for n in (0, 127, 128, 255, 256, 511.5, 512, 8192)] == [0, 0, 1, 1, 2, 2, 3, 7]


# --- what passes cost -------------------------------------------------------------------------------------------------


def learned() -> LearnedCosts:
    return LearnedCosts(NominalCosts(PRESETS["v3-671b"]))


def test_nominal_costs_are_shares_of_the_models_weights() -> None:
    big = NominalCosts(PRESETS["v3-671b"])
    assert big.verify(1, 0) == pytest.approx(1.0)
    assert 0.02 < big.draft(1, 0) < 0.06
    # Two tokens meet almost twice the experts: published arithmetic for this shape says 1.54.
    assert 1.45 < big.verify(2, 0) < 1.65
    padded = NominalCosts(model_config("tiny"), padded_rows=8)
    assert padded.verify(1, 0) == padded.verify(8, 0) == padded.verify(9, 0) / 2


def test_one_slow_pass_does_not_move_a_cost() -> None:
    costs = learned()
    for number in range(40):
        costs.add("verify", 1, 64, 9.0 if number % 10 == 5 else 0.01)
    assert costs.seconds("verify", 1, 64) == pytest.approx(0.01, rel=0.02)


def test_row_counts_never_seen_lie_between_those_that_were() -> None:
    costs = learned()
    for _ in range(20):
        costs.add("verify", 1, 64, 0.010)
        costs.add("verify", 5, 64, 0.040)
    known = [costs.seconds("verify", rows, 64) for rows in (1, 2, 3, 4, 5)]
    assert known == sorted(known)
    assert known[0] < known[2] < known[4]
    assert costs.seconds("verify", 2.5, 64) == pytest.approx((known[1] + known[2]) / 2)


def test_a_new_length_takes_over_what_is_known_of_the_last() -> None:
    costs = learned()
    for _ in range(40):
        costs.add("verify", 1, 100, 0.010)
        costs.add("verify", 2, 100, 0.013)
    for _ in range(40):
        costs.add("verify", 1, 200, 0.020)  # longer texts turn out twice as dear
    assert costs.seconds("verify", 2, 200) == pytest.approx(0.026, rel=0.1)


def test_a_machine_that_slows_down_makes_everything_dearer_also_what_has_not_run() -> None:
    costs = learned()
    for _ in range(40):
        costs.add("verify", 1, 64, 0.010)
        costs.add("verify", 2, 64, 0.013)
    for _ in range(40):
        costs.add("verify", 1, 64, 0.020)
    assert costs.seconds("verify", 1, 64) == pytest.approx(0.020, rel=0.1)
    assert costs.seconds("verify", 2, 64) == pytest.approx(0.026, rel=0.1)
    assert costs.known(2, 64) == 0


def test_measurements_at_load_bend_the_nominal_shape() -> None:
    costs, nominal = learned(), NominalCosts(PRESETS["v3-671b"])
    for rows in (1, 2):
        costs.measured("verify", rows, 16, rows * 0.5)
    assert costs.seconds("verify", 2, 16) == pytest.approx(1.0)
    assert costs.seconds("verify", 3, 16) == pytest.approx(nominal.verify(3, 16) / nominal.verify(2, 16))
