"""What a model directory holds, told without loading it: counts that add up, and whatever is unusual by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cueva.checkpoint import save_model
from cueva.errors import CheckpointError
from cueva.model import CausalLM
from cueva.study import format_inspection, inspect_model
from cueva.text import Tokenizer
from tests.builders import tiny_model


def saved(folder: Path, **changes: Any) -> tuple[Path, CausalLM]:
    model = tiny_model(**changes)
    save_model(model, folder)
    return folder, model


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config), encoding="utf-8")


def test_counts_are_those_of_the_model_itself(tmp_path: Path) -> None:
    folder, model = saved(tmp_path / "m", num_nextn_predict_layers=2)
    facts = inspect_model(folder)
    parameters = sum(p.numel() for p in model.parameters())
    assert facts["parameters"]["total"] + facts["parameters"]["mtp"] == parameters
    assert facts["parameters"]["active"] < facts["parameters"]["total"]
    assert facts["mtp"] == {"modules": 2, "differing_copies": []}
    assert facts["cache"]["bytes_per_token"] == 2 * 3 * (16 + 8)
    assert facts["cache"]["times_smaller"] == pytest.approx(2 * (24 + 16) / (16 + 8), abs=0.01)
    files = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert (facts["disk"]["files"], facts["disk"]["file_bytes"]) == (len(files), sum(files))
    assert sum(part["tensors"] for part in facts["disk"]["dtypes"].values()) == facts["disk"]["tensors"]
    assert json.loads(json.dumps(facts)) == facts


def test_the_words_name_everything_that_matters(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "m")
    text = format_inspection(inspect_model(folder))
    for words in (
        "deepseek_v3, 3 layers (1 dense, 2 with experts)",
        "2 heads, query latent 24, key/value latent 16; a head is 16 + 8 rotary wide, its value 16",
        "2 of 8 experts of width 16, 2 of 4 groups, 1 shared, sigmoid scores, noaux_tc",
        "1 module of",
        "144 bytes per token in bf16, 3.3 times less than expanded keys and values (480)",
        "256 positions; a full one caches 36.0 KiB",
        "there is no tokenizer.json: prompts must be given as token ids",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) < 180


def test_keys_that_nobody_knows_are_kept_and_listed(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "m")
    edit(folder, colour_of_the_cave="blue", auto_map={"AutoModel": "x.y"})
    facts = inspect_model(folder)
    assert "colour_of_the_cave" in facts["keys"]["unknown"]
    assert "auto_map" in facts["keys"]["dropped"]
    text = format_inspection(facts)
    assert "colour_of_the_cave: not known to cueva, kept" in text
    assert "auto_map: not written back" in text


def test_mtp_modules_promised_but_absent_are_unusual(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "m", num_nextn_predict_layers=0)
    edit(folder, num_nextn_predict_layers=1)
    facts = inspect_model(folder)
    assert facts["mtp"]["modules"] == 0
    assert any("promises 1 MTP module" in sentence for sentence in facts["warnings"])
    assert "no modules: this model cannot draft" in format_inspection(facts)


def test_copies_that_differ_are_named(tmp_path: Path) -> None:
    model = tiny_model()
    module = model.mtp_modules[0]
    module.shared_head.head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
    save_model(model, tmp_path / "m")
    facts = inspect_model(tmp_path / "m")
    assert len(facts["mtp"]["differing_copies"]) == 1
    assert "shared_head.head" in facts["mtp"]["differing_copies"][0]
    assert "is not the copy that it is in other files" in format_inspection(facts)
    assert inspect_model(tmp_path / "m", compare_copies=False)["mtp"]["differing_copies"] == []


def test_a_generation_config_is_shown(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.95}', encoding="utf-8")
    assert "temperature 0.6, top_p 0.95" in format_inspection(inspect_model(folder))
    (folder / "generation_config.json").write_text("damaged", encoding="utf-8")
    assert inspect_model(folder)["generation"] is None


def test_a_directory_that_cannot_be_loaded_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no model directory"):
        inspect_model(tmp_path / "nowhere")
    folder, _ = saved(tmp_path / "m")
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=shard.name):
        inspect_model(folder)


def test_the_tokenizer_is_held_against_the_rows_of_the_model(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["def f(x):\n    return x\n" * 50], vocab_size=280)
    model = tiny_model()
    save_model(model, tmp_path / "fits", tokenizer=tokenizer)
    facts = inspect_model(tmp_path / "fits")
    assert facts["tokenizer"]["size"] == tokenizer.size
    assert facts["tokenizer"]["unused_rows"] == model.config.vocab_size - tokenizer.size
    assert "280 tokens for 320 rows, 40 rows of the model unused, with a chat template" in format_inspection(facts)
    small = tmp_path / "small"
    save_model(tiny_model(vocab_size=270), small)
    tokenizer.save(small)
    assert any("the tokenizer knows 280 tokens" in sentence for sentence in inspect_model(small)["warnings"])
    (small / "tokenizer.json").write_text("{}", encoding="utf-8")
    damaged = inspect_model(small)
    assert damaged["tokenizer"]["present"] is False
    assert any(sentence.startswith("the tokenizer cannot be used: ") for sentence in damaged["warnings"])
