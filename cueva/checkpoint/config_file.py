"""`config.json`, both ways: the published keys of a model directory and our `ModelConfig`.

Reading sorts every key into one of five kinds: it is a field of `ModelConfig`; it is checked and has one right value;
it does not touch the arithmetic (kept and written back); it names a mechanism we lack (refused by name); or it is
unknown (kept, with a warning). Nothing in a file is run: `auto_map` is dropped.

Writing uses the keys that every reader of the family knows: `rope_theta` and `rope_scaling` rather than
`rope_parameters`, and the dtype under both of its names.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from cueva.checkpoint.config_fields import (
    DEPARTURES_KEY,
    KNOWN,
    check_fixed_keys,
    dtype_of,
    rename_aliases,
    rope_dict,
    rope_fields,
    shape_fields,
)
from cueva.checkpoint.families import Departure, family_of
from cueva.checkpoint.fp8 import Fp8Format, read_quantization_config
from cueva.checkpoint.known_keys import DROPPED, HARMLESS, KNOWN_OFF, mechanism_we_lack
from cueva.config import ModelConfig
from cueva.errors import CheckpointError, ConfigError, nearest
from cueva.files import atomic_write

CONFIG_NAME: Final = "config.json"


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
    data, warnings = rename_aliases(data, family), []
    fields = shape_fields(data, family)
    fields |= rope_fields(data, fields["max_position_embeddings"], warnings)
    check_fixed_keys(data, fields, family, warnings)
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
        dtype=dtype_of(data),
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
        "rope_scaling": rope_dict(config.rope_scaling),
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
