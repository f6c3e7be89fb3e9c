"""The `tokenizers` library, held so that ordinary text stays ordinary, long texts pass, and forks are silent."""

import json
import os
from collections.abc import Container, Mapping, Sequence
from typing import Any, Final

import tokenizers

from cueva.errors import TextError
from cueva.text.strings import pieces, utf8

LONGEST_PIECE: Final = 1_000_000
"""Characters encoded at once. The regular expression engine gives up after ten million steps on one run of spaces."""


def parse(text: str) -> dict[str, Any]:
    """Read the text of a tokenizer.json.

    Raises:
        TextError: it is something else.
    """
    try:
        definition = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TextError(f"not valid JSON: {error}") from error
    if not isinstance(definition, dict) or not isinstance(definition.get("model"), dict):
        raise TextError("not a tokenizer.json: an object with `model` is expected")
    definition.setdefault("added_tokens", [])
    definition.setdefault("pre_tokenizer", None)
    return definition


def build(
    definition: Mapping[str, Any], *, ordinary: Container[str] = (), inside: bool = False
) -> tokenizers.Tokenizer:
    """Make the library's tokenizer from a parsed tokenizer.json.

    Args:
        definition: as `parse` gives it.
        ordinary: spellings of added tokens that are to be read as the characters they consist of.
        inside: texts go on after something, so no space is put before the first word.

    Raises:
        TextError: the library cannot read it.
    """
    # Some published files cut or pad every text, which nobody who encodes a document wants.
    changed = {**definition, "truncation": None, "padding": None}
    if ordinary:
        # The library has a switch for "read special tokens as text"; so every token to be read so is marked special,
        # and no other.
        changed["added_tokens"] = [
            {**token, "special": token["content"] in ordinary} for token in definition["added_tokens"]
        ]
    if inside:
        changed["pre_tokenizer"] = _never_first(definition["pre_tokenizer"])
    try:
        engine = tokenizers.Tokenizer.from_str(json.dumps(changed))
    except Exception as error:  # the library raises bare Exceptions
        raise TextError(f"the tokenizers library cannot read this tokenizer.json: {error}") from error
    engine.encode_special_tokens = bool(ordinary)
    return engine


def may_cut(definition: Mapping[str, Any]) -> bool:
    """Whether the pieces of a text have the tokens of the whole: byte-level, and no space put before each piece."""
    shape = json.dumps(definition["pre_tokenizer"])
    return "ByteLevel" in shape and '"add_prefix_space": true' not in shape


def encode(engine: tokenizers.Tokenizer, texts: Sequence[str], *, cut: bool) -> list[list[int]]:
    """Encode texts on all cores, without begin or end tokens.

    Args:
        engine: from `build`.
        texts: strings of whole characters.
        cut: long texts may be encoded in pieces.

    Raises:
        TextError: a text holds half of a surrogate pair, or the library gives up on it.
    """
    parts = [list(pieces(text, LONGEST_PIECE)) if cut else [text] for text in texts]
    try:
        found = iter(engine.encode_batch_fast([piece for part in parts for piece in part], add_special_tokens=False))
    except BaseException as error:
        for text in texts:
            utf8(text)
        # A panic inside the library derives from BaseException, so that nobody mistakes it for a handled error.
        if type(error).__name__ == "PanicException":
            raise TextError(f"the tokenizers library gave up on a text: {error}") from error
        raise
    return [[token for _ in part for token in next(found).ids] for part in parts]


# --- private ----------------------------------------------------------------------------------------------------------


def _never_first(shape: Any) -> Any:
    """Change a pretokenizer that puts a space before the first word of a text into one that does not."""
    if isinstance(shape, list):
        return [_never_first(one) for one in shape]
    if not isinstance(shape, dict):
        return shape
    changed = {key: _never_first(value) for key, value in shape.items()}
    if changed.get("type") == "Metaspace" and changed.get("prepend_scheme") == "first":
        changed["prepend_scheme"] = "never"
    return changed


class _QuietForks:
    """Tells the library before a fork that the child has one thread.

    Its threads do not survive a fork. Left alone it prints a warning about that into whatever program forked, for
    instance one that starts a data loader; told beforehand, it is silent and safe. What the user has set stays.
    """

    NAME: Final = "TOKENIZERS_PARALLELISM"

    def __init__(self) -> None:
        self.ours = False

    def before(self) -> None:
        if self.NAME not in os.environ:
            os.environ[self.NAME] = "false"
            self.ours = True

    def after_in_parent(self) -> None:
        if self.ours:
            self.ours = False
            os.environ.pop(self.NAME, None)


if hasattr(os, "register_at_fork"):
    _quiet = _QuietForks()
    os.register_at_fork(before=_quiet.before, after_in_parent=_quiet.after_in_parent)
