"""Reading a run's own log: whatever is torn, repeated, missing or odd, a report still gets what is usable."""

import json
from pathlib import Path

import numpy as np
import pytest

from cueva.config import PRESETS
from cueva.errors import RunError
from cueva.study.records import column, columns, number, read_model_config, read_records, read_settings
from tests.study.synthetic import make_run


def write(folder: Path, *records: object, tail: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + tail, encoding="utf-8")
    return folder


def step(number: int, loss: float = 1.0) -> dict[str, object]:
    return {"kind": "step", "step": number, "loss": loss}


def test_a_torn_last_line_is_a_run_being_written(tmp_path: Path) -> None:
    records = read_records(write(tmp_path, step(1), step(2), tail='{"kind": "step", "st'))
    assert [record["step"] for record in records.steps] == [1, 2]
    assert records.unusable == 0


def test_unusable_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    odd = [step(1), ["no", "object"], {"kind": "guess", "step": 1}, {"kind": "step"}, {"kind": "step", "step": -1}]
    odd += [{"kind": "step", "step": True}, {"kind": "step", "step": 1.5}, "text", None]
    run = write(tmp_path, *odd)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"not json\n\xff\xfe\n" + b"[" * 100_000 + b"\n\n")
    records = read_records(run)
    assert len(records.steps) == 1
    assert records.unusable == len(odd) - 1 + 3


def test_a_resumed_run_shows_each_step_as_it_was_last_done(tmp_path: Path) -> None:
    first = [
        step(1),
        step(2),
        {"kind": "eval", "step": 2, "loss": 9.0},
        step(3),
        {"kind": "event", "step": 3, "text": "a"},
    ]
    again = [step(2, 7.0), {"kind": "eval", "step": 2, "loss": 5.0}]
    records = read_records(write(tmp_path, *first, *again))
    assert [(record["step"], record["loss"]) for record in records.steps] == [(1, 1.0), (2, 7.0)]
    assert [record["loss"] for record in records.evals] == [5.0]
    assert len(records.events) == 1, "what happened stays written"
    assert records.repeated == 2


def test_a_run_that_has_logged_nothing_is_no_error_but_a_missing_run_is(tmp_path: Path) -> None:
    assert read_records(tmp_path).steps == []
    with pytest.raises(RunError, match=r"there is no run directory at .*nowhere"):
        read_records(tmp_path / "nowhere")


@pytest.mark.parametrize("value", [None, "1", True, [1], float("nan"), float("inf"), 10**400])
def test_what_is_no_finite_number_is_nan(value: object) -> None:
    assert np.isnan(number(value))


def test_ragged_lists_become_a_table_with_holes() -> None:
    records = [{"v": [1, 2]}, {}, {"v": None}, {"v": [3, "x", 5]}]
    table = columns(records, "v")
    assert table.shape == (3, 4)
    np.testing.assert_array_equal(table, [[1, np.nan, np.nan, 3], [2, np.nan, np.nan, np.nan], [np.nan] * 3 + [5]])
    np.testing.assert_array_equal(column([{"a": 1}, {}], "a"), [1, np.nan])


def test_the_shape_comes_from_the_model_and_before_the_first_save_from_the_settings(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, depths=2, gates=6)
    config = read_model_config(run, read_settings(run)[1])
    assert config is not None
    assert (config.num_nextn_predict_layers, config.gate_count) == (2, 6)
    (run / "model" / "config.json").write_text("{damaged", encoding="utf-8")
    asked = read_model_config(run, read_settings(run)[1])
    assert asked is not None
    assert asked == PRESETS["pocket"], "the preset of config.toml"
    assert read_model_config(run, {}) is None
    assert read_model_config(run, {"model": {"preset": "no such"}, "run": {"steps": 1}}) is None


def test_damaged_settings_are_shown_as_text_and_not_believed(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[run\nsteps = ", encoding="utf-8")
    assert read_settings(tmp_path) == ("[run\nsteps = ", {})
    assert read_settings(tmp_path / "nowhere") == ("", {})
