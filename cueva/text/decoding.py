"""Tokens back to text: all at once, or one token at a time without ever showing half a character.

Every token stands for some bytes; a text is the bytes of its tokens, read as UTF-8. That is the whole truth for
byte-level tokenizers. Those made from SentencePiece models add a rule about the space before the first word, which is
kept here too, so that decoding token by token and decoding at once agree by construction.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from cueva.errors import TextError

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Decoding:
    """How one tokenizer's tokens become bytes.

    Args:
        definition: the parsed tokenizer.json.
        token_of: gives the spelling of an id, None for an id without one.

    Raises:
        TextError: the tokenizer's decoder is of a kind that we do not know; the message names it.
    """

    def __init__(self, definition: Mapping[str, Any], token_of: Callable[[int], str | None]):
        self._token_of = token_of
        self._added = {int(token["id"]): token["content"] for token in definition["added_tokens"]}
        self.hidden = frozenset(int(token["id"]) for token in definition["added_tokens"] if token.get("special"))
        """Ids that decoding leaves out unless asked."""
        self._byte_level = False
        self._byte_fallback = False
        self._space: str | None = None
        """The mark that stands for a space."""
        self.drops_first_mark = False
        """The first token of a text loses its space marks (Metaspace)."""
        self.strips_spaces = 0
        """Spaces removed from the beginning of a text (Strip)."""
        decoder = definition.get("decoder") or {}
        for step in decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]:
            self._add_step(step)
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """Return what a token writes in the middle of a text; nothing for an id without a token."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._spell(token)
        return found

    def first_bytes_of(self, token: int) -> bytes:
        """Return what a token writes at the beginning of a text."""
        spelled = None if token in self._added else self._token_of(token)
        if self.drops_first_mark and self._space and spelled and self._space in spelled:
            return spelled.replace(self._space, "").encode()
        return self.bytes_of(token)

    def knows(self, token: int) -> bool:
        """Whether the id stands for a token; a model's vocabulary may be larger than its tokenizer's."""
        return token in self._added or self._token_of(token) is not None

    def text(self, tokens: Iterable[int], *, special: bool) -> str:
        """Decode all tokens at once; bytes that are not UTF-8 become U+FFFD."""
        if self.drops_first_mark or self.strips_spaces:
            stream = StreamDecoder(self, special=special)
            return "".join([*map(stream.push, tokens), stream.flush()])
        shown = tokens if special else (token for token in tokens if token not in self.hidden)
        return b"".join(map(self.bytes_of, shown)).decode("utf-8", "replace")

    def _spell(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        spelled = self._token_of(token)
        if spelled is None:
            return b""
        if self._byte_level:
            try:
                return bytes(_BYTE_OF[letter] for letter in spelled)
            except KeyError:
                return spelled.encode()
        if self._byte_fallback and (byte := _BYTE_TOKEN.fullmatch(spelled)):
            return bytes([int(byte[1], 16)])
        return (spelled if self._space is None else spelled.replace(self._space, " ")).encode()

    def _add_step(self, step: Mapping[str, Any]) -> None:
        match step:
            case {"type": "ByteLevel"}:
                self._byte_level = True
            case {"type": "ByteFallback"}:
                self._byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": mark}, "content": " "}:
                self._space = mark
            case {"type": "Metaspace", "replacement": mark}:
                self._space = mark
                self.drops_first_mark = step.get("prepend_scheme", "always") != "never"
            case {"type": "Strip", "content": " ", "start": count, "stop": 0}:
                self.strips_spaces = count
            case _:
                raise TextError(
                    f"this tokenizer's decoder has a step {step.get('type', 'without a type')!r}, not supported; "
                    "byte-level tokenizers and those converted from SentencePiece are"
                )


class StreamDecoder:
    """Decodes tokens one at a time.

    What `push` returned for all tokens, then `flush`, joined, is what decoding all of them at once gives. A character
    whose bytes are spread over several tokens appears with the last of them. Bytes that cannot become a character any
    more appear as U+FFFD at once; bytes that still might, at `flush`.

    Args:
        decoding: the tokenizer's.
        special: show special tokens too.
        after: tokens that came before, whose text is not repeated: the first token of a continuation keeps the space
            that it would lose at the beginning of a text, and completes a character that was left half finished.
    """

    def __init__(self, decoding: Decoding, *, special: bool = False, after: Iterable[int] = ()):
        self._decoding = decoding
        self._special = special
        self._first = True
        self._strip = decoding.strips_spaces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        for token in after:
            self.push(token)

    def push(self, token: int) -> str:
        """Take the next token and return the text that is certain now, which may be empty."""
        if not self._special and token in self._decoding.hidden:
            return ""
        if not self._first:
            data = self._decoding.bytes_of(token)
        elif self._decoding.knows(token):
            data = self._decoding.first_bytes_of(token)
            self._first = False
        else:
            return ""
        return self._stripped(self._utf8.decode(data))

    def flush(self) -> str:
        """End the text: return U+FFFD for a character that was begun and never finished, else nothing."""
        return self._stripped(self._utf8.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
                break
            text = text[1:]
            self._strip -= 1
        return text


def _bytes_by_letter() -> dict[str, int]:
    """Build the alphabet of byte-level BPE: a visible letter for each byte.

    Source: GPT-2's `bytes_to_unicode`: printable Latin-1 stands for itself, the others take letters from U+0100 up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF: Final = _bytes_by_letter()
