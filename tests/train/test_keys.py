"""Every key of a config has an effect: each is changed alone, in a short run, and something else comes out.

The keys are taken from the settings themselves, so one that is added without an entry here fails the first test.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from cueva.config import PRESETS
from cueva.errors import CuevaError
from cueva.train import Lines, TrainConfig, run_training
from cueva.train.settings import AnySchedule, _model_hints
from tests.train.harness import LENGTH, parts, tiny_config

STEPS = 4

# Key: what it is changed to, and, where the key matters only beside another, what else is set before and after.
CHANGES: dict[str, tuple[Any, dict[str, dict[str, Any]]]] = {
    "model.preset": ("pocket", {}),
    "data.sequence_length": (LENGTH - 4, {}),
    "data.document_mask": (False, {}),
    "optimizer.lr": (0.02, {}),
    "optimizer.beta1": (0.5, {}),
    "optimizer.beta2": (0.5, {}),
    "optimizer.eps": (1e-2, {}),
    "optimizer.weight_decay": (0.5, {}),
    "optimizer.clip": (1e-3, {}),
    "schedule.name": ("cosine", {}),
    "schedule.constant.warmup_share": (0.5, {}),
    "schedule.constant.warmup_steps": (2, {"schedule": {"name": "constant"}}),
    "schedule.cosine.warmup_share": (0.5, {"schedule": {"name": "cosine"}}),
    "schedule.cosine.warmup_steps": (2, {"schedule": {"name": "cosine"}}),
    "schedule.cosine.final_share": (0.5, {"schedule": {"name": "cosine"}}),
    "schedule.wsd.warmup_share": (0.5, {"schedule": {"name": "wsd"}}),
    "schedule.wsd.warmup_steps": (2, {"schedule": {"name": "wsd"}}),
    "schedule.wsd.decay_share": (0.6, {"schedule": {"name": "wsd"}}),
    "schedule.wsd.final_share": (0.5, {"schedule": {"name": "wsd"}}),
    "schedule.report.warmup_share": (0.5, {"schedule": {"name": "report"}}),
    "schedule.report.warmup_steps": (2, {"schedule": {"name": "report"}}),
    "batch.rows": (3, {}),
    "batch.accumulate": (2, {}),
    "batch.ramp_from": (1, {"batch": {"rows": 4, "ramp_share": 0.9}}),
    "batch.ramp_share": (0.3, {"batch": {"rows": 4, "ramp_from": 1, "ramp_share": 0.9}}),
    "balance.bias_speed": (0.2, {}),
    "balance.off_share": (0.5, {}),
    "balance.rule": ("proportional", {}),
    "balance.sequence_loss": (0.5, {}),
    "balance.sequence_loss_choice": ("actual", {"balance": {"sequence_loss": 0.5, "bias_speed": 0.1}}),
    "mtp.weight": (0.9, {}),
    "mtp.later_weight": (0.9, {}),
    "mtp.switch_share": (0.1, {}),
    "run.name": ("other", {}),
    "run.folder": ("{folder}/elsewhere", {}),
    "run.steps": (STEPS - 1, {}),
    "run.minutes": (1e-6, {}),
    "run.seed": (1, {}),
    "run.precision": ("bfloat16", {}),
    "run.recompute": (True, {}),
    "run.threads": (2, {"run": {"steps": 1}}),
    "run.log_every": (3, {}),
    "run.load_every": (3, {}),
    "run.eval_every": (3, {}),
    "run.eval_tokens": (LENGTH, {}),
    "run.sample_every": (3, {}),
    "run.sample_prompt": ("x = ", {}),
    "run.save_every": (3, {}),
    "run.keep_last": (1, {"run": {"save_every": 1}}),
    "run.keep_every": (1, {"run": {"save_every": 1, "keep_last": 1}}),
}
# What becomes of these is decided while text is made into rows, before training; they have a test of their own below.
OF_TEXT = {
    "data.sources": ["{folder}/more"],
    "data.tokenizer": "{folder}/given",
    "data.vocab_size": 270,
    "data.held_out_share": 0.6,
    "data.text_key": "body",
    "data.skip_bad": True,
    "data.limit_bytes": 400,
}


def keys_of_the_settings() -> set[str]:
    """Every key as `section.key`, or `section.name.key` where the keys depend on a name."""
    keys: set[str] = set()
    for section, field in TrainConfig.model_fields.items():
        if section == "schedule":
            keys.add("schedule.name")
            for kind in get_args(get_args(AnySchedule)[0]):
                name = kind.model_fields["name"].default
                keys |= {f"schedule.{name}.{key}" for key in kind.model_fields if key != "name"}
        else:
            keys |= {f"{section}.{key}" for key in field.annotation.model_fields}  # type: ignore[union-attr]
    return keys


def test_no_key_is_forgotten_here() -> None:
    assert keys_of_the_settings() == set(CHANGES) | set(OF_TEXT)


def outcome(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Everything a run leaves that a person could look at, but for what a clock said."""
    stream = io.StringIO()
    made = parts(config, display=Lines(stream))
    blocks = 0

    def count(*_: Any) -> None:
        nonlocal blocks
        blocks += 1

    for layer in made.model.model.layers:
        layer.register_forward_pre_hook(count)
    result = run_training(config, made)
    clock = {"seconds", "tokens_per_second", "peak_share"}
    lines = (result.directory / "metrics.jsonl").read_text().splitlines()
    return {
        "records": [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines],
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
        "shown": [line.split("  ")[0] for line in stream.getvalue().replace(str(folder), "").splitlines()],
        "blocks": blocks,
        "threads": torch.get_num_threads(),
    }


def settings(folder: Path, changes: Mapping[str, dict[str, Any]], *, looking: bool = True) -> TrainConfig:
    """A short run; `looking`: it evaluates, samples and saves on its way, as the keys of `run` need to be seen."""
    base: dict[str, dict[str, Any]] = {
        # A bias of 0.05 a step can change who is chosen, so that two rules do not only differ in numbers nobody sees.
        "balance": {"bias_speed": 0.05, "sequence_loss": 0.01},
        "run": {name: 2 * looking for name in ("eval_every", "sample_every", "save_every")}
        | {"load_every": 1, "eval_tokens": 3 * LENGTH},
    }
    merged = {name: {**base.get(name, {}), **changes.get(name, {})} for name in {**base, **changes}}
    return tiny_config(folder, steps=STEPS, **merged)


ORDINARY: dict[bool, dict[str, Any]] = {}


@pytest.mark.parametrize("key", CHANGES)
def test_changing_a_key_changes_the_run(key: str, tmp_path: Path) -> None:
    value, beside = CHANGES[key]
    threads, looking = torch.get_num_threads(), key.startswith("run.")
    try:
        if beside:
            before = outcome(settings(tmp_path / "before", beside, looking=looking), tmp_path / "before")
        else:
            if looking not in ORDINARY:
                found = outcome(settings(tmp_path / "before", {}, looking=looking), tmp_path / "before")
                ORDINARY[looking] = found
            before = ORDINARY[looking]
        section, name = key.split(".")[0], key.split(".")[-1]
        if isinstance(value, str):
            value = value.format(folder=tmp_path / "after")
        changed = {**beside, section: {**beside.get(section, {}), name: value}}
        if section == "schedule" and name != "name" and "name" not in changed["schedule"]:
            changed["schedule"]["name"] = key.split(".")[1]
        after = outcome(settings(tmp_path / "after", changed, looking=looking), tmp_path / "after")
        assert after != before, f"{key} = {value!r} has no effect that anybody could see"
    finally:
        torch.set_num_threads(threads)


def test_the_same_config_twice_gives_the_same_outcome(tmp_path: Path) -> None:
    """Otherwise the tests above would see effects where there are none."""
    one, other = (outcome(settings(tmp_path / name, {}), tmp_path / name) for name in "ab")
    assert one == other


@pytest.mark.parametrize("key", OF_TEXT)
def test_changing_a_key_of_the_text_changes_the_text(key: str, tmp_path: Path) -> None:
    from cueva.api.texts import run_text
    from cueva.text import Tokenizer

    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(6):
        (texts / f"{number}.txt").write_text(f"document number {number} says the same words again and again\n" * 4)
    (texts / "lines.jsonl").write_text('{"text": "one text of a line", "body": "another text of this line"}\n' * 3)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.txt").write_text("quite another text, which is long enough for a few rows\n" * 20)
    (tmp_path / "more" / "b.txt").write_text("and one to hold out, perhaps\n" * 20)
    trained = Tokenizer.train((f"other words {n} for other tokens" for n in range(50)), 290, min_frequency=1)
    trained.save(tmp_path / "given")
    if key == "data.skip_bad":
        (texts / "bad.txt").write_bytes(b"caf\xe9 " * 20)

    def found(name: str, **data: Any) -> tuple[Any, ...]:
        config = TrainConfig(
            model={"preset": "tiny"},
            data={"sources": [str(texts)], "vocab_size": 280, "sequence_length": 8, "held_out_share": 0.2, **data},
            run={"steps": 1, "folder": str(tmp_path / name)},
        )
        try:
            text = run_text(config)
        except CuevaError as error:
            return (str(error),)
        held = text.held_out.rows_per_epoch if text.held_out is not None else 0
        return (text.tokenizer.fingerprint, text.fingerprint, text.train.rows_per_epoch, held)

    value = OF_TEXT[key]
    filled = [v.format(folder=tmp_path) for v in value] if isinstance(value, list) else value
    filled = filled.format(folder=tmp_path) if isinstance(filled, str) else filled
    before = found("before")
    assert before == found("again"), "the same keys give the same text"
    assert found("after", **{key.split(".")[1]: filled}) != before


def test_every_key_of_a_model_reaches_its_shape() -> None:
    """What each does to the model is for the model's own tests; here, that none is lost on the way."""
    tiny = PRESETS["tiny"]
    for key in _model_hints():
        old = getattr(tiny, key)
        if key == "rope_scaling":
            value: Any = {"factor": 2.0, "original_max_position_embeddings": 128}
        elif key in ("model_type", "scoring_func", "topk_method"):
            value = {"model_type": "deepseek_v2", "scoring_func": "softmax", "topk_method": "group_limited_greedy"}[key]
        elif isinstance(old, bool):
            value = not old
        elif key in ("n_routed_experts", "n_group"):
            value = old * 2
        elif key == "topk_group":
            value = 4
        else:
            value = 2 * (old or 2)
        changes = {key: value, "n_routed_experts": 16} if key == "n_group" else {key: value}
        made = TrainConfig(
            model={"preset": "tiny", **changes},
            data={"sequence_length": 64},
            balance={"bias_speed": 0.0},
            run={"steps": 1},
        )
        found = getattr(made.shape(), key)
        assert found != old, key
        assert found == value or key == "rope_scaling", key
