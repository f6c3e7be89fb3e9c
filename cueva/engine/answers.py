"""What a caller gets back: pieces while an answer grows, the answer, and what it took."""

from dataclasses import dataclass
from typing import Literal

from cueva.engine.sampling import TokenLogprob

FinishReason = Literal["stop", "length", "cancelled"]
"""Why an answer ended: an end token, stop token or stop string; as many tokens as asked for; somebody's wish."""


@dataclass(frozen=True)
class Stats:
    """What one answer took. Seconds are of the clock, shared with whatever ran beside it."""

    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    """From the start of the prompt to the first token."""
    decode_seconds: float
    """From the first token to the last."""
    passes: int
    """Rounds of decoding or verification; the first token needs none."""
    drafted: tuple[int, ...] = ()
    """How many first, second, ... drafts were proposed."""
    accepted: tuple[int, ...] = ()
    """How many of them stayed, and are in the answer."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first by the seconds they took; 0 if there were none."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 and self.decode_seconds > 0 else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens after the first by the rounds they took: 1 without drafting; 0 if there were none."""
        return (self.new_tokens - 1) / self.passes if self.passes else 0.0


@dataclass(frozen=True)
class Answer:
    """One finished answer."""

    text: str
    """Without end tokens and without the stop string."""
    token_ids: tuple[int, ...]
    """All tokens generated: the end token, and those that a stop string was part of, included."""
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    """One per token, of the model's own distribution, before any filter; None unless asked for."""
    drafted: tuple[int, ...]
    """Per token: its place in the draft it was proposed in (1, 2, ...), or 0 if the model chose it itself."""
    seed: int
    """What decided the random choices; the same seed, prompt, settings and draft give the same answer."""
    stats: Stats


@dataclass(frozen=True)
class Piece:
    """What one round added to an answer. The texts of all pieces, joined, are the answer's text."""

    text: str
    """May be empty while a character or a possible stop string is unfinished."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    drafted: tuple[int, ...]
    """As in `Answer`."""
    answer: Answer | None = None
    """The whole answer, with the last piece."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended, with the last piece."""
        return None if self.answer is None else self.answer.finish_reason
