"""What an engine decides about drafting: for whom, how many, from which ids; and what it has learned to decide by.

Greedy requests with draft="auto" share one controller, fed with measured seconds, and a draft vocabulary that follows
use. A sampled request has a controller of its own, fed with the costs of the model's shape, and the first choice of the
vocabulary: its text may depend on what was drafted, so that must not depend on the clock or on neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cueva.engine.controller import MOST_AUTO, DraftController
from cueva.engine.corrections import bucket
from cueva.engine.costs import LearnedCosts, Measures
from cueva.engine.draft_vocabulary import DraftVocabulary
from cueva.engine.nominal import Costs, NominalCosts
from cueva.engine.passes import Passes
from cueva.engine.rounds import Situation, best_rate
from cueva.engine.running import Running

TYPICAL: Final = 0.8
"""Acceptance by which the vocabulary of a sampled request is chosen."""
TYPICAL_COVERAGE: Final = 0.97
"""Share of a text that a draft vocabulary holds, where the prompt is too short to say."""
PROMPT_SAYS: Final = 32
"""Tokens from which a prompt says how much of its text a draft vocabulary holds."""
COMPARE_EVERY: Final = 64
"""Rounds after which the whole and the reduced vocabulary are compared again."""
QUIET_SAMPLED: Final = 4
"""In rounds that are plain for a while, each so-manieth says what they cost."""
CLEARLY: Final = 1.01
"""Rate by which the other vocabulary must be better to be taken."""


@dataclass(frozen=True)
class DraftingReport:
    """What an engine has learned about drafting so far, of its greedy requests; `str()` makes it readable."""

    verify_seconds: dict[int, float]
    """By rows of the pass, at the lengths that ran last; Python's part included."""
    draft_seconds: dict[int, float]
    """One step of drafting, by rows, with the vocabulary in use."""
    acceptance: dict[int, tuple[float, ...]]
    """By the fewest positions cached (0, 128, 256, 512, ...): how often draft 1, 2, ... stays if those before did."""
    rounds: tuple[int, ...]
    """How many rounds drafted 0, 1, 2, ... tokens."""
    vocabulary: int | None
    """Ids that drafts are chosen from; None is all."""
    hit_rate: float | None
    """Share of the latest tokens that are among them."""

    def __str__(self) -> str:
        def milliseconds(seconds: dict[int, float]) -> str:
            return ", ".join(f"{rows} rows {1000 * took:.2f} ms" for rows, took in seconds.items()) or "not seen yet"

        lines = [
            "rounds by number of drafts: " + ", ".join(f"{count} x {n}" for n, count in enumerate(self.rounds)),
            "verification: " + milliseconds(self.verify_seconds),
            "a step of drafting: " + milliseconds(self.draft_seconds),
        ]
        for least, chances in self.acceptance.items():
            lines.append(f"accepted from {least} cached: " + ", ".join(f"{chance:.0%}" for chance in chances))
        if self.vocabulary is None:
            lines.append("drafts from the whole vocabulary")
        else:
            lines.append(f"drafts from {self.vocabulary:,} ids, which hold {self.hit_rate:.1%} of the latest tokens")
        return "\n".join(lines)


class DraftPlan:
    """How many tokens each sequence drafts, and from which ids; one for the life of an engine, since it learns."""

    def __init__(self, runner: Passes, vocabulary: DraftVocabulary | None = None):
        """Measure what passes cost, if the runner can say.

        Args:
            runner: of the engine. `rows` is the most that one pass takes, `padded_rows` what passes are filled up to
                (1: not at all). It may have `measure` (`costs.Measures`) and `bits_per_weight` (else its dtype's).
            vocabulary: what drafts are chosen from; None is the whole one.
        """
        config = runner.model.config
        self.vocabulary = vocabulary or DraftVocabulary(None, config, config.vocab_size)
        bits = getattr(runner, "bits_per_weight", None) or 8 * runner.dtype.itemsize
        padded = runner.padded_rows if runner.padded_rows > 1 or runner.rows == 1 else None
        fixed_V = self.vocabulary.fixed_V
        self.nominal = NominalCosts(config, bits=bits, padded_rows=padded)
        self.nominal_reduced = self.nominal
        if fixed_V is not None:
            self.nominal_reduced = NominalCosts(config, bits=bits, padded_rows=padded, head_rows=len(fixed_V))
        self.learned = LearnedCosts(self.nominal, self.nominal_reduced)
        self.shared = DraftController()
        # Where every row is a pass of its own, verifying a draft costs as much as decoding a token.
        self.pays = config.num_nextn_predict_layers > 0 and runner.rows > 1
        if self.pays and isinstance(runner, Measures):
            self.learned.measure(runner, positions=config.max_position_embeddings, ids=fixed_V)
        self._views: dict[bool, Costs] = {some: self.learned.view(reduced=some) for some in (False, True)}
        self._reduced = fixed_V is not None
        self._compare_in = 0
        self._quiet = self._quiet_ran = 0
        self._quiet_for: list[int] = []

    # --- per request --------------------------------------------------------------------------------------------------

    def begin(self, one: Running) -> bool:
        """Whether a request that starts shall have its modules run at all; settles what a sampled one drafts from."""
        self.vocabulary.saw(one.request.prompt, prompt=True)
        if not one.request.settings.greedy:
            one.reduced = self._reduces_sampled(one.request.prompt)
        if one.request.draft != "auto":
            return one.request.draft > 0
        return self.pays and self._could_pay(one)

    def _could_pay(self, one: Running) -> bool:
        """Whether drafting would pay if every draft stayed."""
        now = Situation(MOST_AUTO, len(one.request.prompt))
        costs = self._costs(one)
        plain = costs.verify(1, now.cached)
        doubt = 1.25 if one.controller is None else 1.0
        return best_rate(costs, [1.0] * MOST_AUTO, now) * doubt > (1 / plain) * (1.0 + 1e-9)

    def _reduces_sampled(self, prompt: Sequence[int]) -> bool:
        """Whether the reduced vocabulary serves a sampled request: by its prompt and fixed settings alone."""
        if self.vocabulary.fixed_V is None or not self.vocabulary.auto:
            return self.vocabulary.fixed_V is not None
        held = self.vocabulary.coverage(prompt) if len(prompt) >= PROMPT_SAYS else TYPICAL_COVERAGE
        now = Situation(MOST_AUTO, len(prompt))
        reduced = best_rate(self.nominal_reduced, [TYPICAL * held] * MOST_AUTO, now)
        return reduced > best_rate(self.nominal, [TYPICAL] * MOST_AUTO, now)

    def ids(self, one: Running) -> NDArray[np.int64] | None:
        """The ids that a sequence's drafts are chosen from; None is all."""
        if one.request.settings.greedy:
            return self.vocabulary.current_V if self._reduced else None
        return self.vocabulary.fixed_V if one.reduced else None

    def _costs(self, one: Running) -> Costs:
        if one.controller is None:
            return self._views[self._reduced]
        return self.nominal_reduced if one.reduced else self.nominal

    def keeps_up(self, one: Running) -> bool:
        """Whether modules that lag far behind shall catch up now; else the sequence goes on without them."""
        if one.request.draft != "auto" or one.chain is None:
            return True
        controller = one.controller or self.shared
        return controller.charge(self._costs(one).draft(one.chain.lag, one.length))

    # --- per round ----------------------------------------------------------------------------------------------------

    def counts(self, active: Sequence[Running]) -> list[int]:
        """Choose the number of drafts for every sequence."""
        # Where drafting does not pay, a round shall hardly cost more than with draft=0.
        if self._quiet > 0 and self._quiet_for == [id(one) for one in active]:
            self._quiet -= 1
            self._quiet_ran += 1
            return [0] * len(active)
        self._catch_up_with_quiet_rounds()
        sharing = [one for one in active if one.shares_controller]
        counts = [0 if one.shares_controller else self._alone(one) for one in active]
        if not sharing:
            return counts
        self._compare_vocabularies(sharing)
        common = self.shared.choose(
            self._views[self._reduced],
            Situation(
                limit=max(one.draft_limit for one in sharing),
                cached=sum(one.length for one in active) / len(active),
                sequences=len(sharing),
                others=sum(counts) + len(active) - len(sharing),
                backlog=sum(one.chain.backlog for one in sharing if one.chain is not None),
            ),
        )
        if self.shared.quiet > 1 and len(sharing) == len(active):
            self._quiet, self._quiet_for = self.shared.quiet - 1, [id(one) for one in active]
        return [
            min(common, one.draft_limit) if one.shares_controller else count
            for one, count in zip(active, counts, strict=True)
        ]

    def _catch_up_with_quiet_rounds(self) -> None:
        """Tell the controller of the rounds it was not asked for."""
        self.shared.stayed_plain(self._quiet_ran)
        self._compare_in -= self._quiet_ran
        self._quiet = self._quiet_ran = 0
        self._quiet_for = []

    def _alone(self, one: Running) -> int:
        wanted = one.request.draft
        if one.chain is None:
            return 0
        if one.controller is not None:
            now = Situation(one.draft_limit, one.length, backlog=one.chain.backlog)
            return one.controller.choose(self._costs(one), now)
        return min(wanted, one.draft_limit) if isinstance(wanted, int) else 0

    def _compare_vocabularies(self, sharing: Sequence[Running]) -> None:
        """Take the whole or the reduced vocabulary, whichever gives more tokens by what is known.

        A draft that the model would have chosen, but that the reduced vocabulary lacks, is rejected. So of the drafts
        that would stay with the whole one, about the hit rate's share stays.
        """
        if self.vocabulary.fixed_V is None or not self.vocabulary.auto:
            return
        self._compare_in -= 1
        if self._compare_in > 0:
            return
        self._compare_in = COMPARE_EVERY
        now = Situation(MOST_AUTO, sum(one.length for one in sharing) / len(sharing), len(sharing))
        chances, hit = self.shared.odds.chances(bucket(now.cached)), self.vocabulary.hit_rate
        with_all = [min(chance / hit, 1.0) for chance in chances] if self._reduced else chances
        with_some = chances if self._reduced else [chance * hit for chance in chances]
        rates = {
            False: best_rate(self._views[False], with_all, now),
            True: best_rate(self._views[True], with_some, now),
        }
        if rates[not self._reduced] > CLEARLY * rates[self._reduced]:
            self._reduced = not self._reduced

    # --- learning -----------------------------------------------------------------------------------------------------

    def drafted(self, rows: int, cached: float, seconds: float, *, reduced: bool) -> None:
        """Take note of one step of drafting, or of rows that modules caught up with."""
        self.learned.add("reduced" if reduced else "draft", rows, cached, seconds)

    def observe(self, one: Running, drafted: int, accepted: int, cached: float) -> None:
        """Take note of what became of a sequence's drafts."""
        controller = self.shared if one.shares_controller else one.controller
        if controller is not None:
            controller.observe(drafted, accepted, cached)

    def ended(
        self,
        active: Sequence[Running],
        counts: Sequence[int],
        tokens: Sequence[Sequence[int]],
        cached: float,
        seconds: tuple[float, float, float],
    ) -> None:
        """Take note of a round.

        Args:
            active: the sequences that took part.
            counts: drafts of each.
            tokens: ids that each got.
            cached: mean positions cached before it.
            seconds: of catching up, of the steps of drafting, and of all the rest, which the verification is.
        """
        catching_up, drafting, verifying = seconds
        if self.vocabulary.fixed_V is not None:
            for ids in tokens:
                self.vocabulary.saw(ids)
        if self._quiet_ran:
            if self._quiet_ran % QUIET_SAMPLED == 0:
                self.learned.add("verify", len(active), cached, verifying)
            return
        self.learned.add("verify", len(active) + sum(counts), cached, verifying)
        sharing = False
        for one, ids in zip(active, tokens, strict=True):
            sharing = sharing or one.shares_controller
            if one.controller is not None:
                one.controller.settle(len(ids))
        if sharing:
            mixed = any(n for n, one in zip(counts, active, strict=True) if not one.shares_controller)
            cost = None if mixed else drafting + verifying
            self.shared.settle(sum(map(len, tokens)), cost, 0.0 if mixed else catching_up)

    def report(self) -> DraftingReport:
        """Say what was learned."""
        self._catch_up_with_quiet_rounds()
        reduced_V = self.vocabulary.current_V if self._reduced else None
        return DraftingReport(
            verify_seconds=self.learned.seen("verify"),
            draft_seconds=self.learned.seen("reduced" if self._reduced else "draft"),
            acceptance={0 if place == 0 else 64 << place: odds for place, odds in self.shared.odds.seen().items()},
            rounds=tuple(self.shared.chosen),
            vocabulary=None if reduced_V is None else len(reduced_V),
            hit_rate=None if reduced_V is None else self.vocabulary.hit_rate,
        )
