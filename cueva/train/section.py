"""What the sections of a config file have in common: strict keys, the word "none", and errors that are sentences."""

from collections.abc import Mapping
from types import NoneType
from typing import Any, ClassVar, Final, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from cueva.errors import ConfigError, nearest

NONE: Final = "none"
"""TOML has no null; this word stands for it."""


class Section(BaseModel):
    """A group of keys. Unknown keys and wrong values raise `ConfigError` with a sentence each."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False, defer_build=True
    )
    section: ClassVar[str] = ""

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_sentences(error, type(self))) from None

    @model_validator(mode="before")
    @classmethod
    def _none_is_a_word(cls, values: Any) -> Any:
        """TOML has no null: "none" stands for it, in keys that may be absent and hold no text."""
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        return {
            key: None if value == NONE and key in fields and may_be_absent(fields[key].annotation) else value
            for key, value in values.items()
        }


def may_be_absent(annotation: Any) -> bool:
    """Whether a key takes null and no text, so that the word "none" can mean only one thing."""
    kinds = get_args(annotation)
    return NoneType in kinds and str not in kinds


def reason(error: Any) -> str:
    """Say in a few words what pydantic has against a value."""
    message: str = error["msg"]
    message = message.removeprefix("Value error, ").removeprefix("Input ").removeprefix("should be ")
    return message if message == error["msg"].removeprefix("Value error, ") else f"it should be {message}"


def _sentences(error: ValidationError, kind: type[Section]) -> str:
    """One sentence for each thing that is wrong, by the full name of its key."""
    sentences: list[str] = []
    for found in error.errors():
        path = [str(part) for part in found["loc"]]
        part: type[BaseModel] = kind
        if not kind.section and path and path[0] in kind.model_fields:
            part = _section_class(kind.model_fields[path[0]].annotation, path)
        prefix = [kind.section] if kind.section else []
        name = ".".join([*prefix, *path])
        if found["type"] == "extra_forbidden":
            known = [*part.model_fields]
            where = f"`{'.'.join([*prefix, *path[:-1]])}`" if len(path) > 1 or prefix else "a config"
            guess = nearest(path[-1], known)
            kind_name = "key" if len(path) > 1 or prefix else "section"
            sentences.append(f"there is no {kind_name} `{name}`{guess or f'; {where} has: ' + ', '.join(known)}")
        elif found["type"] == "union_tag_invalid":
            names = found.get("ctx", {}).get("expected_tags", "")
            sentences.append(f"there is no schedule {found['input'].get('name')!r}; the schedules are: {names}")
        else:
            sentences.append(f"`{name}` is {found['input']!r}: {reason(found)}")
    return "; ".join(sentences)


def _section_class(annotation: Any, path: list[str]) -> type[BaseModel]:
    """The class of a section; of a union, the one whose name comes next in the path (which is shortened by it)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for kind in get_args(annotation):
        if len(path) > 1 and kind.model_fields["name"].default == path[1]:
            del path[1]
            return kind
    return BaseModel
