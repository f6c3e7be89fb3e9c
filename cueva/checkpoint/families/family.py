"""What a family of published models is to the reader and writer of its files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cueva.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Departure:
    """Something about a shape that other readers of the family do not reproduce."""

    key: str
    """The key of config.json at fault."""
    why: str
    """The rest of a sentence that begins with the key: what it is, and what other tools do."""
    silent: bool
    """Other tools open the directory without a word and compute something else, so a foreign file that says this is
    refused. Otherwise they refuse it themselves, or lack a part."""


@dataclass(frozen=True, slots=True)
class Family:
    """One `model_type`."""

    model_type: str
    architecture: str
    """The class name that other tools build."""
    defaults: Mapping[str, Any]
    """What the family's own configuration class takes when a key is absent. None: there is no such thing."""
    departures: Callable[[ModelConfig], list[Departure]]
    """What leaves the family in a shape; empty for everything published."""
    aliases: Mapping[str, str]
    """Other names for keys, as `transformers` accepts them: given name to published name."""
