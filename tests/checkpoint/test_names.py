import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from safetensors import safe_open

from cueva.checkpoint import TensorEntry, config_dict, inventory
from cueva.checkpoint.names import EMBEDDING, HEAD, scale_shape
from cueva.config import PRESETS, ModelConfig, model_config
from cueva.model import CausalLM
from tests.strategies import model_shapes


@functools.cache
def of_671b() -> dict[str, TensorEntry]:
    return inventory(PRESETS["v3-671b"])


def values(config: ModelConfig) -> int:
    return sum(math.prod(entry.shape) for entry in inventory(config).values())


def test_the_671b_model_has_the_published_tensors() -> None:
    """Counts and bytes of the released FP8 files, and of their dequantised form."""
    entries = of_671b()
    scales = {name: scale_shape(entry.shape, (128, 128)) for name, entry in entries.items() if entry.fp8}
    assert len(entries) == 46_183
    assert len(entries) + len(scales) == 91_991
    assert values(PRESETS["v3-671b"]) == 684_489_845_504
    total = 0
    for entry in entries.values():
        size = 1 if entry.fp8 else 4 if entry.is_router_bias else 2
        total += size * math.prod(entry.shape)
    total += sum(4 * math.prod(shape) for shape in scales.values())
    assert total == 688_574_839_360


@pytest.mark.parametrize(("layer", "tensors"), [(0, 20), (2, 20), (3, 1558), (60, 1558), (61, 1564)])
def test_layers_of_the_671b_files_hold_what_was_published(layer: int, tensors: int) -> None:
    """Scales counted: dense layers 20, expert layers 1,558, and six more in the MTP layer."""
    entries = [e for name, e in of_671b().items() if name.startswith(f"model.layers.{layer}.")]
    assert sum(1 + entry.fp8 for entry in entries) == tensors


@pytest.mark.parametrize(
    ("name", "shape", "scales"),
    [
        ("self_attn.q_a_proj", (1536, 7168), (12, 56)),
        ("self_attn.q_b_proj", (24576, 1536), (192, 12)),
        ("self_attn.kv_a_proj_with_mqa", (576, 7168), (5, 56)),
        ("self_attn.kv_b_proj", (32768, 512), (256, 4)),
        ("self_attn.o_proj", (7168, 16384), (56, 128)),
        ("mlp.experts.255.gate_proj", (2048, 7168), (16, 56)),
        ("mlp.experts.0.down_proj", (7168, 2048), (56, 16)),
        ("mlp.shared_experts.up_proj", (2048, 7168), (16, 56)),
    ],
)
def test_scale_grids_are_the_published_ones(name: str, shape: tuple[int, int], scales: tuple[int, int]) -> None:
    entry = of_671b()[f"model.layers.10.{name}.weight"]
    assert entry.shape == shape
    assert entry.fp8
    assert scale_shape(shape, (128, 128)) == scales


def test_what_the_fp8_files_keep_plain() -> None:
    plain = {name for name, entry in of_671b().items() if not entry.fp8}
    kinds = ("norm", "mlp.gate.", "eh_proj", "embed_tokens", "head")
    assert all(any(kind in name for kind in kinds) for name in plain)
    assert not any(".experts." in name or "_experts." in name or "self_attn.o_proj" in name for name in plain)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_values_add_up_to_the_parameters_of_the_config(preset: str) -> None:
    config = PRESETS[preset]
    depths, vocabulary = config.num_nextn_predict_layers, config.vocab_size * config.hidden_size
    gates = config.gate_count if config.has_router_bias else 0
    expected = config.parameters() + depths * (config.mtp_parameters() + 2 * vocabulary)
    assert values(config) == expected + gates * (config.n_routed_experts or 0)


@settings(max_examples=30)
@given(config=model_shapes())
def test_disk_and_memory_hold_each_value_exactly_once(config: ModelConfig) -> None:
    """Every parameter of the model is covered by tensors on disk, without overlap and with matching shapes."""
    with torch.device("meta"):
        model = CausalLM(config)
    state = model.state_dict()
    counted = {name: torch.zeros(tensor.shape, dtype=torch.int8) for name, tensor in state.items()}
    for entry in inventory(config).values():
        if entry.copy_of is not None:
            assert entry.parameter not in state
            assert state[entry.copy_of].shape == entry.shape
            continue
        part = counted[entry.parameter]
        part = part if entry.expert is None else part[entry.expert]
        part = part if entry.rows is None else part[slice(*entry.rows)]
        assert tuple(part.shape) == entry.shape, entry.name
        part += 1
    if config.tie_word_embeddings:
        counted.pop(HEAD)
    assert all(bool((times == 1).all()) for times in counted.values())


def test_a_tied_head_is_not_on_disk_but_its_copies_are() -> None:
    entries = inventory(model_config("tiny", tie_word_embeddings=True, num_nextn_predict_layers=2))
    assert HEAD not in entries
    for layer in (3, 4):
        assert entries[f"model.layers.{layer}.shared_head.head.weight"].copy_of == EMBEDDING
        assert entries[f"model.layers.{layer}.embed_tokens.weight"].copy_of == EMBEDDING


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no q_lora": {"q_lora_rank": None},
    "biased": {"attention_bias": True},
    "biased, no q_lora": {"attention_bias": True, "q_lora_rank": None},
    "tied": {"tie_word_embeddings": True},
    "all dense": {"first_k_dense_replace": 3},
    "all experts": {"first_k_dense_replace": 0, "n_shared_experts": 2},
    "v2": {
        "model_type": "deepseek_v2",
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "norm_topk_prob": False,
    },
}


@pytest.mark.oracle
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_names_of_the_main_model_are_those_transformers_saves(shape: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = model_config("tiny", num_nextn_predict_layers=0, **shape)
    theirs = transformers.AutoConfig.for_model(**config_dict(config, torch.float32))
    transformers.AutoModelForCausalLM.from_config(theirs).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert sorted(saved) == sorted(inventory(config))
    assert saved == {name: entry.shape for name, entry in inventory(config).items()}
