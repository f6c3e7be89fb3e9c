"""The files beside a tokenizer.json: which tokens begin and end a text, and which chat templates there are.

Model directories differ in where they say so. `tokenizer_config.json` comes first; a token there may be a string, a
mapping with `content`, or null. What it leaves open is looked up in `special_tokens_map.json`, then as an id in
`generation_config.json` and `config.json`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cueva.errors import TextError

DEFAULT_TEMPLATE_NAME: Final = "default"
TOOL_TEMPLATE_NAME: Final = "tool_use"
"""The template of this name is for conversations with tools, where there is one; `transformers` has the same rule."""


@dataclass(frozen=True)
class Settings:
    """What a model directory says about its tokenizer."""

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """`bos`, `eos` and `pad` as ids, where files beside the tokenizer give them."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Chat templates by name; the one that is meant without a name is `default`."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """`tokenizer_config.json` as it is, without its templates."""


def read_settings(folder: Path) -> Settings:
    """Read the files beside a tokenizer.json; each may be absent.

    Raises:
        TextError: a file is not what its name says.
    """
    config = _json(folder / "tokenizer_config.json")
    tokens = {**_json(folder / "special_tokens_map.json"), **{k: v for k, v in config.items() if v is not None}}
    templates = _templates(config.pop("chat_template", None), folder / "tokenizer_config.json")
    for path in [*sorted((folder / "additional_chat_templates").glob("*.jinja")), folder / "chat_template.jinja"]:
        if path.is_file():
            name = DEFAULT_TEMPLATE_NAME if path.name == "chat_template.jinja" else path.stem
            templates[name] = _text(path)
    # Code named in a directory is never run; the key would only invite others to.
    config.pop("auto_map", None)
    generation, model = _json(folder / "generation_config.json"), _json(folder / "config.json")
    ids = {}
    for name in ("bos", "eos", "pad"):
        key = f"{name}_token_id"
        found = _ids(generation.get(key), folder, key) or _ids(model.get(key), folder, key)
        if found:
            ids[name] = found
    spelled = {name: _spelling(tokens.get(f"{name}_token"), folder, f"{name}_token") for name in ("bos", "eos", "pad")}
    return Settings(**spelled, ids=ids, templates=templates, config=config)


# --- private ----------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"cannot read {path}: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise TextError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise TextError(f"{path} holds {type(found).__name__}, but an object is expected")
    return found


def _spelling(value: Any, folder: Path, key: str) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise TextError(f"`{key}` in {folder} is {value!r}; a string, or an object with `content`, is expected")
    return value or None


def _ids(value: Any, folder: Path, key: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in values):
        raise TextError(f"`{key}` in {folder} is {value!r}; a whole number, or a list of them, is expected")
    # Some files say -1 for "none".
    return tuple(one for one in values if one >= 0)


def _templates(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT_TEMPLATE_NAME: value}
    try:
        found = {one["name"]: one["template"] for one in value}
    except (TypeError, KeyError) as error:
        raise TextError(f"`chat_template` in {path} is neither a string nor a list of names and templates") from error
    if not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise TextError(f"`chat_template` in {path} has a name or a template that is no string")
    return found
