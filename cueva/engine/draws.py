"""A request's random choices: each depends on its seed, the position and the purpose, and on nothing else.

There is no stream that runs on from one choice to the next. A counter-based generator (Philox, Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3") answers each (seed, position, purpose) directly, so neighbours in a
batch, other requests, and drafts that were thrown away cannot shift what follows.
"""

import secrets
from enum import IntEnum
from typing import Protocol

import numpy as np

from cueva.engine.sampling import Probabilities


class Purpose(IntEnum):
    """What a random number decides at a position."""

    TOKEN = 0
    """The token, drawn from the model's own distribution."""
    DRAFT = 1
    """The draft, drawn from the drafter's distribution."""
    ACCEPT = 2
    """Whether the draft stays."""
    RESIDUAL = 3
    """The token that replaces a rejected draft."""


class Draws(Protocol):
    """What the rules of sampling and acceptance ask of chance; a test enumerates it instead."""

    def pick(self, position: int, purpose: Purpose, probability_A: Probabilities) -> int:
        """Draw a token id."""
        ...

    def happens(self, position: int, purpose: Purpose, probability: float) -> bool:
        """Say yes with this probability."""
        ...


class SeededDraws:
    """The draws of one request."""

    def __init__(self, seed: int):
        self.seed = seed

    def uniform(self, position: int, purpose: Purpose) -> float:
        """A number from [0, 1)."""
        key = np.array([self.seed, int(purpose)], dtype=np.uint64)
        counter = np.array([position, 0, 0, 0], dtype=np.uint64)
        return float(np.random.Generator(np.random.Philox(counter=counter, key=key)).random())

    def pick(self, position: int, purpose: Purpose, probability_A: Probabilities) -> int:
        """Draw a token id by inverting the cumulative distribution; a token of probability 0 is never drawn."""
        reached_A = probability_A.cumsum()
        token_id = int(np.searchsorted(reached_A, self.uniform(position, purpose) * reached_A[-1], side="right"))
        # Rounding may carry the product up to the total; the last token that has any probability is meant then.
        return token_id if token_id < len(reached_A) else int(np.flatnonzero(probability_A)[-1])

    def happens(self, position: int, purpose: Purpose, probability: float) -> bool:
        """Say yes with this probability: always at 1, never at 0."""
        return self.uniform(position, purpose) < probability


def fresh_seed() -> int:
    """A seed for a request that brings none: from the system, short enough to be typed again."""
    return secrets.randbits(32)
