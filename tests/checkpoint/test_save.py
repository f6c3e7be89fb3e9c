import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cueva import files
from cueva.checkpoint import (
    CheckpointWarning,
    directory,
    inventory,
    load,
    load_model,
    read_model_info,
    save,
    save_model,
)
from cueva.checkpoint import safetensors_write as writing
from cueva.errors import CheckpointError, ConfigError
from cueva.model import CausalLM
from tests.builders import tiny_model
from tests.checkpoint.disks import dies, fill_up, kill_me, make_read_only, small_disk
from tests.checkpoint.folders import assert_same_model, no_warnings, tensors_of


class PaperTokenizer:
    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("new")


def loaded(folder: Path) -> CausalLM:
    return load_model(folder, dtype="float32")


# --- what is on disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depths", [0, 1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_names_on_disk_are_those_of_the_inventory(tmp_path: Path, depths: int, tied: bool) -> None:
    """With any number of layers and depths: no literal 61 anywhere."""
    model = tiny_model(num_nextn_predict_layers=depths, tie_word_embeddings=tied)
    save_model(model, tmp_path / "m")
    on_disk = tensors_of(tmp_path / "m")
    expected = inventory(model.config)
    assert sorted(on_disk) == sorted(expected)
    assert {name: tuple(t.shape) for name, t in on_disk.items()} == {name: e.shape for name, e in expected.items()}
    assert ("lm_head.weight" in on_disk) == (not tied)
    with no_warnings():
        assert_same_model(loaded(tmp_path / "m"), model)


@pytest.mark.parametrize("tied", [False, True])
def test_copies_of_every_depth_equal_the_originals_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    """An engine that loads an MTP module's embedding and head from these names drafts nothing useful without them."""
    model = tiny_model(num_nextn_predict_layers=2, tie_word_embeddings=tied)
    save_model(model, tmp_path / "m", dtype="bfloat16")
    on_disk = tensors_of(tmp_path / "m")
    embedding = on_disk["model.embed_tokens.weight"]
    head = embedding if tied else on_disk["lm_head.weight"]
    for layer in (3, 4):
        assert torch.equal(on_disk[f"model.layers.{layer}.embed_tokens.weight"], embedding)
        assert torch.equal(on_disk[f"model.layers.{layer}.shared_head.head.weight"], head)


def test_shards_are_written_in_the_size_asked_for(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(model, tmp_path / "m", max_shard_bytes=100_000)
    files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    with no_warnings():
        assert_same_model(loaded(tmp_path / "m"), model)
    save_model(model, tmp_path / "m")
    assert [path.name for path in (tmp_path / "m").glob("*.safetensors*")] == ["model.safetensors"]
    with pytest.raises(ConfigError, match="max_shard_bytes is 0"):
        save_model(model, tmp_path / "m", max_shard_bytes=0)


def test_the_bias_stays_float32_and_the_gate_loses_nothing(tmp_path: Path) -> None:
    model = tiny_model()
    gates = dict(model.gates())
    rounded, exact = "model.layers.1.mlp.gate", "model.layers.2.mlp.gate"
    with torch.no_grad():
        gates[rounded].weight.copy_(gates[rounded].weight.bfloat16().float())
    save_model(model.to(torch.bfloat16), tmp_path / "m")
    on_disk = tensors_of(tmp_path / "m")
    assert on_disk[f"{rounded}.weight"].dtype is torch.bfloat16, "as in published files, where that loses nothing"
    assert on_disk[f"{exact}.weight"].dtype is torch.float32, "a trained router keeps its choices"
    assert on_disk[f"{exact}.e_score_correction_bias"].dtype is torch.float32
    assert on_disk["lm_head.weight"].dtype is torch.bfloat16
    assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    with no_warnings():
        assert_same_model(load_model(tmp_path / "m"), model)


def test_a_bias_survives_steps_and_a_round_trip(tmp_path: Path) -> None:
    """Two thousand steps of 0.001 in a model cast to bfloat16 add up to two, on disk too."""
    model = tiny_model().to(torch.bfloat16)
    for _, gate in model.gates():
        assert gate.e_score_correction_bias is not None
        gate.e_score_correction_bias.zero_()
        for _ in range(2000):
            gate.e_score_correction_bias += 0.001
    save_model(model, tmp_path / "m")
    for name, gate in load_model(tmp_path / "m").gates():
        bias_E = gate.e_score_correction_bias
        assert bias_E is not None
        assert torch.allclose(bias_E, torch.full_like(bias_E, 2.0), atol=1e-3), name


def test_another_dtype_may_be_asked_for(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(model, tmp_path / "m", dtype=torch.float16)
    info = read_model_info(tmp_path / "m")
    assert set(info.dtype_tensors) == {"float16", "float32"}
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    with pytest.raises(CheckpointError, match=r"model.norm.weight holds values that float16 cannot"):
        save_model(model, tmp_path / "m", dtype="float16")
    assert read_model_info(tmp_path / "m") == info


def test_a_generation_config_is_written_kept_or_replaced(tmp_path: Path) -> None:
    file = tmp_path / "m" / "generation_config.json"
    model = tiny_model(eos_token_id=(1, 7))
    save_model(model, tmp_path / "m")
    assert json.loads(file.read_text()) == {"bos_token_id": 0, "eos_token_id": [1, 7]}
    save_model(model, tmp_path / "m", generation={"temperature": 0.6})
    assert json.loads(file.read_text()) == {"temperature": 0.6}
    save_model(model, tmp_path / "m")
    assert json.loads(file.read_text()) == {"temperature": 0.6}


def test_kept_keys_of_a_published_config_are_written_back(tmp_path: Path) -> None:
    model = tiny_model(other={"ep_size": 1, "my_note": "x"})
    save_model(model, tmp_path / "m")
    with pytest.warns(CheckpointWarning, match="my_note"):
        assert loaded(tmp_path / "m").config == model.config


# --- the directory that was there before ------------------------------------------------------------------------------


def test_saving_onto_the_directory_a_model_is_mapped_from_works(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "m")
    model = loaded(tmp_path / "m")
    with torch.no_grad():
        model.model.norm.weight += 1  # a mapped page, now a private one
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path / "m")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "the mapping lives on"
    assert_same_model(loaded(tmp_path / "m"), model)
    save_model(model, tmp_path / "m")
    assert_same_model(loaded(tmp_path / "m"), model)


def test_a_tokenizer_and_a_readme_stay_and_stale_weights_go(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "m", max_shard_bytes=100_000)
    for name in ("tokenizer.json", "README.md", "pytorch_model.bin", "chat_template.jinja"):
        (tmp_path / "m" / name).write_text("old")
    (tmp_path / "m" / "figures").mkdir()
    (tmp_path / "m" / "figures" / "a.png").write_text("old")
    (tmp_path / "m" / "vocab.json").symlink_to("README.md")
    save_model(tiny_model(), tmp_path / "m")
    left = {"README.md", "chat_template.jinja", "config.json", "figures", "generation_config.json"}
    assert set(os.listdir(tmp_path / "m")) == left | {"model.safetensors", "tokenizer.json", "vocab.json"}
    assert (tmp_path / "m" / "figures" / "a.png").read_text() == "old"
    save_model(tiny_model(), tmp_path / "m", tokenizer=PaperTokenizer())
    assert set(os.listdir(tmp_path / "m")) == (left | {"model.safetensors", "tokenizer.json"}) - {"chat_template.jinja"}
    assert (tmp_path / "m" / "tokenizer.json").read_text() == "new", "parts of two tokenizers never mix"


def test_a_folder_that_is_no_model_directory_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="it is no model directory"):
        save_model(tiny_model(), tmp_path / "home")
    assert os.listdir(tmp_path / "home") == ["letters.txt"]
    (tmp_path / "empty").mkdir()
    save_model(tiny_model(), tmp_path / "empty")


def test_a_failing_tokenizer_leaves_the_old_directory(tmp_path: Path) -> None:
    class Broken:
        def save(self, folder: Path) -> None:
            raise RuntimeError("mine")

    save_model(tiny_model(), tmp_path / "m")
    with pytest.raises(RuntimeError, match="mine"):
        save_model(tiny_model(seed=5), tmp_path / "m", tokenizer=Broken())
    assert_same_model(loaded(tmp_path / "m"), tiny_model())
    assert os.listdir(tmp_path) == ["m"]


# --- disks and kills --------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_is_refused_beforehand_and_nothing_is_lost(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        save_model(tiny_model(), disk / "m")
        fill_up(disk, 200_000)
        with pytest.raises(
            CheckpointError, match=r"no room to write .*m: it needs [\d,]+ bytes and its disk has [\d,]+"
        ):
            save_model(tiny_model(seed=5), disk / "m")
        assert sorted(os.listdir(disk)) == ["filler", "m"]
        assert_same_model(loaded(disk / "m"), tiny_model())


def test_a_disk_that_fills_up_meanwhile_is_a_sentence_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        save_model(tiny_model(), disk / "m")
        monkeypatch.setattr(files, "require_space", lambda *_: None)
        fill_up(disk, 200_000)
        with pytest.raises(CheckpointError, match="no room to write"):
            save_model(tiny_model(seed=5), disk / "m")
        assert sorted(os.listdir(disk)) == ["filler", "m"]
        assert_same_model(loaded(disk / "m"), tiny_model())


def test_a_read_only_disk_is_a_sentence_and_the_model_there_still_opens(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        save_model(tiny_model(), disk / "m")
        make_read_only(disk)
        with pytest.raises(CheckpointError, match="read-only"):
            save_model(tiny_model(seed=5), disk / "m")
        with pytest.raises(CheckpointError, match="read-only"):
            save_model(tiny_model(seed=5), disk / "other")
        assert_same_model(loaded(disk / "m"), tiny_model())


@pytest.mark.parametrize("moment", ["a tensor", "the config", "the exchange", "the clean-up"])
def test_a_save_that_is_killed_leaves_a_directory_that_opens(tmp_path: Path, moment: str) -> None:
    save_model(tiny_model(), tmp_path / "m")
    model = tiny_model(seed=5)

    def act() -> None:
        if moment == "a tensor":
            original = writing._split

            def split(*args: Any) -> Any:
                shards = original(*args)
                shards[0][40] = writing.TensorToWrite("x", torch.float32, (1,), kill_me)  # pyright: ignore
                return shards

            writing._split = split
        elif moment == "the config":
            save.write_config = kill_me
        elif moment == "the exchange":
            files._exchange = kill_me
        else:
            shutil.rmtree = kill_me
        save_model(model, tmp_path / "m")

    dies(act)
    with no_warnings():
        assert_same_model(loaded(tmp_path / "m"), model if moment == "the clean-up" else tiny_model())
    save_model(model, tmp_path / "m")
    assert_same_model(loaded(tmp_path / "m"), model)
    assert os.listdir(tmp_path) == ["m"], "what the killed save left is gone"


def test_a_directory_that_a_killed_save_had_renamed_aside_is_brought_back(tmp_path: Path) -> None:
    """Where two folders cannot be exchanged in one step there is a moment without one; the next reader ends it."""
    save_model(tiny_model(), tmp_path / "m")
    os.rename(tmp_path / "m", tmp_path / ".m.cueva-old-99999999-abcd")
    assert_same_model(loaded(tmp_path / "m"), tiny_model())
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("moment", ["after the config", "after the headers"])
def test_a_reader_never_mixes_two_saves(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process saves while this one reads: the model is the old one or the new one, never parts of both."""
    save_model(tiny_model(), tmp_path / "m", max_shard_bytes=100_000)
    new = tiny_model(seed=5)
    place, name = (directory, "read_config_file") if moment == "after the config" else (load, "_fill")
    original = getattr(place, name)

    def saved_meanwhile(*args: Any) -> Any:
        result = original(*args) if moment == "after the config" else None
        monkeypatch.undo()
        save_model(new, tmp_path / "m", max_shard_bytes=100_000)
        return original(*args) if result is None else result

    monkeypatch.setattr(place, name, saved_meanwhile)
    assert_same_model(loaded(tmp_path / "m"), new if moment == "after the config" else tiny_model())


# --- models that others will not reproduce, or that no file can hold --------------------------------------------------


def test_an_ablation_is_saved_with_a_warning_that_says_why_and_opens_here(tmp_path: Path) -> None:
    model = tiny_model(scoring_func="softmax", topk_method="group_limited_greedy")
    with pytest.warns(CheckpointWarning) as caught:
        save_model(model, tmp_path / "m")
    texts = [str(warning.message) for warning in caught]
    assert any("other tools will not reproduce" in t and "`scoring_func` is 'softmax'" in t for t in texts)
    assert any("`topk_method` is 'group_limited_greedy'" in t for t in texts)
    assert caught[0].filename == __file__
    assert_same_model(loaded(tmp_path / "m"), model)
    assert len(read_model_info(tmp_path / "m").departures) == 2


def test_a_model_without_experts_is_saved_with_a_warning(tmp_path: Path) -> None:
    model = tiny_model(n_routed_experts=None)
    with pytest.warns(CheckpointWarning, match="`n_routed_experts` is null"):
        save_model(model, tmp_path / "m")
    assert_same_model(loaded(tmp_path / "m"), model)


def test_parameters_that_the_format_has_no_name_for_are_named(tmp_path: Path) -> None:
    model = tiny_model()
    model.model.layers[0].register_parameter("lora", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(CheckpointError, match=r"no name for 1 of the model's tensors: model.layers.0.lora"):
        save_model(model, tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_a_model_that_was_never_filled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="never filled"):
        save_model(tiny_model().to("meta"), tmp_path / "m")
