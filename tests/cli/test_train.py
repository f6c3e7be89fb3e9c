"""`cueva train`, `prepare` and `eval`: a run from text to a model that is scored."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from cueva.text import Tokenizer
from cueva.train import RunResult
from tests.cli.conftest import ROOT, Cueva
from tests.small_runs import run_config


def words(texts: Path, folder: Path, *more: str) -> list[str]:
    """The flags of a run that takes a second."""
    changes = {
        "run.folder": folder,
        "data.vocab_size": 300,
        "data.sequence_length": 32,
        "data.held_out_share": 0.2,
        "batch.rows": 4,
        "run.sample_every": 0,
    }
    flags = [f"--set={key}={value}" for key, value in changes.items()]
    return ["train", "--preset", "tiny", "--data", str(texts), "--steps", "4", "--name", "x", *flags, *more]


def test_a_run_leaves_what_the_documents_say(cueva: Cueva, texts: Path, tmp_path: Path) -> None:
    ran = cueva(*words(texts, tmp_path), "--json")
    assert ran.status == 0
    facts = json.loads(ran.out)
    assert facts["step"] == 4
    assert not facts["stopped"]
    run = tmp_path / "x"
    for name in (
        "config.toml",
        "metrics.jsonl",
        "model/config.json",
        "model/tokenizer.json",
        "report.html",
        "state/step-4",
    ):
        assert (run / name).exists(), name
    assert tomllib.loads((run / "config.toml").read_text())["data"]["vocab_size"] == 300
    generation = json.loads((run / "model" / "generation_config.json").read_text())
    assert generation["temperature"] == 0.8
    config = json.loads((run / "model" / "config.json").read_text())
    tokenizer = Tokenizer.load(run / "model")
    assert [config["eos_token_id"]] == [generation["eos_token_id"]] == list(tokenizer.eos_ids)
    assert config["bos_token_id"] == tokenizer.bos_id
    assert "step 4/4" in ran.err
    assert "nats/token" in ran.err


def test_the_same_command_again_finds_it_finished(cueva: Cueva, texts: Path, tmp_path: Path) -> None:
    cueva(*words(texts, tmp_path))
    again = cueva(*words(texts, tmp_path))
    assert again.status == 0
    assert "this run is finished, after 4 steps" in again.err
    assert "used again" in again.err


def test_other_settings_are_shown_and_refused_unless_forced(cueva: Cueva, texts: Path, tmp_path: Path) -> None:
    cueva(*words(texts, tmp_path))
    changed = cueva(*words(texts, tmp_path, "--set", "optimizer.lr=0.5"))
    assert changed.status == 2
    assert "optimizer.lr: 0.001 -> 0.5" in changed.err
    assert "--force" in changed.err
    assert cueva(*words(texts, tmp_path, "--set", "optimizer.lr=0.5", "--force")).status == 0


def test_a_file_and_changes_make_the_settings(cueva: Cueva, texts: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(run_config(texts, tmp_path, name="fromfile").toml())
    ran = cueva("train", "--config", file, "--set", "run.steps=2", "--set", "schedule.name=cosine", "--quiet")
    assert ran.status == 0
    settings = tomllib.loads((tmp_path / "fromfile" / "config.toml").read_text())
    assert settings["run"]["steps"] == 2
    assert settings["schedule"]["name"] == "cosine"
    assert "step" not in ran.err.replace("the model is in", "")


def test_plan_prints_and_does_nothing(cueva: Cueva, texts: Path, tmp_path: Path) -> None:
    ran = cueva(*words(texts, tmp_path, "--plan"))
    assert ran.status == 0
    for name in ("parameters", "memory", "tokens", "time", "disk"):
        assert name in ran.out
    assert not (tmp_path / "x").exists()
    facts = json.loads(cueva(*words(texts, tmp_path, "--plan", "--json")).out)
    assert facts["tokens"] == 4 * 4 * 32


def test_ctrl_c_saves_and_the_same_command_goes_on(texts: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cueva", *words(texts, tmp_path, "--set", "run.log_every=1")]
    command[command.index("--steps") + 1] = "4000"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("step 3/"):
            running.send_signal(signal.SIGINT)
            break
    rest = running.stderr.read()
    assert running.wait(timeout=120) == 130
    assert "the same command goes on" in rest
    assert "Traceback" not in rest
    states = [path.name for path in (tmp_path / "x" / "state").iterdir()]
    assert len(states) == 1
    again = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert again.stderr is not None
    for line in again.stderr:
        if line.startswith("step ") and "going on" not in line:
            assert int(line.split("/")[0].removeprefix("step ")) > int(states[0].removeprefix("step-"))
            again.send_signal(signal.SIGINT)
            break
    again.stderr.read()
    assert again.wait(timeout=120) == 130


def test_prepared_text_can_be_trained_on(cueva: Cueva, texts: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    flags = ("--out", shards, "--vocab-size", "300", "--held-out-share", "0.2")
    made = cueva("prepare", texts, *flags, "--json")
    assert made.status == 0
    facts = json.loads(made.out)
    assert not facts["reused"]
    assert facts["train"]["documents"] + facts["held_out"]["documents"] == 12
    assert json.loads(cueva("prepare", texts, *flags, "--json").out)["reused"]

    run = ["train", "--preset", "tiny", "--data", str(shards), "--steps", "2", "--name", "y"]
    run += [f"--set=run.folder={tmp_path}", "--set=data.sequence_length=32", "--set=run.sample_every=0"]
    assert cueva(*run).status == 0
    assert not (tmp_path / "y" / "tokens").exists()
    contradicted = cueva(*run, "--set", "data.vocab_size=310", "--name", "z")
    assert contradicted.status == 2
    assert "was prepared with 300 tokens" in contradicted.err


def test_another_vocabulary_for_prepared_text_is_refused(cueva: Cueva, texts: Path, tmp_path: Path) -> None:
    cueva("prepare", texts, "--out", tmp_path / "shards", "--vocab-size", "300")
    ran = cueva("prepare", texts, "--out", tmp_path / "shards", "--vocab-size", "310")
    assert ran.status == 2
    assert "a vocabulary of 300 tokens, and now 310" in ran.err
    assert cueva("prepare", texts, "--out", tmp_path / "shards", "--vocab-size", "310", "--replace").status == 0


def test_eval_scores_a_text(cueva: Cueva, trained: RunResult, texts: Path) -> None:
    model = trained.directory / "model"
    ran = cueva("eval", "--model", model, texts / "3.txt", "--json")
    assert ran.status == 0
    facts = json.loads(ran.out)
    assert facts["bytes"] == (texts / "3.txt").stat().st_size
    assert facts["bits_per_byte"] == pytest.approx(facts["loss"] * facts["tokens"] / math.log(2) / facts["bytes"])
    assert facts["perplexity"] == pytest.approx(math.exp(facts["loss"]))
    assert len(facts["acceptance"]) == len(facts["mtp_loss"]) == 1
    text = cueva("eval", "--model", model, texts / "3.txt")
    assert "bits per byte" in text.out
    assert "greedy acceptance" in text.out


def test_eval_of_the_held_out_part_is_what_the_run_measured(cueva: Cueva, trained: RunResult, texts: Path) -> None:
    """Two roads to one number: the loop's evaluation of all held-out rows, and `cueva eval` on the saved model."""
    ran = cueva("eval", "--model", trained.directory / "model", texts, "--held-out", "0.2", "--length", "32", "--json")
    facts = json.loads(ran.out)
    assert trained.evaluation is not None
    assert facts["loss"] == pytest.approx(trained.evaluation.loss, rel=1e-5)
    assert facts["bits_per_byte"] == pytest.approx(trained.evaluation.bits_per_byte, rel=1e-5)
    assert facts["acceptance"] == pytest.approx(trained.evaluation.acceptance)


def test_eval_reads_standard_input(cueva: Cueva, trained: RunResult) -> None:
    ran = cueva("eval", "--model", trained.directory / "model", "-", "--json", stdin="the cave keeps")
    assert json.loads(ran.out)["bytes"] == 14


def test_progress_of_long_work_has_unit_and_time_left() -> None:
    from cueva.cli.common import duration, progress_line

    assert (
        progress_line("scored", "positions", 30, 120, 10) == "scored 30/120 positions (25%)  30 s left  3 positions/s"
    )
    assert progress_line("read", "bytes", 3000, None, 2) == "read 3,000 bytes  1,500 bytes/s"
    assert [duration(seconds) for seconds in (5, 200, 7500)] == ["5 s", "3 min 20 s", "2 h 5 min"]


def test_short_work_shows_no_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from cueva.cli.common import Watcher

    watcher = Watcher()
    now = time.monotonic()
    watcher("scored", "positions", 1, 10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(time, "monotonic", lambda: now + 20)
    watcher("scored", "positions", 5, 10)
    assert capsys.readouterr().err.startswith("scored 5/10 positions (50%)")
