import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cueva.checkpoint import config_dict, departures, read_config, read_config_file, write_config
from cueva.checkpoint.config_fields import KNOWN
from cueva.checkpoint.config_file import parse_config
from cueva.checkpoint.families import FAMILIES
from cueva.checkpoint.known_keys import MECHANISMS
from cueva.config import PRESETS, ModelConfig, RopeScaling, model_config
from cueva.errors import CheckpointError, ConfigError
from tests.checkpoint.published import MOONLIGHT, V2_LITE, V3_671B
from tests.strategies import model_shapes

TINY = config_dict(PRESETS["tiny"], torch.bfloat16)


def tiny(**changes: Any) -> dict[str, Any]:
    """The content of a small model's file, some keys changed; `...` removes a key."""
    return {key: value for key, value in (TINY | changes).items() if value is not ...}


def without_other(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, other={})


# --- published files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("published", "preset"),
    [(V3_671B, "v3-671b"), (V2_LITE, "v2-lite-16b"), (MOONLIGHT, "moonlight-16b")],
    ids=["V3", "V2-Lite", "Moonlight"],
)
def test_published_files_are_read_as_the_presets_say(published: dict[str, Any], preset: str) -> None:
    reading = parse_config(published)
    assert without_other(reading.config) == PRESETS[preset]
    assert reading.dtype is torch.bfloat16
    assert reading.warnings == reading.unknown == ()
    assert reading.dropped == ("auto_map",)
    assert set(reading.harmless) == set(reading.config.other)
    assert set(reading.harmless) <= {
        "aux_loss_alpha",
        "ep_size",
        "seq_aux",
        "pretraining_tp",
        "transformers_version",
        "use_cache",
    }


def test_harmless_keys_are_written_back_and_code_is_not() -> None:
    reading = parse_config(V3_671B)
    written = config_dict(reading.config, torch.bfloat16)
    assert {key: written[key] for key in reading.harmless} == {key: V3_671B[key] for key in reading.harmless}
    assert "auto_map" not in written
    assert "quantization_config" not in written, "what is written beside it is not quantised"
    missing = V3_671B.keys() - written.keys()
    assert missing == {"auto_map", "quantization_config"}
    changed = {key for key in V3_671B.keys() & written.keys() if V3_671B[key] != written[key]}
    assert changed == set()


@given(config=model_shapes())
def test_writing_and_reading_gives_the_same_shape(config: ModelConfig) -> None:
    assert parse_config(json.loads(json.dumps(config_dict(config, torch.float32)))).config == config


def test_a_written_file_is_read_from_itself_or_its_folder(tmp_path: Path) -> None:
    write_config(PRESETS["tiny"], tmp_path, torch.float16)
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == PRESETS["tiny"]
    assert read_config_file(tmp_path).dtype is torch.float16


def test_both_dtype_keys_are_written_equal_and_the_newer_wins() -> None:
    assert TINY["torch_dtype"] == TINY["dtype"] == "bfloat16"
    assert parse_config(tiny(dtype="float32")).dtype is torch.float32
    assert parse_config(tiny(dtype=...)).dtype is torch.bfloat16
    assert parse_config(tiny(dtype=..., torch_dtype=...)).dtype is None
    for wrong in ("int8", "Tensor", "bf-16", 3):
        with pytest.raises(ConfigError, match="`dtype` is"):
            parse_config(tiny(dtype=wrong))


# --- absent keys ------------------------------------------------------------------------------------------------------


def test_absent_keys_mean_what_the_familys_own_class_takes() -> None:
    config = parse_config({"model_type": "deepseek_v3"}).config
    like_671b = dataclasses.replace(
        PRESETS["v3-671b"], max_position_embeddings=4096, rope_scaling=None, num_nextn_predict_layers=0
    )
    assert config == like_671b
    config = parse_config({"model_type": "deepseek_v2"}).config
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (102400, 4096, 11008)
    assert (config.moe_intermediate_size, config.n_routed_experts, config.scoring_func) == (1407, None, "softmax")


def test_a_null_group_count_means_no_groups() -> None:
    config = parse_config(V2_LITE | {"n_group": None, "topk_group": None}).config
    assert (config.n_group, config.topk_group) == (1, 1)


def test_no_shared_experts_are_written_as_a_number_that_others_accept() -> None:
    config = model_config("tiny", n_shared_experts=None)
    written = config_dict(config, torch.float32)
    assert written["n_shared_experts"] == 0
    assert parse_config(written).config == config
    assert parse_config(tiny(n_shared_experts=None)).config == config


@pytest.mark.parametrize(
    ("alias", "key", "value"),
    [("num_local_experts", "n_routed_experts", 16), ("num_mtp_layers", "num_nextn_predict_layers", 2)],
)
def test_other_names_of_keys_are_accepted(alias: str, key: str, value: int) -> None:
    reading = parse_config(tiny(**{key: ..., alias: value}))
    assert getattr(reading.config, key) == value
    assert reading.unknown == ()
    with pytest.raises(ConfigError, match=f"`{alias}` is {value}"):
        parse_config(tiny(**{alias: value}))


def test_several_end_tokens_survive() -> None:
    config = parse_config(tiny(eos_token_id=[1, 7])).config
    assert config.eos_token_ids == (1, 7)
    assert config_dict(config, torch.float32)["eos_token_id"] == [1, 7]
    assert parse_config(tiny(eos_token_id=None)).config.eos_token_ids == ()


# --- rotary keys ------------------------------------------------------------------------------------------------------

YARN = {"factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("keys", "theta", "factor"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 5}, 5.0, None),
        ({"rope_scaling": {"type": "yarn", **YARN}, "rope_theta": 7}, 7.0, 4.0),
        ({"rope_scaling": {"rope_type": "yarn", **YARN}}, 10000.0, 4.0),
        ({"rope_scaling": {"type": "yarn", "rope_theta": 9, **YARN}, "rope_theta": 7}, 9.0, 4.0),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 12345.0, **YARN}}, 12345.0, 4.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 12345.0}}, 12345.0, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}, "rope_theta": 7}, 3.0, None),
        ({"rope_parameters": {"rope_type": "yarn", "type": "linear", **YARN}}, 10000.0, 4.0),
        ({"rope_scaling": None, "rope_parameters": {"type": "yarn", **YARN}}, 10000.0, 4.0),
        ({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 32}}, 10000.0, 8.0),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, 10000.0, 2.0),
    ],
)
def test_rotary_keys_are_read_in_the_order_of_transformers(
    keys: dict[str, Any], theta: float, factor: float | None
) -> None:
    """`rope_scaling` before `rope_parameters`, `rope_theta` inside before outside, `rope_type` before `type`."""
    config = parse_config(tiny(**{"rope_theta": ..., "rope_scaling": ...} | keys)).config
    assert config.rope_theta == theta
    assert (config.rope_scaling.factor if config.rope_scaling else None) == factor


def test_both_kinds_of_rotary_keys_at_once_are_pointed_out() -> None:
    reading = parse_config(
        tiny(rope_scaling={"type": "yarn", **YARN}, rope_parameters={"rope_type": "default", "rope_theta": 3.0})
    )
    assert reading.config.rope_scaling is not None
    assert "both" in reading.warnings[0]


def test_the_old_rotary_keys_are_written() -> None:
    yarn = RopeScaling(factor=4.0, original_max_position_embeddings=64, mscale=0.7, mscale_all_dim=0.7)
    written = config_dict(model_config("tiny", rope_scaling=yarn, rope_theta=12345.0), torch.float32)
    assert written["rope_theta"] == 12345.0
    assert written["rope_scaling"] == {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.7,
    }
    assert "rope_parameters" not in written


def test_a_factor_without_a_type_is_pointed_out() -> None:
    assert "no effect" in parse_config(tiny(rope_scaling={"factor": 4.0})).warnings[0]


# --- keys that are refused, kept or reported --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scoring_func": "softmax"}, "`scoring_func` is 'softmax', but other readers of deepseek_v3 take sigmoid"),
        ({"scoring_func": "sqrtsoftplus"}, "`scoring_func` is 'sqrtsoftplus'"),
        ({"topk_method": "greedy"}, "`topk_method` is 'greedy'"),
        ({"moe_layer_freq": 2}, "`moe_layer_freq` is 2"),
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu'"),
        ({"attention_dropout": 0.1}, "`attention_dropout` is 0.1"),
        ({"num_key_value_heads": 1}, "`num_key_value_heads` is 1"),
        ({"qk_head_dim": 99}, "`qk_head_dim` is 99"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "'llama3'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "llama_4_scaling_beta": 1}}, "llama_4_scaling_beta"),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, "rope_scaling.factor"),
        ({"rope_scaling": "yarn"}, "`rope_scaling` is 'yarn', but it must be an object"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "`rope_scaling.factor` is '4'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "truncate": 1}}, "truncate"),
        ({"n_group": 3}, "8 experts cannot be split into 3"),
        ({"n_group": 8}, "scored by its two best"),
        ({"topk_group": 5}, "`topk_group` keeps 5"),
        ({"num_experts_per_tok": 5}, "can reach only 4 experts"),
        ({"qk_rope_head_dim": 7}, "`qk_rope_head_dim` is 7"),
        ({"hidden_size": "32"}, "`hidden_size` is '32', but it must be a whole number"),
        ({"hidden_size": 32.0}, "`hidden_size` is 32.0"),
        ({"hidden_size": True}, "`hidden_size` is True"),
        ({"hidden_size": None}, "`hidden_size` is None"),
        ({"num_hidden_layers": -1}, "`num_hidden_layers` is -1"),
        ({"norm_topk_prob": 1}, "`norm_topk_prob` is 1, but it must be true or false"),
        ({"rms_norm_eps": "1e-6"}, "`rms_norm_eps` is '1e-6'"),
        ({"rms_norm_eps": float("nan")}, "`rms_norm_eps` is nan"),
        ({"rope_theta": [1]}, "`rope_theta` is"),
        ({"eos_token_id": [1, "x"]}, "`eos_token_id` is 'x'"),
        ({"num_nextn_predict_layers": -1}, "`num_nextn_predict_layers` is -1"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quant_method` is 'gptq'"),
        ({"quantization_config": {"quant_method": "fp8", "fmt": "e5m2"}}, "'e5m2'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "weight_block_size"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}}, "weight_block_size"),
        (
            {
                "quantization_config": {
                    "quant_method": "fp8",
                    "weight_block_size": [8, 8],
                    "activation_scheme": "static",
                }
            },
            "activation_scheme",
        ),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 8], "scale_fmt": "x"}}, "scale_fmt"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 8], "rotate": True}}, "rotate"),
        ({"model_type": "deepseek_v4"}, "did you mean 'deepseek_v3'"),
        ({"model_type": "llama"}, "the families are: deepseek_v3, deepseek_v2"),
        ({"model_type": ...}, "`model_type` is missing"),
        ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "'linear_attention'"),
        ({"mlp_layer_types": ["sparse", "dense", "dense"]}, "another order"),
        ({"index_topk": 2048}, r"`index_topk` is 2048: that is sparse attention with an indexer \(DSA\)"),
        ({"sliding_window": 4096}, "sliding-window attention"),
        ({"hc_mult": 4}, "hyper-connections"),
        ({"linear_attn_config": {"kda_layers": [1]}}, "linear attention"),
        ({"vision_config": {"depth": 2}}, "images"),
    ],
)
def test_what_we_cannot_compute_is_refused_by_key(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(tiny(**changes))


@pytest.mark.parametrize("key", sorted(MECHANISMS))
def test_every_mechanism_is_refused_when_it_is_on_and_kept_when_it_is_off(key: str) -> None:
    on = {"is_causal": False, "is_decoder": "cross"}.get(key, 2.5)
    with pytest.raises(ConfigError, match=f"`{key}` is .*, which cueva does not have"):
        parse_config(tiny(**{key: on}))
    reading = parse_config(tiny(**{key: None}))
    assert key in reading.harmless
    assert config_dict(reading.config, torch.float32)[key] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scoring_func": "sigmoid"}, "take softmax"),
        ({"norm_topk_prob": True}, "some never normalise"),
        ({"topk_method": "noaux_tc"}, "no balance bias"),
        ({"rope_interleave": False}, "adjacent pairs"),
    ],
)
def test_what_readers_of_v2_ignore_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(V2_LITE | changes)


def test_unknown_keys_are_kept_with_a_warning_by_name() -> None:
    reading = parse_config(tiny(kv_lora_rnk=5, my_note="x"))
    assert reading.unknown == ("kv_lora_rnk", "my_note")
    assert "`kv_lora_rnk`; did you mean 'kv_lora_rank'?" in reading.warnings[0]
    assert "`my_note`" in reading.warnings[1]
    assert config_dict(reading.config, torch.float32)["my_note"] == "x"


def test_kept_keys_never_override_the_shape() -> None:
    config = dataclasses.replace(PRESETS["tiny"], other={"hidden_size": 99, "auto_map": {}, "note": 1})
    written = config_dict(config, torch.float32)
    assert (written["hidden_size"], written["note"]) == (32, 1)
    assert "auto_map" not in written


def test_another_architecture_is_pointed_out() -> None:
    reading = parse_config(tiny(architectures=["SomethingElse"]))
    assert "SomethingElse" in reading.warnings[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1]", "holds list"),
        ("[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "cannot read"),
    ],
)
def test_a_damaged_file_is_refused_with_its_path(tmp_path: Path, text: str | bytes, words: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_config_file(tmp_path)
    assert str(tmp_path / "config.json") in caught.value.message


def test_a_missing_file_and_a_wrong_key_are_refused_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny(hidden_act="gelu")))
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in caught.value.message


@settings(max_examples=25)
@given(
    junk=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["type", "factor", "quant_method", "x"]), inner)
        ),
        max_leaves=4,
    )
)
def test_whatever_stands_under_a_key_it_is_read_or_refused_in_words(junk: Any) -> None:
    for key in sorted(KNOWN | {"qk_head_dim", "layer_types", "index_topk", "mlp_layer_types"}):
        with contextlib.suppress(ConfigError):
            parse_config(tiny(**{key: junk}))


def test_every_key_has_an_effect_or_is_refused() -> None:
    """Each key a file may have, changed: the shape changes, or it is an error."""
    before = parse_config(TINY)
    changed = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
        "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128},
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]},
        "model_type": "deepseek_v2",
        "architectures": ["Other"],
        "dtype": "float32",
        "torch_dtype": "float32",
        "hidden_act": "relu",
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "eos_token_id": [5],
        "q_lora_rank": None,
        "cueva_departures": "scoring_func",
    }
    for key in sorted(KNOWN):
        value = TINY.get(key)
        if key in changed:
            value = changed[key]
        elif isinstance(value, bool):
            value = not value
        elif key == "qk_rope_head_dim":
            value += 2
        else:
            value = (value or 0) * 2 + 1
        removed = {"dtype": ...} if key == "torch_dtype" else {}
        try:
            after = parse_config(tiny(**{key: value, **removed}))
        except ConfigError:
            continue
        assert after != before, f"`{key}` has no effect"


# --- leaving the family -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"topk_method": "greedy"}, "topk_method"),
        ({"n_routed_experts": None}, "n_routed_experts"),
        ({"n_group": 1, "topk_group": 1, "n_routed_experts": 1, "num_experts_per_tok": 1}, "n_routed_experts"),
        ({"model_type": "deepseek_v2"}, "topk_method"),
    ],
)
def test_an_ablation_says_what_departs_and_reads_back(changes: dict[str, Any], key: str) -> None:
    config = model_config("tiny", **changes)
    assert key in {departure.key for departure in departures(config)}
    written = json.loads(json.dumps(config_dict(config, torch.float32)))
    assert key in written["cueva_departures"]
    assert parse_config(written).config == config


def test_the_mark_of_a_departure_excuses_only_what_it_names() -> None:
    written = config_dict(model_config("tiny", scoring_func="softmax"), torch.float32)
    with pytest.raises(ConfigError, match="topk_method"):
        parse_config(written | {"topk_method": "greedy"})


@pytest.mark.parametrize("name", list(PRESETS))
def test_no_preset_departs_from_its_family(name: str) -> None:
    assert departures(PRESETS[name]) == []
    assert "cueva_departures" not in config_dict(PRESETS[name], torch.bfloat16)


@pytest.mark.oracle
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_defaults_of_the_family_agree_with_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(name)
    # The V2 class of transformers took defaults of its own for these; ours are the published remote code's.
    apart = {"n_routed_experts", "n_shared_experts", "num_hidden_layers", "bos_token_id", "eos_token_id"}
    apart |= {"num_experts_per_tok", "n_group", "topk_group"}
    for key, value in FAMILIES[name].defaults.items():
        if not (name == "deepseek_v2" and key in apart) and hasattr(theirs, key):
            assert getattr(theirs, key) == value, key
