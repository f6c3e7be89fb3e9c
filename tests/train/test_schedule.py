"""Schedules: the report's dates, scaled, and what happens on both sides of each."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cueva.train.schedule import bias_speed, dials, learning_rate, mtp_weight, step_rows
from cueva.train.settings import (
    BalanceSettings,
    BatchSettings,
    ConstantSchedule,
    CosineSchedule,
    MTPSettings,
    ReportSchedule,
    WSDSchedule,
)
from tests.train.harness import tiny_config

TRILLION = 1e12


def at(tokens: float) -> float:
    """Where the report's run stood after that many of its 14.8T tokens."""
    return tokens / (14.8 * TRILLION)


@pytest.mark.parametrize(
    ("tokens", "rate"),
    [
        (1 * TRILLION, 2.2e-4),
        (9.999 * TRILLION, 2.2e-4),
        (10 * TRILLION, 2.2e-4),
        (12.15 * TRILLION, (2.2e-4 + 2.2e-5) / 2),  # half-way down the cosine
        (14.3 * TRILLION, 2.2e-5),
        (14.5 * TRILLION, 2.2e-5),
        (14.633 * TRILLION, 2.2e-5),
        (14.634 * TRILLION, 7.3e-6),
        (14.8 * TRILLION, 7.3e-6),
    ],
)
def test_the_report_schedule_has_the_reports_rates_at_the_reports_dates(tokens: float, rate: float) -> None:
    assert 2.2e-4 * learning_rate(ReportSchedule(), 0.0, at(tokens)) == pytest.approx(rate, rel=1e-6)


def test_warmup_rises_linearly_from_nothing_and_ends_at_the_peak() -> None:
    for schedule in (ConstantSchedule(), CosineSchedule(), WSDSchedule(), ReportSchedule()):
        assert learning_rate(schedule, 0.1, 0.0) == 0.0
        assert learning_rate(schedule, 0.1, 0.05) == pytest.approx(0.5)
        assert learning_rate(schedule, 0.1, 0.1) == pytest.approx(1.0)


def test_warmup_of_two_thousand_steps_gives_step_one_a_two_thousandth() -> None:
    config = tiny_config(
        "unused", steps=10_000, schedule={"name": "report", "warmup_steps": 2000}, optimizer={"lr": 2.2e-4}
    )
    assert dials(config, 1 / 10_000).lr == pytest.approx(2.2e-4 / 2000)
    assert dials(config, 2000 / 10_000).lr == pytest.approx(2.2e-4)


def test_cosine_ends_at_its_final_share_and_is_half_way_in_the_middle() -> None:
    schedule = CosineSchedule(final_share=0.2)
    assert learning_rate(schedule, 0.1, 0.55) == pytest.approx(0.6)
    assert learning_rate(schedule, 0.1, 1.0) == pytest.approx(0.2)
    assert learning_rate(schedule, 0.0, 0.25) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)


def test_wsd_is_flat_until_its_decay_and_linear_from_there() -> None:
    schedule = WSDSchedule(decay_share=0.2, final_share=0.1)
    assert learning_rate(schedule, 0.0, 0.8) == 1.0
    assert learning_rate(schedule, 0.0, 0.9) == pytest.approx(0.55)
    assert learning_rate(schedule, 0.0, 1.0) == pytest.approx(0.1)
    assert learning_rate(WSDSchedule(decay_share=0.0), 0.0, 1.0) == 1.0


@given(
    schedule=st.sampled_from([ConstantSchedule(), CosineSchedule(), WSDSchedule(), ReportSchedule()]),
    warmup=st.floats(0, 1),
    progress=st.floats(0, 1),
)
def test_no_schedule_ever_leaves_zero_to_one(schedule: ConstantSchedule, warmup: float, progress: float) -> None:
    assert 0 <= learning_rate(schedule, warmup, progress) <= 1 + 1e-12


def test_bias_speed_is_off_for_the_last_500_billion_of_14_8_trillion() -> None:
    balance = BalanceSettings()
    assert bias_speed(balance, at(14.299 * TRILLION)) == 0.001
    assert bias_speed(balance, at(14.301 * TRILLION)) == 0.0
    assert bias_speed(balance, 1.0) == 0.0
    assert bias_speed(BalanceSettings(off_share=0.0), 1.0) == 0.001


def test_mtp_weight_drops_from_0_3_to_0_1_after_ten_trillion() -> None:
    assert mtp_weight(MTPSettings(), at(9.999 * TRILLION)) == 0.3
    assert mtp_weight(MTPSettings(), at(10.001 * TRILLION)) == 0.1


def test_batch_grows_linearly_from_3072_to_15360_over_469_billion() -> None:
    batch = BatchSettings(rows=15_360, ramp_from=3072)
    assert step_rows(batch, 0.0) == 3072
    assert step_rows(batch, at(469e9) / 2) == (3072 + 15_360) // 2
    assert step_rows(batch, at(469e9)) == step_rows(batch, 1.0) == 15_360
    assert step_rows(BatchSettings(rows=4, accumulate=3), 0.0) == 12
