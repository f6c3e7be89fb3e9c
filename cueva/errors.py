"""What can go wrong, said so that the person who meets it knows the way out.

A caller's mistake is a subclass of `CuevaError`; an `assert` is for what only a bug of ours could break. A message says
what was given and what was expected; `way_out`, when there is one, is a second sentence that begins with "try".
"""

import difflib
from collections.abc import Iterable


class CuevaError(Exception):
    """Base of every error a caller can cause.

    Args:
        message: one sentence: what was given, what was expected.
        way_out: one more that says what to do, shown on its own line.
    """

    exit_status = 2
    """What the command line exits with: 2 for a request that cannot be served, 1 for a run that failed."""

    def __init__(self, message: str, *, way_out: str | None = None):
        super().__init__(message)
        self.message = message
        self.way_out = way_out

    def __str__(self) -> str:
        return self.message if self.way_out is None else f"{self.message}\n  {self.way_out}"


class ConfigError(CuevaError):
    """A model or run configuration that does not describe something that can exist."""


class ShapeError(CuevaError):
    """Tensors whose shapes do not fit together."""


class TextError(CuevaError):
    """Text, a corpus, a tokenizer or a chat template that cannot be used."""


class CheckpointError(CuevaError):
    """A model directory or training state that is missing, damaged or does not fit."""


class RequestError(CuevaError):
    """A generation request that cannot be served."""


class DependencyError(CuevaError):
    """An optional package is needed and absent; the message names the extra that brings it."""


class RunError(CuevaError):
    """A run that began and failed."""

    exit_status = 1


def nearest(given: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known name, or an empty string."""
    found = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""
