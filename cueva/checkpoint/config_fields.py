"""From the keys of a published config to the fields of `ModelConfig`: aliases, types, defaults, keys of one value."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

import torch

from cueva.checkpoint.families import Family
from cueva.checkpoint.known_keys import words
from cueva.config import RopeScaling
from cueva.errors import ConfigError

DEPARTURES_KEY: Final = "cueva_departures"
"""Written when a shape leaves its family (an ablation): the keys at fault. A file that departs unsaid is refused."""

_INTEGERS: Final = words(
    "vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads kv_lora_rank",
    "qk_nope_head_dim qk_rope_head_dim v_head_dim max_position_embeddings",
)
_INTEGERS_OR_DEFAULT: Final = words("num_experts_per_tok n_group topk_group first_k_dense_replace")
_INTEGERS_OR_NONE: Final = words("q_lora_rank n_routed_experts n_shared_experts bos_token_id pad_token_id")
_FLOATS: Final = words("rms_norm_eps routed_scaling_factor initializer_range")
_BOOLEANS: Final = words("norm_topk_prob attention_bias rope_interleave tie_word_embeddings")
_CHOICES: Final = {
    "scoring_func": ("sigmoid", "softmax"),
    "topk_method": ("noaux_tc", "group_limited_greedy", "greedy"),
}
_ROPE: Final = words("rope_theta rope_scaling rope_parameters")
# Keys with one right value, or that describe the file rather than the model.
_CHECKED: Final = words(
    "model_type architectures num_key_value_heads hidden_act moe_layer_freq attention_dropout num_nextn_predict_layers",
    "eos_token_id torch_dtype dtype quantization_config",
) | {DEPARTURES_KEY}
_FIELDS: Final = _INTEGERS | _INTEGERS_OR_DEFAULT | _INTEGERS_OR_NONE | _FLOATS | _BOOLEANS | set(_CHOICES)
KNOWN: Final = _FIELDS | _ROPE | _CHECKED
"""Every key that reading understands, the harmless ones aside."""

_ROPE_FLOATS: Final = words("factor beta_fast beta_slow mscale mscale_all_dim attention_factor")
_ROPE_KEYS: Final = _ROPE_FLOATS | words("type rope_type rope_theta original_max_position_embeddings truncate")


def rename_aliases(data: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Give every key its published name.

    Raises:
        ConfigError: a key stands there under two names with two values.
    """
    renamed = dict(data)
    for alias, key in family.aliases.items():
        if alias not in renamed:
            continue
        value = renamed.pop(alias)
        if renamed.setdefault(key, value) != value:
            raise ConfigError(f"`{alias}` is {value!r} and `{key}` is {renamed[key]!r}, but both name the same thing")
    return renamed


def shape_fields(data: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Every field of ModelConfig but the rope ones, type-checked, with the family's defaults for absent keys."""
    fields: dict[str, Any] = {}
    for key in sorted(_FIELDS):
        present = key in data
        value = data.get(key)
        if not present or (value is None and key in _INTEGERS_OR_DEFAULT | _BOOLEANS | set(_CHOICES)):
            if key in family.defaults:
                fields[key] = family.defaults[key]
                # A null group count means that there are no groups, whatever the default.
                if present and key in ("n_group", "topk_group"):
                    fields[key] = 1
            continue
        if key in _FLOATS:
            fields[key] = _number(key, value)
        elif key in _BOOLEANS:
            if not isinstance(value, bool):
                raise ConfigError(f"`{key}` is {value!r}, but it must be true or false")
            fields[key] = value
        elif key in _CHOICES:
            if value not in _CHOICES[key]:
                raise ConfigError(f"`{key}` is {value!r}, but cueva knows only {', '.join(map(repr, _CHOICES[key]))}")
            fields[key] = value
        elif value is None and key in _INTEGERS_OR_NONE:
            fields[key] = None
        else:
            fields[key] = _integer(key, value, at_least=0)
    # 0 and null both mean that there are none.
    fields["n_shared_experts"] = fields.get("n_shared_experts") or None
    fields["eos_token_id"] = _eos(data.get("eos_token_id", family.defaults["eos_token_id"]))
    depths = data.get("num_nextn_predict_layers")
    fields["num_nextn_predict_layers"] = (
        0 if depths is None else _integer("num_nextn_predict_layers", depths, at_least=0)
    )
    return fields


def rope_fields(data: Mapping[str, Any], max_positions: int, warnings: list[str]) -> dict[str, Any]:
    """The rotary keys, old and new, read in the order in which `transformers` reads them."""
    where = "rope_scaling" if data.get("rope_scaling") is not None else "rope_parameters"
    rope = data.get(where) or {}
    ignored = data.get("rope_parameters")
    if where == "rope_scaling" and ignored is not None and ignored != rope:
        warnings.append(
            "config.json has both `rope_scaling` and `rope_parameters`, and they differ: the former is used"
        )
    if not isinstance(rope, Mapping):
        raise ConfigError(f"`{where}` is {rope!r}, but it must be an object or null")
    for key in rope:
        if key == "partial_rotary_factor" and rope[key] in (None, 1):
            continue
        if key not in _ROPE_KEYS:
            raise ConfigError(f"`{where}.{key}` is {rope[key]!r}, a part of rotary positions that cueva does not know")
    theta = rope.get("rope_theta")
    theta = data.get("rope_theta") if theta is None else theta
    found: dict[str, Any] = {"rope_theta": 10000.0 if theta is None else _number("rope_theta", theta)}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        if rope.get("factor") not in (None, 1):
            warnings.append(f"`{where}.factor` is {rope['factor']!r} without a `type`: it has no effect")
        return found
    if kind != "yarn":
        raise ConfigError(f"`{where}.type` is {kind!r}: of scaled rotary positions this family has only 'yarn'")
    values = {key: _number(f"{where}.{key}", rope[key]) for key in _ROPE_FLOATS if rope.get(key) is not None}
    original = rope.get("original_max_position_embeddings")
    original = (
        max_positions
        if original is None
        else _integer(f"{where}.original_max_position_embeddings", original, at_least=1)
    )
    values.setdefault("factor", max_positions / original)
    truncate = rope.get("truncate")
    if not isinstance(truncate, bool | None):
        raise ConfigError(f"`{where}.truncate` is {truncate!r}, but it must be true or false")
    found["rope_scaling"] = RopeScaling(
        original_max_position_embeddings=original, truncate=True if truncate is None else truncate, **values
    )
    return found


def rope_dict(rope: RopeScaling | None) -> dict[str, Any] | None:
    """The value of `rope_scaling` in a file."""
    if rope is None:
        return None
    values = {key: value for key, value in dataclasses.asdict(rope).items() if value is not None}
    if rope.truncate:  # what every published file means, and few readers know the key
        del values["truncate"]
    return {"type": "yarn"} | values


def check_fixed_keys(data: Mapping[str, Any], fields: Mapping[str, Any], family: Family, warnings: list[str]) -> None:
    """Keys that must have one value, because nothing in this architecture has another."""
    heads = fields["num_attention_heads"]
    key_value_heads = data.get("num_key_value_heads")
    if key_value_heads is not None and key_value_heads != heads:
        raise ConfigError(
            f"`num_key_value_heads` is {key_value_heads!r}, but latent attention has no grouped heads: it must equal "
            f"`num_attention_heads`, {heads}"
        )
    if data.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ConfigError(f"`hidden_act` is {data['hidden_act']!r}, but this architecture has only 'silu' (SwiGLU)")
    if data.get("moe_layer_freq") is not None and _integer("moe_layer_freq", data["moe_layer_freq"], at_least=0) != 1:
        raise ConfigError(
            f"`moe_layer_freq` is {data['moe_layer_freq']!r}, but only 1 is supported: most tools ignore the key and "
            f"would build "
            "another model"
        )
    if data.get("attention_dropout") is not None and _number("attention_dropout", data["attention_dropout"]) != 0:
        raise ConfigError(
            f"`attention_dropout` is {data['attention_dropout']!r}, but cueva has no dropout: it must be 0"
        )
    query_width = fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"]
    if data.get("qk_head_dim") not in (None, query_width):
        raise ConfigError(
            f"`qk_head_dim` is {data['qk_head_dim']!r}, but `qk_nope_head_dim` and `qk_rope_head_dim` add up to "
            f"{query_width}"
        )
    architectures = data.get("architectures")
    if architectures is not None and (not isinstance(architectures, list) or family.architecture not in architectures):
        warnings.append(
            f"`architectures` is {architectures!r}, but is read as {family.architecture!r} because of `model_type` "
            f"{family.model_type!r}"
        )
    marks = data.get(DEPARTURES_KEY)
    if marks is not None and not (isinstance(marks, list) and all(isinstance(mark, str) for mark in marks)):
        raise ConfigError(f"`{DEPARTURES_KEY}` is {marks!r}, but it must be a list of keys")


def dtype_of(data: Mapping[str, Any]) -> torch.dtype | None:
    """`dtype` wins over its older name."""
    for key in ("dtype", "torch_dtype"):
        value = data.get(key)
        if value is None:
            continue
        found: Any = getattr(torch, str(value).removeprefix("torch."), None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise ConfigError(f"`{key}` is {value!r}, but it must name a float dtype, such as 'bfloat16'")
        return found
    return None


def _eos(value: Any) -> int | tuple[int, ...] | None:
    if isinstance(value, list):
        return tuple(_integer("eos_token_id", token, at_least=0) for token in value)
    return None if value is None else _integer("eos_token_id", value, at_least=0)


def _integer(key: str, value: Any, *, at_least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ConfigError(f"`{key}` is {value!r}, but it must be a whole number of at least {at_least}")
    return value


def _number(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"`{key}` is {value!r}, but it must be a finite number")
    return float(value)
