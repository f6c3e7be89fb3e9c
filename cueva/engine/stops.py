"""From tokens to text that may be shown: whole characters, and nothing of a stop string.

A token need not be a whole character, and a stop string need not begin or end where a token does. So text is held back
while it may still turn into a stop string. Where the answer ends does not depend on how the text was cut into tokens:
it ends before the stop string whose last character comes first; of two that end together, before the longer one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol


class Decoder(Protocol):
    """Tokens to text, one at a time (`Tokenizer.stream()`)."""

    def push(self, token_id: int, /) -> str:
        """Return what this token completes, never half a character."""
        ...

    def flush(self) -> str:
        """Return what is left."""
        ...


class Codec(Protocol):
    """What the engine asks of a tokenizer (`cueva.text.Tokenizer`)."""

    size: int
    """Tokens it knows; the model's vocabulary may have more rows."""
    bos_id: int | None
    """What a text begins with."""
    adds_bos: bool
    """Whether a text for its models begins so."""
    eos_ids: tuple[int, ...]
    """What ends an answer."""

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Text to ids; `bos` puts the begin token before them."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """A conversation to ids, ready for the answer."""
        ...

    def stream(self, *, after: Iterable[int] = ()) -> Decoder:
        """A decoder for one answer; the text of the ids `after` which it goes on is not repeated."""
        ...


class NoText:
    """The decoder of an engine without a tokenizer."""

    def push(self, token_id: int, /) -> str:
        """Return nothing."""
        return ""

    def flush(self) -> str:
        """Return nothing."""
        return ""


class ShownText:
    """The text of one answer as it may be shown."""

    def __init__(self, decoder: Decoder, stops: Iterable[str] = ()):
        """Decode with `decoder`, and end before any of `stops`."""
        self._decoder = decoder
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.stopped: str | None = None
        """The stop string that ended the text."""

    def push(self, token_id: int) -> str:
        """Add a token; return what may be shown now."""
        return self._show(self._decoder.push(token_id))

    def flush(self) -> str:
        """End; return what was held back and turned out to be text."""
        shown = self._show(self._decoder.flush())
        shown, self._held = shown + self._held, ""
        return shown

    def _show(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        looked = len(self._held)
        self._held += text
        for end in range(looked + 1, len(self._held) + 1):
            # `_held` may be longer than a stop string, so only its end is compared.
            ending = [stop for stop in self._stops if self._held.endswith(stop, 0, end)]
            if ending:
                self.stopped = max(ending, key=len)
                shown, self._held = self._held[: end - len(self.stopped)], ""
                return shown
        keep = self._may_become_stop()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def _may_become_stop(self) -> int:
        """Length of the longest end of the held text that some stop string begins with."""
        for length in range(min(len(self._held), self._longest - 1), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
