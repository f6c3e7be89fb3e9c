"""Conversations: the template of our models, rendering any template, and encoding so that nobody can forge a turn."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from cueva.errors import TextError, nearest
from cueva.text import template as templates
from cueva.text.default_template import DEFAULT_TEMPLATE
from cueva.text.special import THINK, THINK_END, Control

_GIVEN: Final = frozenset({"messages", "tools", "documents", "bos_token", "eos_token", "add_generation_prompt"})


class ChatTokenizer(Protocol):
    """What encoding a conversation needs of a tokenizer."""

    control: Mapping[str, Control]
    bos_id: int | None
    adds_bos: bool

    @property
    def bos_token(self) -> str:
        """How the begin token is spelled."""
        ...

    @property
    def eos_token(self) -> str:
        """How the end token is spelled."""
        ...

    def encode(self, text: str, *, inside: bool = False) -> list[int]:
        """Encode ordinary text."""
        ...


def render_chat(
    messages: Sequence[Mapping[str, Any]],
    template: str,
    *,
    bos: str,
    eos: str,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """Write a conversation as one text, special tokens spelled out.

    For reading, and for comparing with other programs. Encoding this text with special tokens on would let a message
    spell one: use `encode_chat` for what a model is to see.

    Args:
        messages: mappings with `role` and `content`, and whatever else the template reads.
        template: a Jinja chat template.
        bos: the begin token, `bos_token` in the template.
        eos: the end token, `eos_token`.
        add_generation_prompt: end with the opening of the assistant's turn.
        tools: descriptions of functions, in the form of the OpenAI API.
        **variables: switches that the template reads, such as `thinking`; each a string, number, boolean or None.

    Raises:
        TextError: the template refuses the conversation or is not fit for use, or does not read one of `variables`, or
            does not read `tools`.
    """
    values = _values(messages, template, bos, eos, add_generation_prompt, tools, variables)
    return templates.render(template, values, trusted=template == DEFAULT_TEMPLATE)


def encode_chat(
    tokenizer: ChatTokenizer,
    messages: Sequence[Mapping[str, Any]],
    template: str,
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> list[int]:
    """Turn a conversation into ids. What the template writes may become special tokens, what the messages say cannot.

    Every control token of the tokenizer begins with, or contains, a character that is no letter, nearly always `<`. In
    all strings that the caller hands in, these characters are replaced by private-use characters found nowhere else in
    the conversation or the template. The template renders that: a control token in its output can only be its own,
    whatever it cut out, joined or trimmed, because no part of the messages holds the character that one needs. The
    output is then cut at the control tokens; between them the private-use characters are turned back, and the text is
    encoded as ordinary text.

    One exception, in assistant messages: the first `</think>`, and the first `<think>` if it comes before that, stay as
    they are, because templates look for them to leave old thoughts out, and because the model wrote them as tokens.

    The begin token comes once: the template's, or if that writes none, ours when the tokenizer adds one.

    Args:
        tokenizer: a `Tokenizer`.
        messages: as for `render_chat`, as are the other arguments.
        template: a Jinja chat template.
        add_generation_prompt: end with the opening of the assistant's turn.
        tools: descriptions of functions.
        **variables: switches that the template reads.

    Raises:
        TextError: as `render_chat`.
    """
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    values = _values(messages, template, bos, eos, add_generation_prompt, tools, variables)
    outside = {name: values[name] for name in ("messages", "tools", *variables)}
    masks = _masks(tokenizer.control, json.dumps(outside, ensure_ascii=False) + template)
    values |= {name: _masked(value, masks) for name, value in outside.items() if name != "messages"}
    values["messages"] = [_masked_message(message, masks) for message in outside["messages"]]
    rendered = templates.render(template, values, trusted=template == DEFAULT_TEMPLATE)
    ids: list[int] = []
    for part in _parts(rendered, tokenizer.control):
        if isinstance(part, Control):
            ids.append(part.id)
        else:
            ids += tokenizer.encode(_unmasked(part, masks), inside=bool(ids))
    if tokenizer.adds_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
    return ids


# --- private ----------------------------------------------------------------------------------------------------------


def _values(
    messages: Sequence[Mapping[str, Any]],
    template: str,
    bos: str,
    eos: str,
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
) -> dict[str, Any]:
    """Check what the caller gave, and gather what the template sees: plain data, nothing with methods of its own."""
    if not messages:
        raise TextError("a conversation needs at least one message")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TextError(f"message {number} is not an object with a `role`")
    known = templates.variables_of(template)
    if tools and known and "tools" not in known:
        raise TextError(
            "this chat template has no place for tools, so the model would not see them",
            way_out="try describing them in the system message",
        )
    for name, value in variables.items():
        if name in _GIVEN or name.startswith("_"):
            raise TextError(f"the template variable {name!r} is not the caller's to set")
        if not isinstance(value, str | int | float | bool | None):
            raise TextError(
                f"the template variable {name!r} is {type(value).__name__}; a string, number or boolean fits"
            )
        if known and name not in known:
            free = sorted(known - _GIVEN)
            what = f"it reads {', '.join(free)}" if free else "it reads none"
            raise TextError(f"this chat template does not read the variable {name!r}{nearest(name, free)}; {what}")
    try:
        plain = json.loads(json.dumps({"messages": list(messages), "tools": list(tools) if tools else None}))
    except (TypeError, ValueError, RecursionError) as error:
        raise TextError(f"the conversation holds something that JSON cannot express: {error}") from error
    return {
        **variables,
        **plain,
        "documents": None,
        "bos_token": bos,
        "eos_token": eos,
        "add_generation_prompt": add_generation_prompt,
    }


def _masks(control: Mapping[str, Control], used: str) -> dict[str, str]:
    """Give each character that control tokens need a stand-in which occurs nowhere in `used`."""
    needed = dict.fromkeys(_key(text) for text in control)
    taken = set(used)
    free: Iterator[str] = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in taken)
    masks = {needed_one: next(free, "") for needed_one in needed}
    if "" in masks.values():
        raise TextError("the conversation uses every private-use character there is, so it cannot be encoded safely")
    return masks


def _key(text: str) -> str:
    return next((letter for letter in text if not letter.isalnum() and not letter.isspace()), text[0])


def _masked(value: Any, masks: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return value.translate(str.maketrans(dict(masks)))
    if isinstance(value, list):
        return [_masked(one, masks) for one in value]
    if isinstance(value, dict):
        return {_masked(key, masks): _masked(one, masks) for key, one in value.items()}
    return value


def _masked_message(message: dict[str, Any], masks: Mapping[str, str]) -> dict[str, Any]:
    masked = _masked(message, masks)
    if message["role"] == "assistant" and isinstance(message.get("content"), str):
        thought, end, answer = message["content"].partition(THINK_END)
        if end:
            thought = _masked(thought, masks).replace(_masked(THINK, masks), THINK, 1)
            masked["content"] = thought + end + _masked(answer, masks)
    return masked


def _unmasked(text: str, masks: Mapping[str, str]) -> str:
    for letter, mask in masks.items():
        # A template may ask `tojson` for ASCII, which spells the stand-in as an escape.
        text = text.replace(mask, letter).replace(f"\\u{ord(mask):04x}", json.dumps(letter)[1:-1])
    return text


def _parts(rendered: str, control: Mapping[str, Control]) -> Iterator[str | Control]:
    """Cut a rendered conversation into control tokens, the longest that fits at each place, and the text between."""
    if not control:
        yield rendered
        return
    spellings = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
    pieces = re.split(f"({spellings})", rendered)
    for place, piece in enumerate(pieces):
        if place % 2:
            yield control[piece]
            continue
        if place and control[pieces[place - 1]].right_strip:
            piece = piece.lstrip()
        if place + 1 < len(pieces) and control[pieces[place + 1]].left_strip:
            piece = piece.rstrip()
        if piece:
            yield piece
