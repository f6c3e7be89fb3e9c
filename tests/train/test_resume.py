"""Kill a run at random moments with SIGKILL, start it again, and find the same bits as if nothing had happened.

The run lives in processes forked from a server that has imported everything once, so that each death costs no import.
"""

import json
import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cueva.train import saved_states
from tests.train.victim import config_of, train

SERVER = multiprocessing.get_context("forkserver") if "forkserver" in multiprocessing.get_all_start_methods() else None
STEPS_OF_A_LIFE = (1, 7)
"""How many. Each ends at a random moment of a step: computing, writing, or saving, which is every third."""


def start(folder: Path, steps: int, precision: str) -> Any:
    assert SERVER is not None
    SERVER.set_forkserver_preload(["tests.train.victim", "cueva.train", "torch._dynamo"])  # which AdamW imports
    process = SERVER.Process(target=train, args=(str(folder), steps, precision))
    process.start()
    return process


def step_numbers(folder: Path, steps: int) -> list[dict[str, Any]]:
    """Everything that metrics say of the steps, but for what a clock said."""
    lines = (config_of(str(folder), steps).directory / "metrics.jsonl").read_text().splitlines()
    clock = {"seconds", "tokens_per_second", "peak_share"}
    found = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in clock} for r in found if r["kind"] != "event"]


def last_step(metrics: Path) -> int:
    """The last step in a file that may be torn, or not there yet."""
    lines = metrics.read_bytes().splitlines() if metrics.exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith(b"}") and b'"kind": "step"' in line]
    return steps[-1] if steps else 0


def survive(tmp_path: Path, *, steps: int, kills: int, precision: str, seed: int) -> None:
    whole = start(tmp_path / "whole", steps, precision)
    whole.join(120)
    assert whole.exitcode == 0

    draw, deaths, process = random.Random(seed), 0, None
    for _ in range(8 * kills):
        process = start(tmp_path / "killed", steps, precision)
        metrics = config_of(str(tmp_path / "killed"), steps).directory / "metrics.jsonl"
        if deaths < kills:
            aim = last_step(metrics) + draw.randint(*STEPS_OF_A_LIFE)
            began = time.monotonic()
            while process.is_alive() and last_step(metrics) < aim:
                time.sleep(0.002)
            step_seconds = (time.monotonic() - began) / STEPS_OF_A_LIFE[1]
            time.sleep(draw.uniform(0, step_seconds))
            process.kill()
        process.join(120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        deaths += 1
    assert process is not None
    assert process.exitcode == 0
    assert deaths == kills, "the run ended before it could be killed often enough"

    assert step_numbers(tmp_path / "killed", steps) == step_numbers(tmp_path / "whole", steps)
    one, other = (config_of(str(tmp_path / name), steps).directory for name in ("whole", "killed"))
    assert [path.name for path in saved_states(one)] == [path.name for path in saved_states(other)]
    for file in ("weights.safetensors", "optimizer.safetensors", "random.safetensors"):
        ours, theirs = (load_file(folder / "state" / f"step-{steps}" / file) for folder in (one, other))
        assert set(ours) == set(theirs)
        assert all(ours[name].equal(theirs[name]) for name in ours), file
    assert (one / "model" / "model.safetensors").read_bytes() == (other / "model" / "model.safetensors").read_bytes()
    assert not list(other.glob("**/.*cueva-new*")), "what killed writers left behind is cleared away"


@pytest.mark.skipif(SERVER is None, reason="this system cannot fork")
def test_resumed_training_repeats_the_same_losses_after_being_killed_three_times(tmp_path: Path) -> None:
    survive(tmp_path, steps=21, kills=3, precision="float32", seed=1)


@pytest.mark.long
@pytest.mark.skipif(SERVER is None, reason="this system cannot fork")
@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_training_repeats_the_same_losses_after_being_killed_many_times(
    tmp_path: Path, precision: str, seed: int
) -> None:
    survive(tmp_path, steps=90, kills=12, precision=precision, seed=seed)
