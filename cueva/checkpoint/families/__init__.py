"""The families of this architecture, found by the `model_type` of a published config.

A family says which keys its own class takes for granted, which values its readers silently ignore, and what else about
a shape keeps other tools from reproducing it. A new family is a file here and a line in `FAMILIES`.
"""

from typing import Any, Final

from cueva.checkpoint.families import deepseek_v2, deepseek_v3
from cueva.checkpoint.families.family import Departure, Family
from cueva.errors import ConfigError, nearest

FAMILIES: Final[dict[str, Family]] = {f.model_type: f for f in (deepseek_v3.FAMILY, deepseek_v2.FAMILY)}

__all__ = ["FAMILIES", "Departure", "Family", "family_of"]


def family_of(model_type: Any) -> Family:
    """Find a family.

    Raises:
        ConfigError: there is none of that name; names those that exist.
    """
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    have = ", ".join(FAMILIES)
    if model_type is None:
        raise ConfigError(f"`model_type` is missing; it decides how the weights are read. The families are: {have}")
    hint = nearest(model_type, FAMILIES) if isinstance(model_type, str) else ""
    raise ConfigError(f"`model_type` {model_type!r} is no family that cueva knows{hint}; the families are: {have}")
