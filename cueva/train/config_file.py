"""A config as a file: read, changed from the command line, compared."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cueva.errors import ConfigError
from cueva.train.settings import TrainConfig


def read_train_config(path: str | Path | None, changes: Iterable[str] = ()) -> TrainConfig:
    """Read a TOML file and apply `section.key=value` changes to it.

    Args:
        path: the file; None: the defaults alone.
        changes: values are written as in TOML, words may stand without quotes: `optimizer.lr=3e-4`,
            `schedule.name=cosine`.

    Raises:
        ConfigError: the file is missing or no TOML, or a key or value does not fit.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"cannot read the config file {path}: {reason}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for change in changes:
        _apply(values, change)
    return TrainConfig(**values)


def config_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Compare two tables key by key: lines such as `optimizer.lr: 0.001 -> 0.0003`, empty when they agree."""

    def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in table.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        return found

    one, other = flat(old), flat(new)
    return [
        f"{key}: {one.get(key, '(absent)')} -> {other.get(key, '(absent)')}"
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    ]


def _apply(values: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f"cannot apply {change!r}: write section.key=value, for instance optimizer.lr=3e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = values
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"cannot apply {change!r}: `{key}` holds a value, not a section")
    table[keys[-1]] = value
