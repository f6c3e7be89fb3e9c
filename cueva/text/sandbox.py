"""The environment that chat templates are rendered in: Jinja's immutable sandbox, with an eye on sizes.

The sandbox keeps a template away from Python's insides. What it does not stop are operations that make something huge
out of something small: `'a' * 10**9`, `|center(10**9)`, a format with a width of nine digits. They are refused here,
and so is an output of more than four million characters.
"""

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils
from jinja2.exceptions import SecurityError

LONGEST_OUTPUT: Final = 4_000_000
"""Characters of a rendered conversation."""

_LARGEST_NUMBER: Final = 100_000
"""Of an argument, and of the length that a multiplication may give: what the sandbox allows for a range."""
_WIDE_FORMAT: Final = re.compile(r"\d{6}")


class RefusedError(jinja2.TemplateError):
    """The template's own `raise_exception`: its author has something to say to the caller."""


class TooMuchError(SecurityError):
    """The template asks for more than a conversation can need."""


@functools.lru_cache(maxsize=32)
def compiled(template: str) -> jinja2.Template:
    """Compile a template, in the dialect of `transformers`: blocks trimmed, loop controls, `{% generation %}`.

    Raises:
        jinja2.TemplateSyntaxError: it is not valid.
    """
    return _environment().from_string(template)


@functools.lru_cache(maxsize=32)
def undeclared(template: str) -> frozenset[str]:
    """Return the names that a template reads and does not set itself.

    Raises:
        jinja2.TemplateSyntaxError: it is not valid.
    """
    environment = _environment()
    return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(template))) - set(environment.globals)


def output(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Render, up to a limit.

    Raises:
        RefusedError: the template said no.
        SecurityError: it does what no chat template should.
        Exception: whatever else Python can raise.
    """
    parts: list[str] = []
    length = 0
    for part in template.generate(**variables):
        parts.append(part)
        length += len(part)
        _refuse(length > LONGEST_OUTPUT, f"more than {LONGEST_OUTPUT:,} characters of output")
    return "".join(parts)


# --- private ----------------------------------------------------------------------------------------------------------


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, with an eye on sizes."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        lengths = [len(side) if isinstance(side, str | list | tuple) else None for side in (left, right)]
        if operator == "+" and None not in lengths:
            _refuse(sum(length or 0 for length in lengths) > LONGEST_OUTPUT, "a text that keeps growing")
        elif operator == "*":
            for length, factor in zip(lengths, (right, left), strict=True):
                _refuse(
                    length is not None and isinstance(factor, int) and length * factor > _LARGEST_NUMBER, "repetition"
                )
        elif operator == "**":
            _refuse(not isinstance(right, int) or abs(right) > 64 or not abs(left) < 1 << 64, "such a power")
        elif operator == "%" and isinstance(left, str):
            _refuse_wide(left, (right,))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _refuse_wide(value.__self__, ())
        return wrapped

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        _refuse_wide(getattr(__obj, "__self__", None), (*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the model wrote, for training; rendering passes it through."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """A namespace whose attributes cannot pass for Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in dict(*args[1:], **kwargs):
            _refuse(str(name).startswith("_"), f"the attribute {name!r}")
        jinja2.utils.Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse(name.startswith("_"), f"the attribute {name!r}")
        super().__setitem__(name, value)


def _environment() -> _Sandbox:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    for name, function in environment.filters.items():
        environment.filters[name] = _sized(function)
    environment.filters["tojson"] = _to_json
    environment.globals.pop("lipsum", None)
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_dict, namespace=_Namespace
    )
    return environment


def _sized(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter so that it takes no number that only makes something huge."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        texts = [argument for argument in args[:4] if isinstance(argument, str)]
        _refuse_wide(texts[0] if function.__name__ == "do_format" and texts else None, (*args, *kwargs.values()))
        if function.__name__ == "do_replace" and len(texts) == 3:
            _refuse(texts[0].count(texts[1]) * len(texts[2]) > LONGEST_OUTPUT, "such a replacement")
        return function(*args, **kwargs)

    return guarded


def _refuse_wide(format: Any, values: Iterable[Any]) -> None:
    _refuse(isinstance(format, str) and _WIDE_FORMAT.search(format) is not None, "so wide a format")
    for value in values:
        _refuse(isinstance(value, int) and abs(value) > _LARGEST_NUMBER, f"the number {value!r:.20}")


def _refuse(condition: bool, what: str) -> None:
    if condition:
        raise TooMuchError(f"a chat template has no use for {what}")


def _raise_exception(message: Any = "") -> None:
    raise RefusedError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    _refuse_wide(None, [indent])
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
