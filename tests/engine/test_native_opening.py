"""Opening a model directory natively: the same engine as from the model in memory, and FP8 kept to the bit."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cueva.checkpoint import CheckpointWarning, inventory, load_model, save_model
from cueva.checkpoint.fp8 import E4M3, dequantise, quantise
from cueva.config import ModelConfig, model_config
from cueva.engine.native import NativeModel, NativeRunner
from cueva.engine.native.opening import open_native
from cueva.kernels import native
from cueva.kernels.linear import PackedMatrix
from cueva.model import CausalLM
from tests.builders import tiny_model
from tests.checkpoint.folders import edit_config, edit_tensors, tensors_of
from tests.engine.native_models import (
    FORMATS,
    clear_model,
    forward,
    ids_for,
    poisoned_cache,
    relative_error,
    run_all,
    runner_of,
    settled,
)

pytestmark = pytest.mark.skipif(native.extension() is None, reason="the native kernels were not built")

PIECES = [(True, 20), (False, 1), (False, 19)]


def config_of(nope: int, value: int) -> ModelConfig:
    """Ragged FP8 blocks in every matrix: more than 128 rows or columns here and there, and multiples of it nowhere."""
    return model_config(
        "tiny",
        hidden_size=144,
        num_hidden_layers=2,
        kv_lora_rank=136,
        qk_nope_head_dim=nope,
        v_head_dim=value,
        num_nextn_predict_layers=2,
        moe_intermediate_size=40,
    )


def to_published_fp8(folder: Path, config: ModelConfig) -> None:
    """Rewrite a directory as published FP8 ones are, in blocks of 128 x 128.

    Codes stay below half of what a scale could hold, so quantising the numbers again would give other codes.
    """

    def change(tensors: dict[str, Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, entry in inventory(config).items():
            if entry.fp8:
                code_OI, scale_GJ = quantise(tensors[name].float(), block=(128, 128))
                tensors[name] = (code_OI.float() * 0.4).to(E4M3)
                scale_GJ = scale_GJ * (2.0 + torch.rand(scale_GJ.shape, generator=generator))
                tensors[f"{name}_scale_inv"] = scale_GJ
            elif not entry.is_router_bias:
                tensors[name] = tensors[name].bfloat16()

    edit_tensors(folder, change)
    edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})


def opened(folder: Path, weights: str, **options: Any) -> NativeRunner:
    return settled(open_native(folder, weights, threads=1, **options))


def logits_of(runner: NativeRunner, ids: Tensor) -> list[Tensor]:
    return run_all(runner, poisoned_cache(runner, len(ids)), ids, PIECES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", FORMATS)
def test_a_directory_gives_the_engine_that_the_model_gives(weights: str, dtype: str, tmp_path: Path) -> None:
    """To the bit, several files and MTP modules included; `zero_copy` where the files hold what is asked for."""
    model = tiny_model(num_nextn_predict_layers=2, attention_bias=True).to(getattr(torch, dtype))
    save_model(model, tmp_path / "m", max_shard_bytes=100_000)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    ids = ids_for(model.config, 40)
    for found, wanted in zip(
        logits_of(opened(tmp_path / "m", weights), ids), logits_of(runner_of(model, weights), ids), strict=True
    ):
        assert torch.equal(found, wanted)
    if (weights, dtype) in (("f32", "float32"), ("bf16", "bfloat16")):
        lying = opened(tmp_path / "m", weights, zero_copy=True)
        shutil.rmtree(tmp_path / "m")  # what is mapped stays
        for found, wanted in zip(
            logits_of(lying, ids), logits_of(runner_of(model, weights, zero_copy=True), ids), strict=True
        ):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_untied_ends_are_read_as_they_are(tied: bool, tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    save_model(model, tmp_path / "m")
    ids = ids_for(model.config, 40)
    for found, wanted in zip(logits_of(opened(tmp_path / "m", "f32"), ids), forward(model, ids), strict=True):
        assert relative_error(found, wanted) < 1e-5


def test_modules_with_ends_of_their_own_are_read_with_them(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "m")
    name = "model.layers.3.shared_head.head.weight"
    edit_tensors(tmp_path / "m", lambda tensors: tensors.update({name: tensors["lm_head.weight"].flip(0)}))
    with pytest.warns(CheckpointWarning, match="kept as that MTP module's own"):
        model = load_model(tmp_path / "m", dtype="float32")
    ids = ids_for(model.config, 40)
    for found, wanted in zip(logits_of(opened(tmp_path / "m", "f32"), ids), forward(model, ids), strict=True):
        assert relative_error(found, wanted) < 1e-5


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[PackedMatrix]:
    """Every matrix that a native model makes while the test runs."""
    made: list[PackedMatrix] = []
    new = NativeModel._new

    def remember(self: NativeModel, *arguments: Any, **options: Any) -> PackedMatrix:
        made.append(new(self, *arguments, **options))
        return made[-1]

    monkeypatch.setattr(NativeModel, "_new", remember)
    return made


def numbers_in(packed: list[PackedMatrix]) -> Iterator[Tensor]:
    """What they hold, matrix by matrix and part by part."""
    for one in packed:
        for index in range(one.count):
            tiles = one.unpack(index)
            if one.turns == 1:
                yield tiles
            else:
                for part in range(one.turns):
                    yield tiles.unflatten(0, (-1, 16))[part :: one.turns].flatten(0, 1)[: one.rows]


@pytest.mark.parametrize("widths", [(80, 48), (24, 20)], ids=["heads of whole blocks", "heads that cut blocks"])
def test_fp8_of_a_directory_is_kept_to_the_bit(
    widths: tuple[int, int], tmp_path: Path, packed: list[PackedMatrix]
) -> None:
    """Every FP8 tensor of the files is found among what was packed, head by head where attention is cut up."""
    config = config_of(*widths)
    model = clear_model(config, std=0.1)
    save_model(model, tmp_path / "m")
    to_published_fp8(tmp_path / "m", config)
    files = tensors_of(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]["weight_block_size"]
    runner = opened(tmp_path / "m", "fp8")

    held = list(numbers_in(packed))
    nope, value = widths
    checked = 0
    for name, entry in inventory(config).items():
        if not entry.fp8:
            continue
        whole = dequantise(files[name], files[f"{name}_scale_inv"], block=(128, 128), dtype=torch.float32)
        parts = [whole]
        if name.endswith("kv_b_proj.weight"):
            heads = whole.split(nope + value)
            parts = [part for head in heads for part in (head[:nope].T, head[nope:])]
        for part in parts:
            assert any(part.shape == one.shape and torch.equal(part, one) for one in held), name
            checked += 1
    assert checked > 50

    # And the step computes with them; what is left is the cache in bf16.
    ids = ids_for(config, 40)
    for found, wanted in zip(
        logits_of(runner, ids), forward(load_model(tmp_path / "m", dtype="float32"), ids), strict=True
    ):
        assert relative_error(found, wanted) < 0.02


@pytest.mark.parametrize("weights", ["f32", "bf16", "q8_0"])
def test_an_fp8_directory_may_be_held_in_other_formats(weights: str, tmp_path: Path) -> None:
    config = config_of(24, 20)
    save_model(clear_model(config, std=0.1), tmp_path / "m")
    to_published_fp8(tmp_path / "m", config)
    model: CausalLM = load_model(tmp_path / "m", dtype="float32")
    ids = ids_for(config, 40)
    for found, wanted in zip(
        logits_of(opened(tmp_path / "m", weights), ids), logits_of(runner_of(model, weights), ids), strict=True
    ):
        assert torch.equal(found, wanted)
