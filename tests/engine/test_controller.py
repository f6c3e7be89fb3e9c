import numpy as np
import pytest

from cueva.config import PRESETS, model_config
from cueva.engine.controller import PROBE_EVERY, PROBE_SELDOM, Costs, DraftController, Stopwatch, nominal_costs


def flat(draft: float) -> Costs:
    return Costs(lambda drafts: 1.0, draft)


def settled(acceptance: float, costs: Costs, rounds: int = 600, seed: int = 0) -> list[int]:
    """What is chosen, round after round, if every draft stays with the same probability."""
    coin, controller, chosen = np.random.default_rng(seed), DraftController(), []
    for _ in range(rounds):
        drafts = controller.choose(costs, 100)
        accepted = 0
        while accepted < drafts and coin.random() < acceptance:
            accepted += 1
        controller.observe(drafts, accepted)
        chosen.append(drafts)
    return chosen


def test_nothing_is_drafted_where_nothing_is_accepted_but_for_ever_rarer_probes() -> None:
    chosen = settled(0.0, flat(0.2), rounds=1200)
    assert set(chosen[100:]) == {0, 1}
    waits = np.diff(np.flatnonzero(chosen[40:])).tolist()
    assert waits[:2] == [4 * PROBE_EVERY, PROBE_SELDOM]
    assert set(waits[2:]) == {PROBE_SELDOM}


def test_as_many_as_possible_are_drafted_where_all_are_accepted() -> None:
    assert set(settled(1.0, flat(0.1))[100:]) == {DraftController().most}


def test_nothing_is_drafted_where_a_draft_costs_what_it_saves() -> None:
    late = settled(0.9, flat(1.2))[100:]
    assert np.mean(late) < 0.1


def test_a_fuller_pass_is_counted() -> None:
    """Eight sequences fill a pass of eight rows: one draft each makes it two passes."""
    controller = DraftController()
    controller.acceptance = [0.8] * 4
    crowded = Costs(lambda drafts: float(1 + drafts), 0.1)
    assert controller.choose(crowded, 9) == 0
    assert controller.choose(flat(0.1), 9) > 0


def test_text_that_becomes_easy_is_noticed_soon() -> None:
    controller = DraftController()
    controller.acceptance = [0.02] * 4
    chosen = []
    for _ in range(PROBE_EVERY * 2):
        chosen.append(controller.choose(flat(0.3), 9))
        controller.observe(chosen[-1], chosen[-1])
    assert chosen[: PROBE_EVERY - 1] == [0] * (PROBE_EVERY - 1)
    assert min(chosen[-10:]) >= 2


def test_the_limit_is_kept() -> None:
    controller = DraftController()
    controller.acceptance = [1.0] * 4
    assert [controller.choose(flat(0.01), limit) for limit in (0, 1, 2, 9)] == [0, 1, 2, 4]


def test_drafts_behind_the_first_rejected_one_teach_nothing() -> None:
    controller = DraftController()
    before = list(controller.acceptance)
    controller.observe(4, 1)
    assert controller.acceptance[0] > before[0]
    assert controller.acceptance[1] < before[1]
    assert controller.acceptance[2:] == before[2:]


def test_nominal_costs_are_shares_of_the_models_weights() -> None:
    assert 0.02 < nominal_costs(PRESETS["v3-671b"]).draft < 0.06
    assert nominal_costs(model_config("tiny", num_nextn_predict_layers=0)).draft == 1.0


def test_one_slow_pass_does_not_move_the_median() -> None:
    watch = Stopwatch()
    assert watch.seconds is None
    for seconds in (1.0, 90.0, 1.1, 0.9, 1.0):
        watch.add(seconds)
    assert watch.seconds == pytest.approx(1.0)
