"""How many tokens to draft: as many as pay, none if none do.

A round with m drafts yields 1 + a_1 + a_1 a_2 + ... + a_1 .. a_m tokens on average, where a_j is how often draft j
stays if those before it did. It costs one verification and m steps of drafting. `DraftController` keeps running
averages of the a_j and takes the m with the most tokens per unit of cost.

Costs come from one of two places:

* *measured*, for greedy requests: seconds per pass of this engine, as its passes take them. Greedy text is the same
  whatever is drafted, so the clock may decide.
* *nominal*, for sampled requests: the weights that a pass reads, by the model's shape. With sampling, the same seed
  gives other (equally distributed) text for other numbers of drafts, so the number may depend on the request's own
  drafts and on nothing that a second run or a neighbour would change.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from cueva.config import ModelConfig

MOST_AUTO: Final = 4
"""Drafts that "auto" goes up to: one module applied again loses acceptance quickly."""
DECAY: Final = 0.95
"""Weight of the past in a running average of acceptance: about the last twenty drafts count."""
FIRST_GUESS: Final = 0.7
"""Acceptance assumed of a draft before any was seen: hopeful, so that it is tried."""
PROBE_EVERY: Final = 32
"""Rounds after which one draft more than seems best is tried, in case the text has become easier. While that works, it
is tried again at once; each time it fails, the wait doubles."""
PROBE_SELDOM: Final = 256
"""The longest wait: a module that has waited must first run all the rows it missed."""


class Costs(NamedTuple):
    """What a round costs, in any unit."""

    verify: Callable[[int], float]
    """One verification of m drafts."""
    draft: float
    """One step of drafting."""


def nominal_costs(config: ModelConfig) -> Costs:
    """Costs by the weights that a token meets. Rows of a pass are padded to a fixed number, so m changes nothing."""
    head = config.vocab_size * config.hidden_size
    main = config.parameters(active=True) - (0 if config.tie_word_embeddings else head)  # the embedding is a lookup
    if config.num_nextn_predict_layers == 0:
        return Costs(lambda drafts: 1.0, 1.0)
    return Costs(lambda drafts: 1.0, (config.mtp_parameters(active=True) + head) / main)


class DraftController:
    """Chooses the number of drafts of each round from what became of earlier ones."""

    def __init__(self, most: int = MOST_AUTO):
        """Choose from 0 to `most`."""
        self.most = most
        self.acceptance = [FIRST_GUESS] * most
        """How often draft j stays once the drafts before it did."""
        self._rounds_below = 0
        self._wait = PROBE_EVERY
        self._probe = 0
        self._repeat = False

    def choose(self, costs: Costs, limit: int) -> int:
        """Return how many tokens to draft now, at most `limit`."""
        most = min(self.most, limit)
        best = max(range(most + 1), key=lambda drafts: self._rate(costs, drafts))  # the fewest of equals
        self._probe = 0
        if best < most:
            self._rounds_below += 1
            if self._rounds_below >= self._wait:
                self._rounds_below = 0
                self._probe = best + 1
                # Repeating a probe that succeeds makes sense only if success can make it pay.
                self._repeat = self._rate(costs, best + 1, certain=best + 1) > self._rate(costs, best)
        return max(best, self._probe)

    def _rate(self, costs: Costs, drafts: int, certain: int | None = None) -> float:
        """Tokens per cost of a round with so many drafts, if draft number `certain` always stayed."""
        tokens = staying = 1.0
        for place in range(1, drafts + 1):
            staying *= 1.0 if place == certain else self.acceptance[place - 1]
            tokens += staying
        return tokens / (costs.verify(drafts) + drafts * costs.draft)

    def observe(self, drafted: int, accepted: int) -> None:
        """Take note of a round: drafts behind the first rejected one say nothing about theirs."""
        for place in range(min(drafted, accepted + 1, self.most)):
            stayed = 1.0 if place < accepted else 0.0
            self.acceptance[place] = DECAY * self.acceptance[place] + (1 - DECAY) * stayed
        if self._probe:
            stayed = accepted >= self._probe
            self._wait = PROBE_EVERY if stayed else min(2 * self._wait, PROBE_SELDOM)
            if stayed and self._repeat:
                self._rounds_below = self._wait
            self._probe = 0  # of several sequences that probe together, the first decides


class Stopwatch:
    """The running median of a few durations: one slow pass (a busy machine, a first call) does not move it."""

    def __init__(self, kept: int = 15):
        self._seconds: deque[float] = deque(maxlen=kept)

    def add(self, seconds: float) -> None:
        """Take note of one duration."""
        self._seconds.append(seconds)

    @property
    def seconds(self) -> float | None:
        """The median, or None before the first."""
        return sorted(self._seconds)[len(self._seconds) // 2] if self._seconds else None
