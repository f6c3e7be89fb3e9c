"""Training state: what comes back, what is noticed, what is kept."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from cueva.errors import CheckpointError
from cueva.model import CausalLM
from cueva.train import Place, build_optimizer, load_state, prune_states, save_state, saved_states, training_step
from cueva.train.settings import OptimizerSettings
from cueva.train.state import damage_of, read_place
from tests.train.harness import dials_of, fresh_model, packed_batch, tiny_config


def trained(steps: int = 3, **model: Any) -> tuple[CausalLM, torch.optim.AdamW]:
    model_ = fresh_model(tiny_config("unused", model=model))
    optimizer = build_optimizer(model_, OptimizerSettings(lr=0.01))
    go_on(model_, optimizer, steps)
    return model_, optimizer


def go_on(model: CausalLM, optimizer: torch.optim.AdamW, steps: int) -> list[float]:
    dials = dials_of(lr=0.01, bias_speed=0.01, sequence_loss=0.001)
    return [training_step(model, optimizer, [packed_batch(seed=n)], dials).loss for n in range(steps)]


@pytest.mark.parametrize("tied", [False, True])
def test_a_loaded_state_continues_with_the_same_bits(tmp_path: Path, tied: bool) -> None:
    model, optimizer = trained(tie_word_embeddings=tied)
    place = Place(step=3, row=12, tokens=99, seconds=math.pi, bits_per_byte=1 / 3, config_fingerprint="c", torch="t")
    folder = save_state(tmp_path, model, optimizer, place)
    torch.rand(1)
    random_state = torch.get_rng_state()
    expected = go_on(model, optimizer, 3)

    other, other_optimizer = trained(0, tie_word_embeddings=tied)
    assert load_state(folder, other, other_optimizer) == place
    assert not torch.equal(torch.get_rng_state(), random_state)
    torch.rand(1)
    assert torch.equal(torch.get_rng_state(), random_state), "the random generator is where it was when saving"
    assert go_on(other, other_optimizer, 3) == expected
    for (name, one), (_, two) in zip(
        [*model.named_parameters(), *model.named_buffers()],
        [*other.named_parameters(), *other.named_buffers()],
        strict=True,
    ):
        assert torch.equal(one, two), name


def test_the_saved_bias_is_the_live_one_by_name_and_not_zero(tmp_path: Path) -> None:
    model, optimizer = trained()
    folder = save_state(tmp_path, model, optimizer, Place(step=3))
    with safe_open(folder / "weights.safetensors", framework="pt") as file:
        for name, gate in model.gates():
            saved = file.get_tensor(f"{name}.e_score_correction_bias")
            assert gate.e_score_correction_bias is not None
            assert torch.equal(saved, gate.e_score_correction_bias)
            assert float(saved.abs().max()) > 0


def test_a_state_is_plain_tensors_and_json_with_every_name_spelled_out(tmp_path: Path) -> None:
    model, optimizer = trained()
    folder = save_state(tmp_path, model, optimizer, Place(step=3))
    names = {"weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    with safe_open(folder / "optimizer.safetensors", framework="pt") as file:
        expected = {f"{m}.{n}" for n, _ in model.named_parameters() for m in ("exp_avg", "exp_avg_sq", "step")}
        assert set(file.keys()) == expected
        assert float(file.get_tensor("step.lm_head.weight")) == 3
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == names - {"manifest.json"}


@pytest.mark.parametrize(
    ("file", "harm", "complaint"),
    [
        ("weights.safetensors", "flip", "the content of weights.safetensors is not what was written"),
        ("optimizer.safetensors", "cut", "optimizer.safetensors has"),
        ("random.safetensors", "delete", "random.safetensors is missing"),
        ("state.json", "cut", "state.json has"),
        ("manifest.json", "delete", "manifest.json is missing"),
        ("manifest.json", "cut", "manifest.json cannot be read"),
    ],
)
def test_damage_is_found_and_named(tmp_path: Path, file: str, harm: str, complaint: str) -> None:
    model, optimizer = trained(1)
    folder = save_state(tmp_path, model, optimizer, Place(step=1))
    assert damage_of(folder) is None
    hurt(folder / file, harm)
    assert complaint in str(damage_of(folder))
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_state(folder, model, optimizer)


def hurt(path: Path, harm: str) -> None:
    if harm == "delete":
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(content[:-9])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"hidden_size": 32}, "is torch.float32"), ({"num_hidden_layers": 3}, "belongs to a model of another shape")],
)
def test_a_state_of_another_shape_is_refused_by_the_name_of_a_tensor(
    tmp_path: Path, change: dict[str, int], complaint: str
) -> None:
    model, optimizer = trained(1)
    folder = save_state(tmp_path, model, optimizer, Place(step=1))
    other = fresh_model(tiny_config("unused", model=change))
    with pytest.raises(CheckpointError, match=complaint) as refused:
        load_state(folder, other, build_optimizer(other, OptimizerSettings()))
    assert "`" in refused.value.message
    assert refused.value.way_out is not None


def test_the_latest_the_best_and_every_kth_are_kept(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    bits = [3.0, 2.9, 1.5, None, 2.0, 2.5, 2.6, 2.7, 2.8]
    gone: list[str] = []
    for save, value in enumerate(bits, start=1):
        save_state(tmp_path, model, optimizer, Place(step=10 * save, saves=save, bits_per_byte=value))
        gone += [path.name for path in prune_states(tmp_path, keep_last=2, keep_every=4)]
    kept = [path.name for path in saved_states(tmp_path)]
    assert kept == ["step-90", "step-80", "step-40", "step-30"]  # two latest; the 4th (and 8th) saved; the best
    assert sorted(kept + gone) == sorted(f"step-{10 * save}" for save in range(1, 10))
    assert read_place(tmp_path / "state" / "step-30").bits_per_byte == 1.5


def test_states_are_ordered_by_number_and_strangers_are_no_states(tmp_path: Path) -> None:
    for name in ("step-9", "step-100", "step-20", "step-x", ".step-300.cueva-new-1-abcd", "notes"):
        (tmp_path / "state" / name).mkdir(parents=True)
    assert [path.name for path in saved_states(tmp_path)] == ["step-100", "step-20", "step-9"]
    assert saved_states(tmp_path / "nowhere") == []


def test_a_parameter_that_never_had_a_gradient_is_saved_as_if_it_had_just_begun(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    folder = save_state(tmp_path, model, optimizer, Place())
    other, other_optimizer = trained(2)
    load_state(folder, other, other_optimizer)
    assert go_on(other, other_optimizer, 2) == go_on(model, optimizer, 2)
