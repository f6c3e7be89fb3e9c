"""What a model directory holds: its shape, its weights on disk, what it costs to run, and whatever is unusual about it.

Nothing is loaded but headers (and, to compare them, the copies of embedding and head that MTP modules bring).
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from cueva.config import ModelConfig
from cueva.errors import CuevaError
from cueva.study.summary import BF16_BYTES, cache_bytes, counted, expanded_cache_bytes, shape_sentence, share, sized

NO_SHAPE: Final = {"model_type", "max_position_embeddings", "rope_scaling", "initializer_range", "other"}
"""Fields of a config that are shown elsewhere, or say nothing about the arithmetic."""


def inspect_model(path: str | Path, *, compare_copies: bool = True) -> dict[str, Any]:
    """Describe a model directory.

    Args:
        path: a directory with `config.json` and safetensors files; it is checked as for loading.
        compare_copies: compare MTP copies of embedding and head with their originals, which reads both.

    Returns:
        JSON-able: `path`, `family`, `shape` (published keys), `parameters`, `disk`, `cache`, `context`, `tokenizer`,
        `generation` (of `generation_config.json`, or None), `mtp`, `keys` and `warnings`, one sentence for each oddity.

    Raises:
        ConfigError, CheckpointError: the directory holds no model that could be loaded; the message says what is wrong.
    """
    from cueva.checkpoint import read_model_info

    info = read_model_info(path, compare_copies=compare_copies)
    config, folder = info.config, Path(info.path)
    tokenizer, generation = _tokenizer(folder, config), _json(folder / "generation_config.json")
    warnings = [*info.warnings, *tokenizer.pop("warnings")]
    warnings += [f"{name} is stored, and is not the copy that it is in other files" for name in info.differing_copies]
    warnings += [f"other tools will compute something else: {sentence}" for sentence in info.departures]
    if info.fp8_block:
        rows, columns = info.fp8_block
        form = f", scales {info.fp8_scale_fmt}" if info.fp8_scale_fmt else ""
        warnings.append(
            f"most weights are FP8, in blocks of {rows} x {columns} with a scale each{form}; loading dequantises them"
        )
    return {
        "path": str(folder),
        "family": config.model_type,
        "summary": shape_sentence(config),
        "shape": {key: getattr(config, key) for key in (f.name for f in fields(config)) if key not in NO_SHAPE},
        "parameters": _parameters(config),
        "disk": {
            "files": len(info.files),
            "file_bytes": info.file_bytes,
            "tensors": info.tensors,
            "tensor_bytes": info.tensor_bytes,
            "dtypes": {
                name: {"tensors": count, "bytes": info.dtype_bytes[name]} for name, count in info.dtype_tensors.items()
            },
            "fp8_block": list(info.fp8_block) if info.fp8_block else None,
        },
        "cache": _cache(config),
        "context": {
            "positions": config.max_position_embeddings,
            "stretched_from": config.rope_scaling.original_max_position_embeddings if config.rope_scaling else None,
            "stretched_by": config.rope_scaling.factor if config.rope_scaling else None,
            "rope_theta": config.rope_theta,
        },
        "tokenizer": tokenizer,
        "generation": generation,
        "mtp": {"modules": config.num_nextn_predict_layers, "differing_copies": list(info.differing_copies)},
        "keys": {
            "harmless": list(info.harmless_keys),
            "unknown": list(info.unknown_keys),
            "dropped": list(info.dropped_keys),
        },
        "warnings": list(dict.fromkeys(warnings)),
    }


def _parameters(config: ModelConfig) -> dict[str, int]:
    modules = config.num_nextn_predict_layers
    return {
        "total": config.parameters(),
        "active": config.parameters(active=True),
        "embedding": config.vocab_size * config.hidden_size,
        "mtp": modules * config.mtp_parameters() if modules else 0,
        "router_bias_values": config.router_bias_values,
        "bf16_bytes": (config.parameters() + (modules * config.mtp_parameters() if modules else 0)) * BF16_BYTES,
    }


def _cache(config: ModelConfig) -> dict[str, float]:
    latent, expanded = cache_bytes(config), expanded_cache_bytes(config)
    return {
        "values_per_token": config.cache_values_per_token,
        "bytes_per_token": latent,
        "mtp_bytes_per_token": config.num_nextn_predict_layers * latent // config.num_hidden_layers,
        "expanded_bytes_per_token": expanded,
        "times_smaller": round(expanded / latent, 2),
        "whole_context_bytes": latent * config.max_position_embeddings,
    }


def _tokenizer(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """What the tokenizer is, and sentences about what does not fit."""
    absent = {
        "present": False,
        "size": None,
        "vocab_size": config.vocab_size,
        "unused_rows": None,
        "chat_template": False,
    }
    if not (folder / "tokenizer.json").is_file():
        warning = "there is no tokenizer.json: prompts must be given as token ids"
        return absent | {"warnings": [warning]}
    from cueva.text import Tokenizer

    try:
        tokenizer = Tokenizer.load(folder)
    except CuevaError as error:
        return absent | {"warnings": [f"the tokenizer cannot be used: {error.message}"]}
    warnings = []
    if tokenizer.size > config.vocab_size:
        warnings.append(
            f"the tokenizer knows {tokenizer.size:,} tokens, but the model has rows for {config.vocab_size:,} only: "
            "the surplus ids cannot be fed to it"
        )
    ends = set(config.eos_token_ids)
    if tokenizer.eos_ids and ends and not ends & set(tokenizer.eos_ids):
        warnings.append(
            f"config.json ends texts with token {sorted(ends)}, the tokenizer's files with {sorted(tokenizer.eos_ids)}"
        )
    return {
        "present": True,
        "size": tokenizer.size,
        "vocab_size": config.vocab_size,
        "unused_rows": max(config.vocab_size - tokenizer.size, 0),
        "bos": tokenizer.bos_id,
        "eos": sorted(tokenizer.eos_ids),
        "chat_template": tokenizer.chat_template is not None,
        "warnings": warnings,
    }


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


# --- words ------------------------------------------------------------------------------------------------------------


def format_inspection(facts: Mapping[str, Any]) -> str:
    """The description as plain text: one fact a line, what is unusual at the end."""
    weights, disk, cache = facts["parameters"], facts["disk"], facts["cache"]
    rows = [
        ("model", f"{facts['family']}, {facts['summary']}"),
        ("attention", _attention(facts["shape"])),
        ("router", _router(facts["shape"])),
        ("parameters", f"{weights['total']:,} ({counted(weights['total'])}), embedding and head included"),
        ("active", f"{weights['active']:,} for one token ({share(weights['active'] / weights['total'])})"),
        ("MTP", _mtp(facts)),
        (
            "on disk",
            f"{sized(disk['file_bytes'])} in {_counted(disk['files'], 'file')}, {_counted(disk['tensors'], 'tensor')}",
        ),
        ("dtypes", ", ".join(f"{name} {sized(part['bytes'])}" for name, part in disk["dtypes"].items())),
        ("in memory", f"{sized(weights['bf16_bytes'])} of weights as bf16, twice that as float32"),
        ("cache", _cache_words(cache)),
        ("context", _context(facts["context"], cache)),
        ("tokenizer", _tokenizer_words(facts["tokenizer"])),
        ("generation", _generation(facts["generation"])),
    ]
    for kind, words in (("unknown", "not known to cueva, kept"), ("dropped", "not written back")):
        if facts["keys"][kind]:
            rows.append(("config keys", f"{', '.join(facts['keys'][kind])}: {words}"))
    lines = [str(facts["path"]), *(f"  {name:<12}{value}" for name, value in rows if value)]
    if facts["warnings"]:
        lines += ["", "Unusual", *(f"  - {sentence}" for sentence in facts["warnings"])]
    return "\n".join(lines)


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def _attention(shape: Mapping[str, Any]) -> str:
    query = f"query latent {shape['q_lora_rank']}" if shape["q_lora_rank"] else "queries made directly"
    return (
        f"{shape['num_attention_heads']} heads, {query}, key/value latent {shape['kv_lora_rank']}; a head is "
        f"{shape['qk_nope_head_dim']} + {shape['qk_rope_head_dim']} rotary wide, its value {shape['v_head_dim']}"
    )


def _router(shape: Mapping[str, Any]) -> str:
    if shape["n_routed_experts"] is None:
        return "none: every layer is dense"
    groups = f", {shape['topk_group']} of {shape['n_group']} groups" if shape["n_group"] > 1 else ""
    return (
        f"{shape['num_experts_per_tok']} of {shape['n_routed_experts']} experts of width "
        f"{shape['moe_intermediate_size']}{groups}, {shape['n_shared_experts'] or 'none'} shared, "
        f"{shape['scoring_func']} scores, {shape['topk_method']}"
    )


def _mtp(facts: Mapping[str, Any]) -> str:
    modules = facts["mtp"]["modules"]
    if not modules:
        return "no modules: this model cannot draft"
    each = counted(facts["parameters"]["mtp"] / modules)
    return f"{_counted(modules, 'module')} of {each} parameters, embedding and head shared"


def _cache_words(cache: Mapping[str, Any]) -> str:
    return (
        f"{cache['bytes_per_token']:,} bytes per token in bf16, {cache['times_smaller']:.1f} times less than expanded "
        f"keys and values ({cache['expanded_bytes_per_token']:,})"
    )


def _context(context: Mapping[str, Any], cache: Mapping[str, Any]) -> str:
    stretched = ""
    if context["stretched_by"]:
        stretched = f", stretched {context['stretched_by']:g} times from {context['stretched_from']:,}"
    return f"{context['positions']:,} positions{stretched}; a full one caches {sized(cache['whole_context_bytes'])}"


def _tokenizer_words(tokenizer: Mapping[str, Any]) -> str:
    if not tokenizer["present"]:
        return "none that can be used"
    template = "with a chat template" if tokenizer["chat_template"] else "without a chat template"
    unused = f", {tokenizer['unused_rows']:,} rows of the model unused" if tokenizer["unused_rows"] else ""
    return f"{tokenizer['size']:,} tokens for {tokenizer['vocab_size']:,} rows{unused}, {template}"


def _generation(generation: Mapping[str, Any] | None) -> str:
    shown = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
    if generation is None:
        return "no generation_config.json: the engine's own defaults"
    found = [f"{key} {generation[key]}" for key in shown if generation.get(key) is not None]
    return ", ".join(found) or "generation_config.json gives no sampling defaults"
