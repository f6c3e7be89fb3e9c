"""From any length of run to what a page can draw: nothing lost that fits, nothing hidden, nothing made up."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cueva.study import condense as module
from cueva.study.condense import (
    borders,
    condense,
    condense_evals,
    condense_loads,
    condense_samples,
    condense_steps,
    packed,
    pooled,
    smoothed,
)
from cueva.study.records import RunRecords, read_records
from tests.study.synthetic import make_run


def unpacked(text: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


def test_a_short_run_keeps_every_step_as_it_is(tmp_path: Path) -> None:
    records = read_records(make_run(tmp_path / "run", steps=300))
    series = condense(records)["series"]
    assert series["step"] == list(range(1, 301))
    assert series["steps"] == [1] * 300
    np.testing.assert_allclose(series["loss"]["mean"], [record["loss"] for record in records.steps], rtol=1e-4)
    assert "low" not in series["loss"], "with one step to a point there is no band"


@given(count=st.integers(0, 50_000), limit=st.integers(3, 1000))
def test_points_cover_every_step_once_and_are_no_more_than_the_limit(count: int, limit: int) -> None:
    border = borders(count, limit)
    assert len(border) <= max(limit, 1)
    assert (np.diff(border) > 0).all()
    assert not count or border[0] == 0


def test_a_spike_of_one_step_in_a_long_run_stays_visible() -> None:
    values = np.ones(30_000)
    values[16_180] = 50.0
    steps = [{"kind": "step", "step": i + 1, "grad_norm": float(v)} for i, v in enumerate(values)]
    series = condense_steps(steps)
    assert len(series["step"]) <= module.POINTS
    assert max(series["grad_norm"]["high"]) == 50.0
    assert min(series["grad_norm"]["low"]) == 1.0
    assert sum(series["steps"]) == 30_000
    assert series["step"][:25] == list(range(1, 26)), "a logarithmic axis needs the beginning whole"


def test_points_keep_the_mean_of_their_steps() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    values[::7] = np.nan
    border = borders(len(values), 300)
    mean, low, high = pooled(values, border)
    for index, (start, stop) in enumerate(zip(border, [*border[1:], len(values)], strict=True)):
        part = values[start:stop]
        if np.isfinite(part).any():
            assert mean[index] == pytest.approx(np.nanmean(part))
            assert (low[index], high[index]) == (np.nanmin(part), np.nanmax(part))
        else:
            assert np.isnan([mean[index], low[index], high[index]]).all()


def test_smoothing_neither_lags_nor_bends_a_straight_line() -> None:
    line = np.linspace(5, 1, 2000)
    inner = slice(0, 2000 - 2 * (2000 // 60) - 1)
    np.testing.assert_allclose(smoothed(line)[inner], line[inner], atol=1e-9)
    np.testing.assert_allclose(smoothed(np.full(50, 3.0)), 3.0)
    noisy = np.random.default_rng(0).normal(size=2000)
    assert smoothed(noisy)[200:].std() < 0.4 * noisy[200:].std()


def test_smoothing_leaves_holes_as_they_are() -> None:
    values = np.array([1.0, np.nan, 3.0, np.nan])
    np.testing.assert_array_equal(np.isnan(smoothed(values)), np.isnan(values))
    assert smoothed(np.zeros(0)).shape == (0,)


def test_missing_numbers_become_null_never_nan() -> None:
    assert packed(np.array([np.nan, 1.0, 123456.7, 2.5])) == [None, 1, 123460, 2.5]
    series = condense_steps([{"step": 1, "loss": None}, {"step": 2, "loss": float("nan")}])
    assert json.loads(json.dumps(series, allow_nan=False))["loss"]["mean"] == [None, None]


def test_the_worst_gate_is_the_highest_of_each_step() -> None:
    series = condense_steps([{"step": 1, "max_vio": [0.1, 0.5]}, {"step": 2, "max_vio": [0.9, None]}, {"step": 3}])
    assert series["worst"]["mean"] == [0.5, 0.9, None]


def test_held_out_points_know_how_many_tokens_were_seen() -> None:
    steps = [{"step": step, "tokens": 100 * step} for step in (1, 2, 4)]
    evals = [{"step": 0, "loss": 9.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 1.5}]
    assert condense_evals(evals, steps)["tokens"] == [0, 200, 200]
    assert condense_evals(evals, [])["tokens"] == [0, 0, 0]


# --- experts ----------------------------------------------------------------------------------------------------------


def test_loads_come_back_as_shares_of_the_mean(tmp_path: Path) -> None:
    records = read_records(make_run(tmp_path / "run", steps=100, gates=3, experts=8))
    found = condense_loads(records.loads)
    assert found is not None
    ratio = unpacked(found["ratio"], "<u2", (3, 10, 8)) / found["ratio_unit"]
    bias = unpacked(found["bias"], "<i2", (3, 10, 8)) * np.array(found["bias_unit"])[:, None, None]
    for column, record in enumerate(records.loads):
        load = np.array(record["load"], float)
        np.testing.assert_allclose(ratio[:, column], load / load.mean(-1, keepdims=True), atol=6e-4)
        np.testing.assert_allclose(bias[:, column], record["bias"], atol=2e-5)
    assert found["step"] == list(range(10, 101, 10))
    assert found["gates"] == ["layer 1", "layer 2", "mtp 1"]


def test_a_long_run_of_a_large_model_adds_its_loads_up_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CELLS", 40)
    loads = [{"step": i, "gates": ["a", "b"], "load": [[i, 1], [2, 2]], "bias": [[i, 0], None]} for i in range(1, 26)]
    found = condense_loads(loads)
    assert found is not None
    assert len(found["step"]) == 10
    assert found["step"][-1] == 25, "the end is always shown"
    first = unpacked(found["ratio"], "<u2", (2, 10, 2))[0, 0] / 1000
    np.testing.assert_allclose(first, np.array([6, 3]) / 4.5, atol=1e-3)  # steps 1 to 3 together
    assert found["bias_unit"][1] is None, "a gate without a bias has no path"


def test_a_gate_without_tokens_and_one_without_bias_are_no_error() -> None:
    found = condense_loads([{"step": 1, "gates": ["a"], "load": [[0, 0]], "bias": [None]}])
    assert found is not None
    assert unpacked(found["ratio"], "<u2", (1, 1, 2)).tolist() == [[[0, 0]]]
    assert found["bias"] is None


@pytest.mark.parametrize("load", [None, [], [[]], [[1], [1, 2]], "x", [["a"]], [[-1, 2]], [[float("inf"), 1]], 5])
def test_odd_loads_are_left_out(load: object) -> None:
    assert condense_loads([{"step": 1, "gates": ["a"], "load": load}]) is None
    good: dict[str, Any] = {"step": 2, "gates": ["a"], "load": [[1, 3]]}
    found = condense_loads([{"step": 1, "load": load}, good])
    assert found is not None
    assert found["records"] == 1


# --- samples and size -------------------------------------------------------------------------------------------------


def test_samples_are_grouped_by_step_thinned_and_cut() -> None:
    samples = [{"step": step, "prompt": p, "text": "x" * 9000} for step in range(1, 301) for p in ("a", "b")]
    pages = condense_samples([*samples, {"step": 1, "text": None}])
    assert len(pages) == module.SAMPLES
    assert (pages[0]["step"], pages[-1]["step"]) == (1, 300)
    assert all(len(page["items"]) == 2 for page in pages)
    assert sum(len(item["text"]) for page in pages for item in page["items"]) <= module.SAMPLE_CHARACTERS
    assert pages[0]["items"][0]["cut"] is True


def test_an_empty_run_condenses_to_nothing() -> None:
    found = condense(RunRecords())
    assert found["loads"] is None
    assert found["samples"] == []
    assert found["series"]["loss"]["mean"] == []
    assert found["evals"]["loss"] == []
