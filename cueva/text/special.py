"""Special tokens: their spelling, and which tokens of a tokenizer ordinary text must never turn into.

The bar is U+FF5C (fullwidth) and the low line U+2581, as DeepSeek-V3 spells them: the same words typed with ASCII bars
are ordinary text.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

BOS: Final = "<｜begin▁of▁sentence｜>"
EOS: Final = "<｜end▁of▁sentence｜>"
PAD: Final = "<｜▁pad▁｜>"
USER: Final = "<｜User｜>"
ASSISTANT: Final = "<｜Assistant｜>"
THINK: Final = "<think>"
THINK_END: Final = "</think>"

HIDDEN: Final = (BOS, EOS, PAD, USER, ASSISTANT)
"""Special tokens that decoding leaves out unless asked: they divide a text and are no part of it."""

SHOWN: Final = (
    THINK,
    THINK_END,
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
)
"""Special tokens that decoding shows, as published tokenizers do: a caller finds thoughts and tool calls by them."""

SPECIAL_TOKENS: Final = HIDDEN + SHOWN
"""In the order of their ids, from 0, in the tokenizers that we train."""

_OPENERS: Final = ("<", "[", "｜")


class Control(NamedTuple):
    """A token that only a template or a caller who asks for it may write."""

    id: int
    text: str
    left_strip: bool
    """The token takes the white space before it."""
    right_strip: bool


def controls(added_tokens: Iterable[Mapping[str, Any]], templates: Iterable[str]) -> dict[str, Control]:
    """Pick the tokens that text from outside must not be able to write, by their spelling.

    The files' own `special` mark is no guide: DeepSeek's published tokenizers mark `<｜User｜>` and `</think>` as not
    special. Control tokens are those marked special, those that a chat template spells out, and those that look like
    markup; added tokens which are ordinary words or white space are text like any other.

    Args:
        added_tokens: `added_tokens` of a tokenizer.json.
        templates: the chat templates that come with it.
    """
    written = "\0".join(templates)
    found = {}
    for token in added_tokens:
        text = token["content"]
        if text.strip() and (token.get("special") or text.startswith(_OPENERS) or text in written):
            strips = bool(token.get("lstrip")), bool(token.get("rstrip"))
            found[text] = Control(int(token["id"]), text, *strips)
    return found
