"""The public face: load, save, Engine, train, evaluate, quickstart, as a program calls them."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

import cueva
from cueva import api
from cueva.api.texts import run_text
from cueva.api.training import token_bytes
from cueva.config import model_config
from cueva.errors import CheckpointError, ConfigError, RequestError, TextError
from cueva.text import Tokenizer
from cueva.train import RunResult, TrainConfig
from tests.builders import random_ids, tiny_model
from tests.small_runs import WORDS, run_config


def test_the_face_is_what_the_documents_say() -> None:
    wanted = {"load", "save", "Engine", "Sampling", "train", "TrainConfig", "ModelConfig", "PRESETS", "CuevaError"}
    assert wanted <= set(cueva.__all__) <= set(dir(cueva))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        cueva.trian  # type: ignore[attr-defined]  # noqa: B018


def test_what_is_saved_is_loaded_again_to_the_last_bit(tmp_path: Path) -> None:
    built = tiny_model()
    cueva.save(built, tmp_path / "m")
    read = cueva.load(tmp_path / "m", dtype="float32", device="cpu")
    assert not read.training
    ids_BT = random_ids(built.config, 2, 9)
    assert torch.equal(read(ids_BT).logits, built(ids_BT).logits)
    assert [one.shape for one in read(ids_BT).mtp_logits] == [(2, 8, 320)]


def test_a_dtype_or_device_that_does_not_exist_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match="dtype is 'float8'"):
        cueva.load(model, dtype="float8")
    with pytest.raises(RequestError, match="no device 'tpu9'"):
        cueva.load(model, device="tpu9")


def test_saving_keeps_the_tokenizer_of_the_directory(model: Path, tmp_path: Path) -> None:
    read = cueva.load(model)
    cueva.save(read, tmp_path / "m", tokenizer=Tokenizer.load(model))
    before = (tmp_path / "m" / "tokenizer.json").read_bytes()
    cueva.save(read, tmp_path / "m")
    assert (tmp_path / "m" / "tokenizer.json").read_bytes() == before


def test_an_engine_of_a_path_equals_one_of_its_parts(model: Path) -> None:
    greedy = cueva.Sampling(max_new_tokens=8, temperature=0)
    whole = cueva.Engine(model)
    parts = cueva.Engine(cueva.load(model, dtype="float32"), Tokenizer.load(model))
    assert whole.runner.dtype == torch.float32, "as the weights are stored"
    assert whole.generate(["the"], greedy)[0].token_ids == parts.generate(["the"], greedy)[0].token_ids
    assert cueva.Engine(model, weights="bf16").runner.cache_dtype == torch.bfloat16


def test_an_engine_takes_its_defaults_from_the_directory(trained: RunResult) -> None:
    engine = cueva.Engine(trained.directory / "model")
    assert engine.defaults.settings.temperature == 0.8
    assert cueva.Engine(trained.directory / "model", generation={}).defaults.settings.temperature == 1.0


def test_an_engine_says_which_weights_it_has(model: Path) -> None:
    with pytest.raises(RequestError, match="native kernels only"):
        cueva.Engine(model, weights="q8_0", backend="torch")
    with pytest.raises(RequestError, match="'bf17'; did you mean 'bf16'"):
        cueva.Engine(model, weights="bf17")


def test_a_path_that_holds_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model directory"):
        cueva.Engine(tmp_path / "absent")


def test_training_makes_a_model_that_transformers_and_cueva_open(trained: RunResult) -> None:
    read = cueva.load(trained.directory / "model", dtype="float32")
    assert trained.loss is not None
    assert math.isfinite(trained.loss)
    tokenizer = Tokenizer.load(trained.directory / "model")
    assert read.config.vocab_size == tokenizer.size == 300
    assert read.config.eos_token_ids == tokenizer.eos_ids
    records = [json.loads(line) for line in (trained.directory / "metrics.jsonl").read_text().splitlines()]
    kinds = {record["kind"] for record in records}
    assert {"step", "eval", "load", "sample"} <= kinds
    report = (trained.directory / "report.html").read_text(encoding="utf-8")
    assert '"trace":null' not in report, "a traced text is part of the report"


def test_a_run_in_two_parts_repeats_the_losses_of_one(texts: Path, tmp_path: Path) -> None:
    """The second part finds its text, tokenizer and state where the first left them."""
    whole = cueva.train(run_config(texts, tmp_path, "whole", save_every=2, sample_every=0))

    class EnoughError(Exception):
        pass

    class StopsAfterTwo(api.training.Silence):  # type: ignore[name-defined]
        def saved(self, step: int) -> None:
            raise EnoughError

    config = run_config(texts, tmp_path, "parts", save_every=2, sample_every=0)
    with pytest.raises(EnoughError):
        cueva.train(config, display=StopsAfterTwo())
    parts = cueva.train(config)
    assert parts.loss == whole.loss
    first, second = (dict(cueva.load(run.directory / "model", "float32").named_parameters()) for run in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_changed_text_is_refused_and_taken_by_force(tmp_path: Path) -> None:
    source = tmp_path / "text"
    source.mkdir()
    for number in range(6):
        (source / f"{number}.txt").write_text(WORDS * 6)
    config = run_config(source, tmp_path, sample_every=0)
    cueva.train(config)
    (source / "0.txt").write_text(WORDS * 7)
    with pytest.raises(TextError, match=r"0\.txt"):
        cueva.train(config)
    longer = config.model_copy(update={"run": config.run.model_copy(update={"steps": 5})})
    assert cueva.train(longer, force=True).step == 5


def test_a_published_tokenizer_is_taken_as_it_is(model: Path, texts: Path, tmp_path: Path) -> None:
    config = run_config(texts, tmp_path)
    data = config.data.model_copy(update={"tokenizer": str(model), "vocab_size": None})
    text = run_text(config.model_copy(update={"data": data}))
    assert text.tokenizer.fingerprint == Tokenizer.load(model).fingerprint


def test_limit_bytes_reads_no_more_text(texts: Path, tmp_path: Path) -> None:
    everything = run_text(run_config(texts, tmp_path, "all"))
    config = run_config(texts, tmp_path, "some")
    data = config.data.model_copy(update={"limit_bytes": 3000})
    some = run_text(config.model_copy(update={"data": data}))
    held = some.held_out.shards.bytes if some.held_out else 0
    assert 0 < some.train.shards.bytes + held <= 3000 < everything.train.shards.bytes  # type: ignore[attr-defined]


def test_token_bytes_count_text_and_nothing_else(tokenizer: Tokenizer) -> None:
    sizes = token_bytes(tokenizer, 320)
    text = "the river sings"
    ids = tokenizer.encode(text)
    assert int(sizes[ids].sum()) == len(text.encode())
    assert sizes.shape == (320,)
    assert int(sizes[list(tokenizer.eos_ids)].sum()) == int(sizes[tokenizer.size :].sum()) == 0


def test_a_plan_needs_no_text_and_writes_nothing(tmp_path: Path) -> None:
    config = TrainConfig(model={"preset": "pocket"}, run={"steps": 10, "folder": str(tmp_path)})
    facts = api.plan(config)
    assert facts["parameters"] == model_config("pocket").parameters()
    assert facts["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_mtp_or_experts_trains_and_writes(texts: Path, tmp_path: Path) -> None:
    config = run_config(texts, tmp_path)
    shape = {
        "preset": "tiny",
        "num_nextn_predict_layers": 0,
        "n_routed_experts": "none",
        "max_position_embeddings": 128,
    }
    bare = TrainConfig(**{**config.table(), "model": shape, "balance": {"bias_speed": 0.0, "sequence_loss": 0.0}})
    done = cueva.train(bare)
    answer = cueva.Engine(done.directory / "model").generate(["the"], cueva.Sampling(max_new_tokens=4, seed=1))[0]
    assert answer.stats.drafted == ()


def test_scores_add_up_over_documents(trained: RunResult, texts: Path) -> None:
    """Nats of two documents together are those of each alone: no document sees another."""
    path = trained.directory / "model"
    both = cueva.evaluate(path, [str(texts / "1.txt"), str(texts / "2.txt")])
    alone = [cueva.evaluate(path, [str(texts / name)]) for name in ("1.txt", "2.txt")]
    assert both.tokens == sum(one.tokens for one in alone)
    assert both.loss * both.tokens == pytest.approx(sum(one.loss * one.tokens for one in alone), rel=1e-5)
    assert dataclasses.asdict(both)["documents"] == 2


def test_a_score_tells_how_it_goes_on(trained: RunResult, texts: Path) -> None:
    seen: list[tuple[str, str, float, float | None]] = []
    path = trained.directory / "model"
    cueva.evaluate(path, [str(texts)], length=32, watch=lambda *told: seen.append(told))
    assert seen[-1][2] == seen[-1][3]
    assert [told[2] for told in seen] == sorted(told[2] for told in seen)


def test_no_held_out_document_is_a_sentence(trained: RunResult, texts: Path) -> None:
    with pytest.raises(TextError, match="no document of this text is held out with a share of 0"):
        cueva.evaluate(trained.directory / "model", [str(texts)], held_out_share=0.0)


def test_a_quickstart_can_be_called_again(texts: Path, tmp_path: Path) -> None:
    options = {"steps": 3, "preset": "tiny", "sources": (str(texts),)}
    done = api.quickstart(tmp_path / "q", **options)  # type: ignore[arg-type]
    assert not done.before
    facts = done.facts
    assert facts["steps"] == 3
    assert [sample["prompt"] for sample in facts["samples"]] == ["import ", "def ", "class "]
    assert facts["drafting"]["greedy_text_is_the_same"]
    assert facts["max_vio"] >= 0
    assert Path(facts["report"]).is_file()
    again = api.quickstart(tmp_path / "q", **options)  # type: ignore[arg-type]
    assert again.before
    assert again.facts == facts
    with pytest.raises(ConfigError, match=r"run\.seed: 0 -> 1"):
        api.quickstart(tmp_path / "q", seed=1, **options)  # type: ignore[arg-type]
