"""The shape of a model: published sizes, and sentences for shapes that cannot exist."""

import dataclasses

import pytest
import torch

from cueva.config import PRESETS, RopeScaling, model_config
from cueva.errors import ConfigError
from cueva.model import CausalLM

# Counted by formula and on transformers' modules on the meta device; router biases are buffers, not parameters.
PUBLISHED = {
    "v3-671b": {
        "parameters": 671_026_404_352,
        "active": 37_552_282_624,
        "bias": 14_848,
        "attention": 187_107_328,
        "dense": 583_483_392,
        "expert": 11_507_286_016,
        "expert_active": 585_318_400,
        "cache": 35_136,
    },
    "v2-lite-16b": {
        "parameters": 15_706_484_224,
        "active": 2_661_150_208,
        "bias": 0,
        "attention": 13_763_072,
        "dense": 81_007_104,
        "expert": 584_847_872,
        "expert_active": 83_104_256,
        "cache": 15_552,
    },
    "moonlight-16b": {
        "parameters": 15_960_108_544,
        "active": 2_914_774_528,
        "bias": 1_664,
        "attention": 13_763_072,
        "dense": 82_973_184,
        "expert": 584_847_872,
        "expert_active": 83_104_256,
        "cache": 15_552,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_published_shapes_equal_the_published_counts(name: str) -> None:
    config, expected = PRESETS[name], PUBLISHED[name]
    last = config.num_hidden_layers - 1
    assert config.parameters() == expected["parameters"]
    assert config.parameters(active=True) == expected["active"]
    assert config.router_bias_values == expected["bias"]
    assert config.attention_parameters == expected["attention"]
    assert config.layer_parameters(0) == expected["dense"]
    assert config.layer_parameters(last) == expected["expert"]
    assert config.layer_parameters(last, active=True) == expected["expert_active"]
    assert config.cache_values_per_token == expected["cache"]


def test_the_671b_cache_takes_70272_bytes_of_bf16_per_token() -> None:
    assert PRESETS["v3-671b"].cache_values_per_token * torch.bfloat16.itemsize == 70_272


def test_the_671b_mtp_module_has_its_published_size() -> None:
    assert PRESETS["v3-671b"].mtp_parameters() == 11_610_067_968
    assert PRESETS["v3-671b"].mtp_parameters(active=True) == 688_100_352


@pytest.mark.parametrize(
    ("changes", "total", "active"),
    [
        # DeepSeek-V2 236B.
        (
            {
                "vocab_size": 102_400, "hidden_size": 5120, "intermediate_size": 12_288, "moe_intermediate_size": 1536,
                "num_hidden_layers": 60, "num_nextn_predict_layers": 0, "n_routed_experts": 160, "n_shared_experts": 2,
                "num_experts_per_tok": 6, "topk_group": 3, "first_k_dense_replace": 1, "scoring_func": "softmax",
                "topk_method": "group_limited_greedy", "norm_topk_prob": False,
            },
            235_741_434_880,
            21_375_800_320,
        ),
        # Kimi-K2.
        (
            {
                "vocab_size": 163_840, "num_attention_heads": 64, "n_routed_experts": 384, "n_group": 1,
                "topk_group": 1, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0,
            },
            1_026_408_209_408,
            32_861_477_888,
        ),
    ],
)  # fmt: skip
def test_sizes_of_relatives_follow_from_the_same_formulas(changes: dict, total: int, active: int) -> None:
    config = model_config("v3-671b", **changes)
    assert config.parameters() == total
    assert config.parameters(active=True) == active


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_on_the_meta_device_with_the_parameters_its_formulas_count(name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        model = CausalLM(config)
    mtp = tuple(f"model.layers.{config.num_hidden_layers + k}." for k in range(config.num_nextn_predict_layers))
    counted = {key: p.numel() for key, p in model.named_parameters()}
    assert sum(n for key, n in counted.items() if not key.startswith(mtp or ("-",))) == config.parameters()
    own = sum(n for key, n in counted.items() if mtp and key.startswith(mtp))
    assert own == (config.mtp_parameters() * len(mtp) if mtp else 0)
    assert len(model.gates()) == config.gate_count
    buffers = {key: b.numel() for key, b in model.named_buffers()}
    assert sum(n for key, n in buffers.items() if not key.startswith(mtp or ("-",))) == config.router_bias_values


def test_pocket_has_about_ten_million_parameters_and_small_about_a_hundred() -> None:
    pocket, small = PRESETS["pocket"], PRESETS["small"]
    assert 8e6 < pocket.parameters() + pocket.mtp_parameters() < 13e6
    assert 80e6 < small.parameters() < 130e6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_routed_experts": 10, "n_group": 4}, ("10 experts", "4 equal groups", "`n_group`")),
        ({"n_routed_experts": 4, "n_group": 4, "topk_group": 4}, ("one expert in a group", "at most 2")),
        ({"topk_group": 5}, ("`topk_group`", "5", "`n_group`")),
        ({"num_experts_per_tok": 6}, ("`num_experts_per_tok` is 6", "4 experts")),
        ({"qk_rope_head_dim": 7}, ("`qk_rope_head_dim` is 7", "6 or 8")),
        ({"hidden_size": 0}, ("`hidden_size` is 0", "at least 1")),
        ({"vocab_size": "many"}, ("`vocab_size` is 'many'", "whole number")),
        ({"num_nextn_predict_layers": -1}, ("`num_nextn_predict_layers` is -1",)),
        ({"first_k_dense_replace": 9}, ("`first_k_dense_replace` is 9", "3 layers")),
        ({"q_lora_rank": 0}, ("`q_lora_rank` is 0", "null")),
        ({"rms_norm_eps": 0.0}, ("`rms_norm_eps`", "larger than 0")),
        ({"n_routed_experts": 0}, ("`n_routed_experts` is 0",)),
        ({"hiden_size": 3}, ("'hiden_size'", "did you mean 'hidden_size'")),
    ],
)
def test_a_shape_that_cannot_exist_is_refused_by_key_value_and_what_would_fit(changes: dict, words: tuple) -> None:
    with pytest.raises(ConfigError) as caught:
        model_config("tiny", **changes)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_preset_is_answered_with_the_ones_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'v4-1t'; the presets are: tiny, pocket, small"):
        model_config("v4-1t")


@pytest.mark.parametrize(
    "changes", [{"factor": 0.5}, {"original_max_position_embeddings": 0}, {"beta_fast": 1.0, "beta_slow": 32.0}]
)
def test_a_yarn_that_cannot_stretch_is_refused(changes: dict) -> None:
    with pytest.raises(ConfigError, match="rope_scaling"):
        RopeScaling(**{"factor": 4.0, "original_max_position_embeddings": 16, **changes})


def test_a_dense_model_needs_no_expert_keys() -> None:
    config = model_config("tiny", n_routed_experts=None, num_experts_per_tok=0, moe_intermediate_size=0, n_group=1)
    assert config.gate_count == 0
    with torch.device("meta"):
        assert CausalLM(config).gates() == []


def test_every_model_key_that_is_a_number_or_switch_changes_the_model_or_is_an_identity_of_its_file() -> None:
    """A key without effect would be a silent lie: mutate each and look for another output."""
    tiny = PRESETS["tiny"]
    ids = torch.arange(48)[None]
    changed = {
        "model_type": "deepseek_v2", "vocab_size": 400, "hidden_size": 40, "intermediate_size": 80,
        "moe_intermediate_size": 24, "num_hidden_layers": 4, "num_nextn_predict_layers": 2, "num_attention_heads": 4,
        "q_lora_rank": None, "kv_lora_rank": 20, "qk_nope_head_dim": 20, "qk_rope_head_dim": 12, "v_head_dim": 20,
        "n_routed_experts": 16, "n_shared_experts": 2, "num_experts_per_tok": 3, "n_group": 2, "topk_group": 1,
        "scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False, "routed_scaling_factor": 1.5,
        "first_k_dense_replace": 2, "rms_norm_eps": 1e-2, "attention_bias": True, "max_position_embeddings": 128,
        "rope_theta": 100.0, "rope_scaling": RopeScaling(factor=4, original_max_position_embeddings=8),
        "rope_interleave": False, "initializer_range": 0.5, "tie_word_embeddings": True, "bos_token_id": 5,
        "eos_token_id": 6, "pad_token_id": 7, "other": {"note": 1},
    }  # fmt: skip
    # Facts about the file and its tokens: they change what is written or where generation stops, not the arithmetic.
    identities = {"model_type", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "other"}
    assert set(changed) == {field.name for field in dataclasses.fields(tiny)}

    def fingerprint(config) -> torch.Tensor:
        model = CausalLM(config)
        model.init_weights(torch.Generator().manual_seed(1), None if config.initializer_range > 0.1 else 0.3)
        with torch.no_grad():
            for _, gate in model.gates():
                if gate.e_score_correction_bias is not None:
                    gate.e_score_correction_bias.copy_(0.1 * torch.linspace(-7, 7, config.n_routed_experts).sin())
            for name, parameter in model.named_parameters():
                if name.endswith("proj.bias") or name.endswith("mqa.bias"):
                    parameter.fill_(0.1)
            out = model(ids)
        return torch.cat([out.logits.flatten(), *[x.flatten() for x in out.mtp_logits]])

    base = fingerprint(tiny)
    for key, value in changed.items():
        other = fingerprint(dataclasses.replace(tiny, **{key: value}))
        same = other.shape == base.shape and torch.equal(other, base)
        assert same == (key in identities), f"`{key}` has {'no effect' if same else 'an effect'}"
