"""A run from its first step to its last: what it writes, how it goes on, what it refuses."""

import json
import os
import shutil
import signal
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from cueva.errors import CheckpointError, ConfigError, RequestError, RunError
from cueva.model import CausalLM
from cueva.train import RunResult, TrainConfig, run_training, saved_states
from cueva.train.loop import SKIPPED_AT_MOST
from tests.train.harness import PatternRows, Recorder, parts, tiny_config
from tests.train.test_state import hurt


def records(config: TrainConfig, kind: str | None = None) -> list[dict[str, Any]]:
    lines = (config.directory / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if kind in (None, record["kind"])]


def run(config: TrainConfig, *, force: bool = False, **changes: Any) -> tuple[RunResult, Recorder]:
    made = parts(config, **changes)
    result = run_training(config, made, force=force)
    assert isinstance(made.display, Recorder)
    return result, made.display


def test_a_run_leaves_config_metrics_model_and_states(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    result, display = run(config)
    assert {path.name for path in config.directory.iterdir()} == {
        ".lock",
        "config.toml",
        "metrics.jsonl",
        "model",
        "state",
    }
    assert (config.directory / "model" / "model.safetensors").is_file()
    assert [path.name for path in saved_states(config.directory)] == ["step-8", "step-4"]
    assert (result.step, result.stopped, display.ended, display.saves) == (8, False, True, [4, 8])
    assert result.evaluation is not None
    kinds = [(record["kind"], record["step"]) for record in records(config)]
    assert kinds == [
        ("step", 1),
        ("step", 2),
        ("load", 2),
        ("step", 3),
        ("step", 4),
        ("load", 4),
        ("eval", 4),
        ("sample", 4),
        ("step", 5),
        ("step", 6),
        ("load", 6),
        ("step", 7),
        ("step", 8),
        ("load", 8),
        ("eval", 8),
        ("sample", 8),
    ]


def test_every_record_has_the_keys_of_the_schema(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run(config, peak_flops=1e9)
    step = records(config, "step")[-1]
    assert list(step) == [
        *("kind", "step", "tokens", "seconds", "loss", "bits_per_byte", "mtp_loss", "mtp_match", "sequence_loss"),
        *("lr", "grad_norm", "tokens_per_second", "peak_share", "bias_speed", "mtp_weight", "max_vio", "skipped"),
    ]
    assert len(step["mtp_loss"]) == len(step["mtp_match"]) == 1
    assert len(step["max_vio"]) == 2
    assert step["tokens"] == 8 * 2 * 16
    assert step["peak_share"] > 0
    assert step["skipped"] is False
    load = records(config, "load")[-1]
    assert load["gates"] == ["layer 1", "mtp 1"]
    assert sum(load["load"][0]) == 2 * 2 * 16
    assert len(load["bias"]) == 2
    assert len(load["bias"][0]) == 8
    found = records(config, "eval")[-1]
    assert set(found) == {"kind", "step", "seconds", "bits_per_byte", "loss", "mtp_loss", "acceptance"}
    assert records(config, "sample")[-1]["text"].startswith(" and")


def test_rows_are_taken_in_order_and_none_twice(tmp_path: Path) -> None:
    data = PatternRows(rows_per_epoch=5)
    _, display = run(tiny_config(tmp_path), data=data)
    assert data.asked == list(range(8 * 2))
    assert [text for text in display.events if "again in another order" in text] == [
        "all rows of the text were seen 1 times; they come again in another order",
        "all rows of the text were seen 2 times; they come again in another order",
        "all rows of the text were seen 3 times; they come again in another order",
    ]


def test_a_ramp_takes_fewer_rows_at_first(tmp_path: Path) -> None:
    data = PatternRows()
    config = tiny_config(tmp_path, batch={"rows": 4, "accumulate": 2, "ramp_from": 2, "ramp_share": 0.5})
    run(config, data=data)
    tokens = [record["tokens"] // 16 for record in records(config, "step")]
    assert [b - a for a, b in zip([0, *tokens], tokens, strict=False)] == [3, 5, 6, 8, 8, 8, 8, 8]


def losses(config: TrainConfig) -> list[tuple[int, float, float]]:
    return [(record["step"], record["loss"], record["grad_norm"]) for record in records(config, "step")]


def test_a_run_that_was_cut_off_repeats_the_same_losses_to_the_last_bit(tmp_path: Path) -> None:
    whole, cut = tiny_config(tmp_path / "a", steps=10), tiny_config(tmp_path / "b", steps=10)
    run(whole)

    class StopError(Exception):
        pass

    class Stopping(PatternRows):
        def batch(self, step_rows: Any) -> Any:
            if 12 in step_rows:  # the 7th step, two steps after the last save
                raise StopError
            return super().batch(step_rows)

    with pytest.raises(StopError):
        run(cut, data=Stopping())
    assert len(losses(cut)) == 6
    _, display = run(cut)
    assert "going on from step 4 (state/step-4)" in display.events
    assert losses(cut) == losses(whole)
    assert records(cut, "load") == records(whole, "load")
    strip = [{k: v for k, v in r.items() if k != "seconds"} for r in records(cut, "eval")]
    assert strip == [{k: v for k, v in r.items() if k != "seconds"} for r in records(whole, "eval")]
    for name in ("weights.safetensors", "optimizer.safetensors"):
        one, other = (config.directory / "state" / "step-10" / name for config in (whole, cut))
        assert one.read_bytes() == other.read_bytes()


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run(config)
    before = (config.directory / "metrics.jsonl").read_bytes()
    result, display = run(config)
    assert result.step == 8
    assert "this run is finished, after 8 steps" in display.events
    assert display.saves == []
    assert (config.directory / "metrics.jsonl").read_bytes().startswith(before)


def test_another_config_is_shown_as_a_difference_and_refused_without_force(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run(config)
    other = tiny_config(tmp_path, steps=10, optimizer={"lr": 0.02})
    with pytest.raises(ConfigError) as refused:
        run(other)
    assert "optimizer.lr: 0.01 -> 0.02" in refused.value.message
    assert "run.steps: 8 -> 10" in refused.value.message
    assert "--force" in str(refused.value.way_out)
    assert TrainConfig(**tomllib.loads((config.directory / "config.toml").read_text())) == config

    result, display = run(other, force=True)
    assert result.step == 10
    assert "changed by force: optimizer.lr: 0.01 -> 0.02" in display.events
    assert records(other, "step")[-1]["lr"] == 0.02


def test_a_key_that_an_older_config_file_lacks_counts_as_its_default(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run(config)
    path = config.directory / "config.toml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("eps")))
    result, _ = run(config)
    assert result.step == 8


def test_other_text_is_refused_without_force(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run(config)
    with pytest.raises(ConfigError, match="the text of this run has changed"):
        run(config, data_fingerprint="something else")
    run(config, data_fingerprint="something else", force=True)


def test_a_folder_that_holds_no_run_is_not_written_into(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.directory.mkdir(parents=True)
    (config.directory / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds no training run"):
        run(config)
    assert sorted(path.name for path in config.directory.iterdir()) == [".lock", "thesis.tex"]


@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_a_damaged_newest_state_is_passed_over_with_a_warning(tmp_path: Path, harm: str) -> None:
    whole, config = tiny_config(tmp_path / "a", steps=5), tiny_config(tmp_path / "b", steps=5)
    run(whole)
    run(config)
    hurt(config.directory / "state" / "step-5" / "weights.safetensors", harm)
    _, display = run(config)
    assert any("going on from an older one" in text for text in display.events)
    assert "going on from step 4 (state/step-4)" in display.events
    assert losses(config) == losses(whole)


def test_when_every_state_is_damaged_nothing_is_begun_anew(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run(config)
    for folder in saved_states(config.directory):
        hurt(folder / "optimizer.safetensors", "cut")
    before = (config.directory / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="no other state") as refused:
        run(config)
    assert "delete" in str(refused.value.way_out)
    assert (config.directory / "metrics.jsonl").read_bytes() == before


def test_metrics_after_the_state_and_a_torn_last_line_are_cut_off(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run(config)
    path = config.directory / "metrics.jsonl"
    expected = [record for record in records(config) if record["step"] <= 4]
    shutil.rmtree(config.directory / "state" / "step-8")
    path.write_bytes(path.read_bytes() + b'{"kind": "step", "st')

    class StopError(Exception):
        pass

    class Failing(PatternRows):
        def batch(self, step_rows: Any) -> Any:
            raise StopError

    with pytest.raises(StopError):
        run(config, data=Failing())
    found = records(config)
    assert found[: len(expected)] == expected
    assert [record["kind"] for record in found[len(expected) :]] == ["event"]


def test_two_processes_cannot_train_one_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)

    class Nosy(PatternRows):
        def batch(self, step_rows: Any) -> Any:
            with pytest.raises(RunError, match="another process is training"):
                run(config)
            return super().batch(step_rows)

    run(config, data=Nosy())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    whole, config = tiny_config(tmp_path / "a"), tiny_config(tmp_path / "b")
    run(whole)

    class Interrupting(PatternRows):
        def batch(self, step_rows: Any) -> Any:
            if 4 in step_rows:
                os.kill(os.getpid(), number)
            return super().batch(step_rows)

    before = signal.getsignal(signal.SIGINT)
    result, display = run(config, data=Interrupting())
    assert (result.step, result.stopped, display.saves, display.ended) == (3, True, [3], True)
    assert "stopped and saved after step 3; the same command goes on from here" in display.events
    assert signal.getsignal(signal.SIGINT) == before
    result, _ = run(config)
    assert (result.step, result.stopped) == (8, False)
    assert losses(config) == losses(whole)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    class Insisting(PatternRows):
        def batch(self, step_rows: Any) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return super().batch(step_rows)

    config = tiny_config(tmp_path)
    display = Recorder()
    with pytest.raises(KeyboardInterrupt):
        run(config, data=Insisting(), display=display)
    assert display.ended
    assert saved_states(config.directory) == []


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    results: list[RunResult] = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: results.append(run(tiny_config(tmp_path))[0]))
    thread.start()
    thread.join()
    assert results[0].step == 8
    assert signal.getsignal(signal.SIGINT) == before


def poisoned(model: CausalLM) -> CausalLM:
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    return model


def test_a_run_of_broken_steps_gives_up_and_names_the_reason(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps=100, run={"save_every": 0, "eval_every": 0, "sample_every": 0})
    model = poisoned(parts(config).model)
    with pytest.raises(RunError, match="25 steps in a row were skipped at step 25: the loss is nan") as failed:
        run(config, model=model)
    assert failed.value.exit_status == 1
    assert "optimizer.lr" in str(failed.value.way_out)
    steps = records(config, "step")
    assert len(steps) == SKIPPED_AT_MOST
    assert all(record["skipped"] and record["loss"] is None for record in steps)
    assert sum("skipped" in record["text"] for record in records(config, "event")) == SKIPPED_AT_MOST


def test_a_single_broken_step_is_reported_and_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path)
    norms = iter([1.0, float("inf"), *[1.0] * 10])
    monkeypatch.setattr("cueva.train.step.gradient_norm", lambda parameters: torch.tensor(next(norms)))
    _, display = run(config)
    assert [record["skipped"] for record in records(config, "step")] == [False, True] + [False] * 6
    assert "step skipped, nothing was changed: the gradient norm is inf" in display.events


def test_a_run_limited_by_time_ends_near_it_and_its_schedules_follow_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes one second by this clock; half a minute is thirty steps, the last at progress 1."""
    ticks = iter(range(100_000))
    monkeypatch.setattr("cueva.train.loop.time.perf_counter", lambda: float(next(ticks)))
    config = tiny_config(
        tmp_path,
        steps=None,
        run={"minutes": 0.5, "eval_every": 0, "sample_every": 0, "save_every": 0},
        schedule={"name": "cosine", "warmup_share": 0.1, "final_share": 0.0},
    )
    result, display = run(config)
    assert result.step == 30
    assert result.seconds == 30
    rates = [record["lr"] for record, _ in display.steps]
    assert rates[0] == 0.0  # how long a step takes is not known yet
    assert rates[1] == pytest.approx(0.01 * 2 / 3)
    assert max(rates) == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_with_steps_and_minutes_the_run_ends_at_whichever_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(100_000))
    monkeypatch.setattr("cueva.train.loop.time.perf_counter", lambda: float(next(ticks)))
    few = {"eval_every": 0, "sample_every": 0, "save_every": 0, "minutes": 0.1}
    assert run(tiny_config(tmp_path / "a", steps=4, run=few))[0].step == 4
    assert run(tiny_config(tmp_path / "b", steps=40, run=few))[0].step == 6


def test_evaluation_is_over_the_same_rows_every_time_and_counts_bytes(tmp_path: Path) -> None:
    held_out = PatternRows(rows_per_epoch=6, seed=10_000)
    config = tiny_config(tmp_path, run={"eval_tokens": 3 * 16 + 1})
    result, _ = run(config, held_out=held_out)
    assert held_out.asked == [0, 1, 2, 3] * 2
    assert result.evaluation is not None
    # 4 rows of 16 targets, one of them crossing a border; bytes of each token: id mod 4, plus 1.
    rows = [held_out.row(number) for number in range(4)]
    pairs = [(t, a == b) for ids, d in rows for t, a, b in zip(ids[1:], d[:-1], d[1:], strict=True)]
    text_bytes = sum(int(token) % 4 + 1 for token, same in pairs if same)
    assert result.evaluation.targets == sum(same for _, same in pairs)
    nats = result.evaluation.loss * result.evaluation.targets
    expected = nats / 0.6931471805599453 / text_bytes
    assert result.evaluation.bits_per_byte == pytest.approx(expected, rel=1e-9)


def test_no_held_out_text_means_no_evaluation_and_says_so_if_it_is_too_short(tmp_path: Path) -> None:
    run(tiny_config(tmp_path / "a"), held_out=None)
    assert records(tiny_config(tmp_path / "a"), "eval") == []
    result, display = run(tiny_config(tmp_path / "b"), held_out=PatternRows(rows_per_epoch=0))
    assert result.evaluation is None
    assert "the held-out text is shorter than one row, so there is nothing to evaluate" in display.events


def test_a_text_shorter_than_one_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shorter than one row of 17 tokens"):
        run(tiny_config(tmp_path), data=PatternRows(rows_per_epoch=0))


def test_the_best_evaluated_state_outlives_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cueva.train import Evaluation

    bits = iter([3.0, 1.0, 2.0, 2.1, 2.2])
    monkeypatch.setattr("cueva.train.loop.evaluate", lambda *_: Evaluation(1.0, next(bits), (), (), 1))
    config = tiny_config(tmp_path, steps=20)
    run(config)
    assert [path.name for path in saved_states(config.directory)] == ["step-20", "step-16", "step-8"]


def test_a_full_disk_while_saving_leaves_the_last_state_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)

    def no_room(path: Any, needed_bytes: int) -> None:
        if "step-8" in str(path):
            raise CheckpointError(f"no room to write {path}")

    monkeypatch.setattr("cueva.files.require_space", no_room)
    with pytest.raises(CheckpointError, match=r"no room to write .*step-8"):
        run(config)
    assert [path.name for path in saved_states(config.directory)] == ["step-4"]


def test_a_sample_that_cannot_be_written_is_an_event_and_the_run_goes_on(tmp_path: Path) -> None:
    def refuse(model: CausalLM, prompt: str) -> str:
        raise RequestError("the prompt uses 300 positions of 256")

    result, display = run(tiny_config(tmp_path, steps=2), sample=refuse)
    assert result.step == 2
    assert "no sample: the prompt uses 300 positions of 256" in display.events


def test_the_first_steps_follow_from_the_seed_alone(tmp_path: Path) -> None:
    configs = [tiny_config(tmp_path / str(n), steps=2, run={"seed": seed}) for n, seed in enumerate((5, 5, 6))]
    for config in configs:
        run(config)
    assert losses(configs[0]) == losses(configs[1])
    assert losses(configs[0])[0] != losses(configs[2])[0]
