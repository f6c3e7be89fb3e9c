"""`config.json`, both ways: the published keys of a model directory and our `ModelConfig`.

Reading sorts every key into one of five kinds: it is a field of `ModelConfig`; it is checked and has one right value;
it does not touch the arithmetic (kept and written back); it names a mechanism we lack (refused by name); or it is
unknown (kept, with a warning). Nothing in a file is run: `auto_map` is dropped.

Writing uses the keys that every reader of the family knows: `rope_theta` and `rope_scaling` rather than
`rope_parameters`, and the dtype under both of its names.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from cueva.checkpoint.families import Departure, Family, family_of
from cueva.checkpoint.fp8 import Fp8Format, read_quantization_config
from cueva.checkpoint.known_keys import DROPPED, HARMLESS, KNOWN_OFF, mechanism_we_lack, words
from cueva.config import ModelConfig, RopeScaling
from cueva.errors import CheckpointError, ConfigError, nearest
from cueva.files import atomic_write

CONFIG_NAME: Final = "config.json"

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


@dataclass(frozen=True, slots=True)
class ConfigReading:
    """What a config.json says."""

    config: ModelConfig
    """With `num_nextn_predict_layers` as the file has it, 0 when it has none."""
    depths_given: int | None
    """The file's `num_nextn_predict_layers`; None when absent. The tensors may know better."""
    dtype: torch.dtype | None
    """Of the weights that are not FP8, as the file says."""
    quantisation: Fp8Format | None
    harmless: tuple[str, ...]
    """Keys that do not touch the arithmetic."""
    unknown: tuple[str, ...]
    """Keys that we do not know."""
    dropped: tuple[str, ...]
    """Keys that will not be written back."""
    warnings: tuple[str, ...]
    """Sentences for the user."""


def read_config_file(path: str | os.PathLike[str]) -> ConfigReading:
    """Read a config.json, given itself or its folder.

    Raises:
        CheckpointError: there is no such file, or it is no JSON object.
        ConfigError: it describes no model, one that we lack a part of, or one that its own family's readers would
            misread.
    """
    file = Path(path)
    file = file / CONFIG_NAME if file.is_dir() else file
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no {file}; a model directory holds {CONFIG_NAME} and *.safetensors files",
            way_out="try the path of a directory that cueva or transformers saved",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} holds {type(data).__name__}, but a JSON object is expected")
    try:
        return parse_config(data)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.message}", way_out=error.way_out) from error


def parse_config(data: Mapping[str, Any]) -> ConfigReading:
    """Understand the content of a config.json; see `read_config_file`."""
    family = family_of(data.get("model_type"))
    data, warnings = _rename_aliases(data, family), []
    fields = _fields(data, family)
    fields |= _rope(data, fields["max_position_embeddings"], warnings)
    _check_fixed_keys(data, fields, family, warnings)
    other, harmless, unknown = _rest(data, fields)
    for key in unknown:
        warnings.append(
            f"config.json has a key that cueva does not know, `{key}`{nearest(key, KNOWN)}: kept, but without effect"
        )
    config = ModelConfig(model_type=family.model_type, other=other, **fields)  # pyright: ignore[reportArgumentType]
    _refuse_unmarked(family.departures(config), data.get(DEPARTURES_KEY) or ())
    depths = data.get("num_nextn_predict_layers")
    return ConfigReading(
        config=config,
        depths_given=depths,
        dtype=_dtype(data),
        quantisation=read_quantization_config(data.get("quantization_config")),
        harmless=harmless,
        unknown=unknown,
        dropped=tuple(sorted(DROPPED & data.keys())),
        warnings=tuple(warnings),
    )


def departures(config: ModelConfig) -> list[Departure]:
    """What about a shape other readers of its family do not reproduce; empty for everything published."""
    return family_of(config.model_type).departures(config)


def config_dict(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return the content of a config.json, in published keys.

    Args:
        config: the shape. Its `other` keys are written back, but never over a key of ours.
        dtype: of the weights beside it.
    """
    family = family_of(config.model_type)
    name = str(dtype).removeprefix("torch.")
    written: dict[str, Any] = {"architectures": [family.architecture]}
    for field in dataclasses.fields(ModelConfig):
        if field.name not in ("other", "rope_scaling"):
            written[field.name] = getattr(config, field.name)
    # `transformers` needs a number here, and takes 0 for none.
    written["n_shared_experts"] = config.n_shared_experts or 0
    if isinstance(config.eos_token_id, tuple):
        written["eos_token_id"] = list(config.eos_token_id)
    written |= {
        "rope_scaling": _rope_dict(config.rope_scaling),
        "num_key_value_heads": config.num_attention_heads,
        "hidden_act": "silu",
        "moe_layer_freq": 1,
        "attention_dropout": 0.0,
        "torch_dtype": name,
        "dtype": name,
    }
    if found := departures(config):
        written[DEPARTURES_KEY] = sorted({departure.key for departure in found})
    kept = {key: value for key, value in config.other.items() if key not in KNOWN and key not in DROPPED}
    return written | kept


def write_config(config: ModelConfig, folder: str | os.PathLike[str], dtype: torch.dtype) -> None:
    """Write `folder/config.json` atomically, without a `quantization_config`: what we write beside it is plain."""
    try:
        text = json.dumps(config_dict(config, dtype), indent=2, ensure_ascii=False)
    except TypeError as error:
        raise ConfigError(f"a key in `other` cannot be written as JSON: {error}") from error
    atomic_write(Path(folder) / CONFIG_NAME, text + "\n")


# --- reading, part by part --------------------------------------------------------------------------------------------


def _rename_aliases(data: Mapping[str, Any], family: Family) -> dict[str, Any]:
    renamed = dict(data)
    for alias, key in family.aliases.items():
        if alias not in renamed:
            continue
        value = renamed.pop(alias)
        if renamed.setdefault(key, value) != value:
            raise ConfigError(f"`{alias}` is {value!r} and `{key}` is {renamed[key]!r}, but both name the same thing")
    return renamed


def _fields(data: Mapping[str, Any], family: Family) -> dict[str, Any]:
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


def _rope(data: Mapping[str, Any], max_positions: int, warnings: list[str]) -> dict[str, Any]:
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


def _rope_dict(rope: RopeScaling | None) -> dict[str, Any] | None:
    if rope is None:
        return None
    values = {key: value for key, value in dataclasses.asdict(rope).items() if value is not None}
    if rope.truncate:  # what every published file means, and few readers know the key
        del values["truncate"]
    return {"type": "yarn"} | values


def _check_fixed_keys(data: Mapping[str, Any], fields: Mapping[str, Any], family: Family, warnings: list[str]) -> None:
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


def _rest(
    data: Mapping[str, Any], fields: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Sort the keys that are no fields: refused, harmless, unknown."""
    other: dict[str, Any] = {}
    harmless: list[str] = []
    unknown: list[str] = []
    for key, value in data.items():
        if key in KNOWN or key in DROPPED:
            continue
        mechanism = mechanism_we_lack(
            key,
            value,
            main_layers=fields["num_hidden_layers"],
            dense_layers=fields["first_k_dense_replace"]
            if fields.get("n_routed_experts")
            else fields["num_hidden_layers"],
        )
        if mechanism is not None:
            shown = repr(value) if len(repr(value)) < 80 else f"{repr(value)[:77]}..."
            raise ConfigError(f"`{key}` is {shown}: that is {mechanism}, which cueva does not have")
        other[key] = value
        (harmless if key in HARMLESS or key in KNOWN_OFF else unknown).append(key)
    return other, tuple(sorted(harmless)), tuple(sorted(unknown))


def _refuse_unmarked(found: list[Departure], marks: Any) -> None:
    for departure in found:
        if departure.silent and departure.key not in marks:
            raise ConfigError(
                f"`{departure.key}` {departure.why}; the two would compute different logits from the same file"
            )


def _dtype(data: Mapping[str, Any]) -> torch.dtype | None:
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
