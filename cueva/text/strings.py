"""What a Python string needs before it can become tokens: whole characters, and pieces that are not too long.

The regular expressions of published tokenizers may give up on a run of some million spaces, and a vocabulary cannot be
learned from a word of a million letters in reasonable time. Pieces of bounded length keep both linear.
"""

import re
from collections.abc import Iterator
from typing import Final

from cueva.errors import TextError

_HALF: Final = re.compile("[\ud800-\udfff]")


def half_character(text: str) -> str | None:
    """Say in words which half of a surrogate pair a string holds, if any: JSON can spell it, UTF-8 cannot."""
    half = _HALF.search(text)
    return None if half is None else f"\\u{ord(half[0]):x} is half of a surrogate pair, which is no character"


def utf8(text: str) -> bytes:
    """Encode as UTF-8.

    Raises:
        TextError: the string holds half of a surrogate pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TextError(f"character {error.start + 1} of the text: {half_character(text)}") from error


def pieces(text: str, limit: int) -> Iterator[str]:
    """Cut a text into pieces of at most `limit` characters, which joined give the text again.

    A cut falls before a line that begins with something visible, or else before a single space between words, in the
    second half of the piece; pretokenizers of the GPT and DeepSeek kind part words there anyway, so the tokens are
    those of the whole text. Where neither is found the cut falls anywhere, and may divide one token.
    """
    start = 0
    while len(text) - start > limit:
        stop = _border(text, start + limit // 2, start + limit)
        yield text[start:stop]
        start = stop
    yield text[start:]


def _border(text: str, low: int, high: int) -> int:
    end = text.rfind("\n", low, high)
    while end >= 0:
        if not text[end + 1].isspace():
            return end + 1
        end = text.rfind("\n", low, end)
    space = text.rfind(" ", low + 1, high)
    while space >= 0:
        if not text[space - 1].isspace() and not text[space + 1].isspace():
            return space
        space = text.rfind(" ", low + 1, space)
    return high
