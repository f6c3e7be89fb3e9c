"""One engine in a process of its own, asked over pipes: what it must be able to do, its loop, and who asks it.

Engines are timed in turn within one run, and each brings its own libraries and OpenMP runtime, so each lives in a child
process (`python -m benchmarks.peers NAME ...`) that has its model open and sleeps on a pipe while others are timed.
Requests and replies are one JSON object on a line. The child times its own calls; the pipe is in no figure.

All engines get the same tokens, drawn from a seed. Every step ends with the likeliest next token in Python's hands, as
greedy generation needs it, but the token that follows is the next of the seed's: so all engines do the same work, and
several sequences do not fall into the same words. After each timed step the cache is taken back to the length that is
being measured.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

WARM_STEPS: Final = 2
"""Untimed steps before timed ones: threads that slept wake up, pages come back."""
FEWEST_STEPS: Final = 3
START_SECONDS: Final = 600.0
ASK_SECONDS: Final = 3600.0
SETTLE_SECONDS: Final = 0.1
"""Between turns: OpenMP threads spin for some milliseconds before they sleep."""


class Contestant(Protocol):
    """An engine with a model open."""

    vocabulary: int
    """Token ids are below it."""
    settings: dict[str, Any]
    """Version and options, for the result."""

    def fill(self, cached: int) -> None:
        """Make the one sequence hold exactly `cached` positions."""
        ...

    def step(self, token: int) -> int:
        """Decode one token behind those held; returns the likeliest next."""
        ...

    def back(self) -> None:
        """Take that token back."""
        ...

    def fill_many(self, sequences: int, cached: int) -> None:
        """Make `sequences` sequences hold `cached` positions each."""
        ...

    def step_many(self, tokens: Sequence[int]) -> list[int]:
        """Decode one token for each of them at once."""
        ...

    def back_many(self) -> None:
        """Take those back."""
        ...

    def prefill(self, tokens: Sequence[int]) -> int:
        """Run a prompt in an empty cache; returns the likeliest next token."""
        ...

    def about(self) -> dict[str, Any]:
        """What else is worth knowing about the last work, such as the experts it touched."""
        ...


def tokens_of(vocabulary: int, count: int, seed: int = 0) -> list[int]:
    """Token ids from a seed: the same for every engine."""
    return np.random.default_rng(seed).integers(0, vocabulary, count).tolist()


# --- the child's side -------------------------------------------------------------------------------------------------


def serve(make: Callable[[], Contestant]) -> None:
    """Open a contestant, then answer requests from stdin on stdout until stdin ends."""
    # Libraries print what they like; it goes where stderr goes.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(reply: dict[str, Any]) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    try:
        one = make()
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"settings": one.settings})
    for line in sys.stdin:
        try:
            answer(_do(one, json.loads(line)))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


def _do(one: Contestant, asked: dict[str, Any]) -> dict[str, Any]:
    match asked["do"]:
        case "fill":
            one.fill(asked["cached"])
            return {}
        case "decode":
            tokens = tokens_of(one.vocabulary, asked["most"] + WARM_STEPS, seed=asked["seed"])
            groups = [[token] for token in tokens]
            return {**_steps(groups, lambda some: [one.step(some[0])], one.back, asked["seconds"]), **one.about()}
        case "fill_many":
            one.fill_many(asked["sequences"], asked["cached"])
            return {}
        case "decode_many":
            count = asked["sequences"]
            flat = tokens_of(one.vocabulary, (asked["most"] + WARM_STEPS) * count, seed=asked["seed"])
            groups = [flat[first : first + count] for first in range(0, len(flat), count)]
            return {**_steps(groups, one.step_many, one.back_many, asked["seconds"]), **one.about()}
        case "prefill":
            tokens = tokens_of(one.vocabulary, asked["tokens"], seed=asked["seed"])
            started = time.perf_counter()
            likeliest = one.prefill(tokens)
            return {"seconds": [time.perf_counter() - started], "likeliest": [likeliest]}
        case other:
            raise ValueError(f"there is no request {other!r}")


def _steps(
    groups: Sequence[list[int]], step: Callable[[list[int]], list[int]], back: Callable[[], None], budget: float
) -> dict[str, Any]:
    """Seconds of each step, as many as the budget allows, and the tokens that all found likeliest."""
    took: list[float] = []
    likeliest: list[int] = []
    for number, group in enumerate(groups):
        started = time.perf_counter()
        found = step(group)
        seconds = time.perf_counter() - started
        back()
        likeliest += found
        if number >= WARM_STEPS:
            took.append(seconds)
            if len(took) >= FEWEST_STEPS and sum(took) >= budget:
                break
    return {"seconds": took, "likeliest": likeliest}


# --- the asking side --------------------------------------------------------------------------------------------------


class EndedError(Exception):
    """A child that ended, or answered with an error; the message says why."""


class Child:
    """A contestant in its own process, from the side that asks.

    Attributes:
        settings: what it said about itself.
    """

    def __init__(self, words: Sequence[str], log: Path, threads: int):
        """Start `python -m benchmarks.peers WORDS` and wait until its model is open.

        Raises:
            EndedError: it could not open it.
        """
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "GGML_NO_BACKTRACE": "1",  # else a debugger is started on a library that gives up
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                cwd=Path(__file__).resolve().parent.parent,
                bufsize=0,
            )
        self._pending = b""
        try:
            self.settings: dict[str, Any] = self._reply(START_SECONDS)["settings"]
        except EndedError:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Raises:
            EndedError: the child's own error, or its end.
        """
        assert self._process.stdin is not None
        time.sleep(SETTLE_SECONDS)
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        except BrokenPipeError as error:
            raise EndedError(self._last_words()) from error
        return self._reply(ASK_SECONDS)

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _reply(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        until = time.monotonic() + timeout
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self._process.stdout], [], [], max(until - time.monotonic(), 0))
            if not ready:
                self._process.kill()
                raise EndedError(f"no answer within {timeout:.0f} s")
            some = os.read(self._process.stdout.fileno(), 1 << 16)
            if not some:
                self._process.wait()
                raise EndedError(self._last_words())
            self._pending += some
        line, self._pending = self._pending.split(b"\n", 1)
        reply = json.loads(line)
        if "error" in reply:
            raise EndedError(reply["error"])
        return reply

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        # What a library says when it gives up; its last line is often only a stack.
        telling = [line for line in lines if "GGML_ASSERT" in line or "rror:" in line or "Fatal error" in line] or lines
        why = telling[-1].strip() if telling else "it said nothing"
        status = self._process.returncode
        how = f"status {status}" if status is None or status >= 0 else f"signal {signal.Signals(-status).name}"
        return f"ended with {how}; {self._log} ends with: {why[:300]}"
