"""What the verbs share: where words go, how numbers read, options that several verbs take."""

import json
import logging
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cueva.errors import RequestError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line instead of text.")]
Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="PATH", help="A model directory, or the name of one on the Hugging Face hub."
    ),
]

SILENT_SECONDS = 2.0
"""Work shorter than this shows no progress."""
REDRAW_SECONDS = 0.2
PLAIN_SECONDS = 5.0
"""In a log, a line less often than this is news; more often it is noise."""


def say(text: str) -> None:
    """Talk: to stderr, so that results on stdout can be piped."""
    print(text, file=sys.stderr, flush=True)


def result(text: str) -> None:
    """A result: to stdout."""
    print(text, flush=True)


def emit(record: Mapping[str, Any]) -> None:
    """A result for a machine: one JSON object on a line of its own."""
    result(json.dumps(record, ensure_ascii=False))


class _Talk(logging.Handler):
    """Our own log as notes on stderr, wherever stderr is at that moment."""

    def __init__(self, name: str):
        super().__init__()
        self._name = name

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{self._name}: note: {record.getMessage()}")


def show_library_talk(name: str, *, all_of_it: bool) -> None:
    """Print what Python's `warnings` and our own log have to say as a sentence each, without places in the code.

    Args:
        name: of the command, which the sentences begin with.
        all_of_it: also what is no warning, such as the sampling defaults that an engine begins with.
    """

    def showwarning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            say(f"{name}: note: {' '.join(str(message).split())}")

    warnings.showwarning = showwarning
    logger = logging.getLogger("cueva")
    for handler in [handler for handler in logger.handlers if isinstance(handler, _Talk)]:
        logger.removeHandler(handler)
    logger.addHandler(_Talk(name))
    logger.setLevel(logging.INFO if all_of_it else logging.WARNING)


def count(number: float) -> str:
    """`12345` as `12,345`."""
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Bytes in the largest unit that leaves a number of at least one."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError(number)


def duration(seconds: float) -> str:
    """Seconds as a person would say them: `12 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Watcher:
    """Progress on stderr: one line with its unit and the time left, redrawn on a terminal, now and then elsewhere.

    Work of less than two seconds stays silent. It is what `cueva.api` calls a `Watch`; `say` prints a sentence between.
    """

    def __init__(self) -> None:
        self._redraws = sys.stderr.isatty()
        self._what = ""
        self._began = self._shown = 0.0
        self._drawn = False

    def __call__(self, what: str, unit: str, done: float, total: float | None) -> None:
        """Tell how much of what is done."""
        now = time.monotonic()
        if what != self._what:
            self.close()
            self._what, self._began, self._shown = what, now, now
        if now - self._began < SILENT_SECONDS:
            return
        if now - self._shown < (REDRAW_SECONDS if self._redraws else PLAIN_SECONDS):
            return
        self._shown = now
        line = progress_line(what, unit, done, total, now - self._began)
        if self._redraws:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
            self._drawn = True
        else:
            say(line)

    def say(self, text: str) -> None:
        """Print a sentence below the line."""
        self.close()
        say(text)

    def close(self) -> None:
        """Wipe the line, if one was drawn; what comes next begins its own."""
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._drawn = False
        self._what = ""


def progress_line(what: str, unit: str, done: float, total: float | None, seconds: float) -> str:
    """`scored 12,288/40,960 positions (30%)  21 s left  1,338 positions/s`."""
    rate = done / seconds if seconds > 0 else 0.0
    if not total:
        return f"{what} {count(done)} {unit}  {count(rate)} {unit}/s"
    share = min(done / total, 1.0)
    parts = [f"{what} {count(done)}/{count(total)} {unit} ({share:.0%})"]
    if rate > 0:
        parts.append(f"{duration(max(total - done, 0) / rate)} left")
    return "  ".join([*parts, f"{count(rate)} {unit}/s"])


def draft_count(text: str) -> Any:
    """`auto`, or the number of tokens to draft.

    Raises:
        RequestError: it is neither.
    """
    if text == "auto":
        return "auto"
    if text.isdecimal():
        return int(text)
    raise RequestError(f"--draft is {text!r}, but it is 'auto' or a number of tokens from 0")


def speed_line(stats: Any, *, positions: int | None = None) -> str:
    """How fast an answer came and what became of its drafts, in one line."""
    parts = [f"{count(stats.new_tokens)} tokens"]
    if stats.tokens_per_second:
        parts.append(f"{stats.tokens_per_second:.1f} tokens/s")
    parts.append(f"first after {stats.prefill_seconds:.2f} s")
    if stats.drafted and stats.drafted[0]:
        kept = ", ".join(f"{k / d:.0%}" for k, d in zip(stats.accepted, stats.drafted, strict=True) if d)
        parts.append(f"drafts kept {kept}")
        parts.append(f"{stats.tokens_per_pass:.2f} tokens per pass")
    if positions is not None:
        parts.append(f"{count(stats.prompt_tokens + stats.new_tokens)} of {count(positions)} positions")
    return ", ".join(parts)
