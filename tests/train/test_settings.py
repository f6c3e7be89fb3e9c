"""The config file: strict, in sentences, and the same after a round trip."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from cueva.config import PRESETS
from cueva.errors import ConfigError
from cueva.train import TrainConfig, config_difference, read_train_config
from cueva.train.settings import OptimizerSettings, ScheduleSettings

POCKET = PRESETS["pocket"]


def config(*changes: str) -> TrainConfig:
    return read_train_config(None, ["run.steps=10", *changes])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("optimizer.bta1=0.9", "there is no key `optimizer.bta1`; did you mean 'beta1'?"),
        ("optimizer.learning_rate=1", "there is no key `optimizer.learning_rate`; `optimizer` has: lr, beta1"),
        ("optimiser.lr=1", "there is no section `optimiser`; did you mean 'optimizer'?"),
        ("model.hidden_siz=64", "there is no key `model.hidden_siz`; did you mean 'hidden_size'?"),
        ("model.hidden_size=wide", "`model.hidden_size` is 'wide': it should be a valid integer"),
        ("model.hidden_size=1.5", "`model.hidden_size` is 1.5: it should be a valid integer"),
        ("model.scoring_func=tanh", "`model.scoring_func` is 'tanh': it should be 'sigmoid' or 'softmax'"),
        ("model.n_group=3", "experts cannot be split into 3 equal groups"),
        ("model.preset=v4-1t", "there is no preset 'v4-1t'; the presets are: tiny, pocket"),
        ("schedule.name=linear", "there is no schedule 'linear'; the schedules are: 'constant', 'cosine'"),
        ("schedule.decay_share=0.1", "there is no key `schedule.decay_share`"),
        ("optimizer.lr=true", "`optimizer.lr` is True: it should be a valid number"),
        ("optimizer.lr=-1", "`optimizer.lr` is -1: it should be greater than 0"),
        ("optimizer.lr=inf", "`optimizer.lr` is inf: it should be a finite number"),
        ("optimizer.beta2=1", "`optimizer.beta2` is 1: it should be less than 1"),
        ("run.precision=float16", "`run.precision` is 'float16': it should be 'float32' or 'bfloat16'"),
        ("run.name=../up", "`run.name` is '../up'"),
        ("data.sources=[]", "`data.sources` is []: name at least one file"),
        (
            "data.sequence_length=4096",
            f"`data.sequence_length` is 4096, but the model has {POCKET.max_position_embeddings} positions",
        ),
        ("batch.ramp_from=9", "`batch.ramp_from` is 9 rows, but a full step has 8"),
        ("schedule.warmup_steps=11", "`schedule.warmup_steps` is 11, but the run has 10 steps"),
        ("optimizer=3", "write section.key=value"),
        ("optimizer.lr", "write section.key=value"),
        ("optimizer.lr.high=3", "`optimizer.lr` is {'high': 3}: it should be a valid number"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_would_fit(change: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(change)
    assert sentence in str(refused.value)


def test_a_run_needs_a_length() -> None:
    with pytest.raises(ConfigError, match=r"give `run\.steps`, or `run\.minutes`"):
        TrainConfig()
    assert TrainConfig(run={"minutes": 2.5}).run.minutes == 2.5


def test_a_warmup_has_one_length_and_steps_need_a_run_in_steps() -> None:
    with pytest.raises(ConfigError, match="one length is enough"):
        config("schedule.warmup_steps=1", "schedule.warmup_share=0.1")
    with pytest.raises(ConfigError, match="needs a run counted in steps") as refused:
        read_train_config(None, ["run.minutes=3", "schedule.warmup_steps=1"])
    assert "warmup_share" in str(refused.value.way_out)
    assert config("schedule.warmup_steps=2").warmup == 0.2
    assert config("schedule.warmup_share=0.3").warmup == 0.3
    assert config().warmup == 0.01


def test_an_object_made_in_python_raises_the_same_sentences() -> None:
    with pytest.raises(ConfigError, match=r"there is no key `optimizer\.betas`; did you mean 'beta2'"):
        OptimizerSettings(betas=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"`optimizer\.lr` is 'x'"):
        OptimizerSettings(lr="x")  # type: ignore[arg-type]
    assert isinstance(TrainConfig(run={"steps": 1}, optimizer=OptimizerSettings(lr=0.5)).optimizer.lr, float)


def test_gates_without_a_bias_want_speed_zero() -> None:
    v2 = ["model.preset=v2-lite-16b", "run.steps=1"]
    with pytest.raises(ConfigError, match="have no bias to move") as refused:
        read_train_config(None, v2)
    assert "balance.bias_speed = 0" in str(refused.value.way_out)
    assert read_train_config(None, [*v2, "balance.bias_speed=0"]).shape().scoring_func == "softmax"


def test_none_switches_off_what_may_be_absent_and_is_a_word_elsewhere() -> None:
    made = config("optimizer.clip=none", "model.q_lora_rank=none", "run.sample_prompt=none", "data.tokenizer=none")
    assert made.optimizer.clip is None
    assert made.shape().q_lora_rank is None
    assert made.run.sample_prompt == made.data.tokenizer == "none"
    with pytest.raises(ConfigError, match=r"`optimizer\.lr` is 'none'"):
        config("optimizer.lr=none")


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["schedule.name=wsd", "schedule.decay_share=0.3", "optimizer.clip=none", "run.eval_tokens=none"],
        ["schedule.name=cosine", "model.q_lora_rank=none", 'data.sources=["a", "b/*.txt"]', "batch.ramp_from=2"],
        ["schedule.name=constant", "schedule.warmup_steps=3", "model.eos_token_id=[1, 2]", "data.vocab_size=500"],
        ["model.rope_scaling={factor=4, original_max_position_embeddings=64}", 'run.sample_prompt="a = \\"b\\"\\n"'],
    ],
)
def test_what_is_written_is_what_is_read(changes: list[str], tmp_path: Path) -> None:
    made = config(*changes)
    path = tmp_path / "config.toml"
    path.write_text(made.toml(), encoding="utf-8")
    again = read_train_config(path)
    assert again == made
    assert again.fingerprint == made.fingerprint
    assert again.shape() == made.shape()
    assert config_difference(made.table(), again.table()) == []


def test_the_written_file_spells_out_every_key(tmp_path: Path) -> None:
    table = tomllib.loads(config().toml())
    assert table["schedule"] == {"name": "report"}
    assert table["optimizer"]["weight_decay"] == 0.1
    assert table["mtp"] == pytest.approx({"weight": 0.3, "later_weight": 0.1, "switch_share": 10 / 14.8})
    assert list(table) == list(TrainConfig.model_fields)


def test_changes_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[optimizer]\nlr = 0.1\nbeta1 = 0.5\n[run]\nsteps = 3\n[schedule]\nwarmup_share = 0.5\n")
    made = read_train_config(path, ["optimizer.lr=3e-4", "run.name=trial.2"])
    assert (made.optimizer.lr, made.optimizer.beta1, made.optimizer.beta2) == (3e-4, 0.5, 0.95)
    assert made.directory == Path("runs/trial.2")
    assert isinstance(made.schedule, ScheduleSettings)
    assert made.warmup == 0.5


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "No such file"), (b"[optimizer\n", "is not valid TOML"), (b"\xff\xfe", "it is not UTF-8 text")],
)
def test_an_unreadable_file_is_a_sentence(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read_train_config(path)
    assert sentence in refused.value.message
    assert str(path) in refused.value.message


def test_the_vocabulary_is_the_tokenizers_unless_the_model_says_more() -> None:
    assert config().shape().vocab_size == POCKET.vocab_size
    assert config("data.vocab_size=300").shape().vocab_size == 300
    assert config().shape(511).vocab_size == 511
    assert config("model.vocab_size=512").shape(511).vocab_size == 512
    with pytest.raises(ConfigError, match=r"`model\.vocab_size` is 500, but the tokenizer has 511 tokens"):
        config("model.vocab_size=500").shape(511)


def test_a_difference_names_each_key_with_both_values() -> None:
    one, other = config().table(), config("optimizer.lr=0.5", "data.limit_bytes=9", "schedule.name=constant").table()
    assert config_difference(one, other) == [
        "optimizer.lr: 0.001 -> 0.5",
        "schedule.name: report -> constant",
        "data.limit_bytes: (absent) -> 9",
    ]


def test_a_config_cannot_be_changed_in_place() -> None:
    made: Any = config()
    with pytest.raises(ValueError, match="frozen"):
        made.optimizer.lr = 1.0
