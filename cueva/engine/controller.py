"""How many tokens to draft: as many as pay, none if none do.

A round with m drafts yields 1 + a_1 + a_1 a_2 + ... + a_1 .. a_m tokens on average, where a_j is how often draft j
stays if those before it did (`odds.py`). It costs a verification of m more rows and m steps of drafting (`nominal.py`,
`costs.py`). `DraftController` takes the m with the most tokens per unit of cost, and keeps two accounts, in the cost of
plain rounds:

* *Safety.* What a round with drafts gains or loses against plain decoding is entered, gains up to a cap. Each round is
  granted 1.75% besides. With nothing left, decoding is plain until there is something again. So whatever goes wrong (an
  estimate, a guess, a text that turns hard), the loss is at most 1.75% and a few rounds.
* *Curiosity.* Each round grants 0.75% (1.25% while drafts pay), and a look at another number of drafts is paid from
  it with what it is expected to lose; so cheap looks are frequent and dear ones rare. While a look goes better than
  what seems best, it goes on, and after a few rounds what it saw is believed: so a text that became easier is noticed.

Costs come from one of two places:

* *measured*, for greedy requests: greedy text is the same whatever is drafted, so the clock may decide.
* *nominal*, for sampled requests. With sampling, the same seed gives other (equally distributed) text for other numbers
  of drafts, so the number may depend on the request's own drafts and on nothing that a second run or a neighbour would
  change.

Source for the safety account: conservative bandits (Wu et al. 2016, arXiv:1602.04282), which explore only as far as
what they have gained over the default allows.
"""

import math
from typing import Final

from cueva.engine.corrections import bucket
from cueva.engine.nominal import Costs
from cueva.engine.odds import Odds
from cueva.engine.rounds import Situation, expected_tokens, round_price

MOST_AUTO: Final = 4
"""Drafts that "auto" goes up to: one module applied again loses acceptance quickly."""
GRANT: Final = 0.0175
"""Safety granted per plain round's cost: what drafting may lose in the long run."""
SAFETY_START: Final = 6.0
"""Plain rounds that finding out may cost at first."""
SAFETY_MOST: Final = 8.0
"""Gains that are kept for bad times: a streak of bad luck must not stop what pays, an old success not fund a loss."""
LUCK: Final = 0.5
"""How much of good or bad luck is left out of the account: a streak of bad luck is no reason to stop."""
SURPRISE: Final = 0.1
"""Weight of the newest round in what is no luck: tokens that come out more or fewer than expected, time and again."""
SAFETY_RESUME: Final = 1.0
"""What must be there again before drafting goes on."""
NOMINAL_MARGIN: Final = 0.05
"""By how much drafting must seem better to a sampled request, whose costs are those of the shape and not measured."""
CURIOSITY: Final = 0.0075
"""Part of the time that looking at other numbers of drafts may lose while decoding is plain."""
CURIOSITY_DRAFTING: Final = 0.0125
"""The same while drafting pays, so that there is something to lose."""
CURIOSITY_MOST: Final = 12.0
"""Curiosity that can be saved up: dearer looks are never taken."""
LOOK_GAP: Final = 8
"""Rounds between two looks at least, however cheap."""
PLAIN_FIRST: Final = 3
"""Plain rounds before the first draft, if none were seen: without knowing them there is nothing to compare with."""
PLAIN_KNOWN: Final = 96
"""Plain rounds of late from which their cost is known well; it is what losses are measured by."""
PLAIN_GAP: Final = 3
"""Rounds between looks at what a plain round costs, while it is not known well."""
KNOWN: Final = 8
"""Rounds of late from which the cost of another number of drafts is known well enough."""
QUIET_MOST: Final = 64
"""Rounds after which the choice is thought over in any case."""
BELIEVED: Final = 8
"""Rounds of a look after which it is believed against everything known before."""
DOUBT: Final = 0.8
"""A cost that is not trusted may have become as much lower; then a look may be worth it."""
STICK: Final = 1.01
"""Rate by which another number must be better to be taken: changing has a price of its own."""
PRICES_LAST: Final = 16
"""Rounds that prices are used before they are asked for again; asking takes as long as a small model's pass."""
CATCH_UP_LASTS: Final = 32
"""Rounds that catching up is expected to serve."""
DEAREST: Final = 3.0
"""A round that took more than so many times what was expected met something else, which is not drafting's fault."""


class _Look:
    """An ongoing look at another number of drafts, which starts from nothing known."""

    def __init__(self, drafts: int, most: int):
        self.drafts = drafts
        self.rounds = 0
        self.odds = Odds(most, guess=1.0, weight=2.0)


class DraftController:
    """Chooses the number of drafts of each round from what became of earlier ones."""

    def __init__(self, most: int = MOST_AUTO, *, margin: float = 0.0):
        """Choose from 0 to `most`; `margin`: by how much drafting must seem better, where costs are only nominal."""
        self.most = most
        self.odds = Odds(most)
        self.safety = SAFETY_START
        self.chosen = [0] * (most + 1)
        """Rounds by the number of drafts that was chosen."""
        self._margin = margin
        self._curiosity = 1.0
        self._reach = 1
        """Drafts that may be chosen: doubles when all of a round's stay."""
        self._surprise = 0.0
        self._look: _Look | None = None
        self._place = 0
        self._round = 0
        self._last = 0
        self._resting = False
        self._used = [0] * (most + 1)
        """The round in which each number was last chosen."""
        self._looked = 0
        self.quiet = 0
        """Rounds for which the choice will stay plain: nothing can be learned before a look can be paid."""
        self._plain_until = 0
        self._plain_while: tuple[int, ...] = ()
        self._asked: tuple[tuple[int, ...], int] | None = None
        self._prices: list[float] = [1.0]
        self._trusted: list[bool] = [True]
        self._catching = 0.0
        self._learning = False
        self._now = Situation(0)

    @property
    def acceptance(self) -> list[float]:
        """How often draft j stays once the drafts before it did, at the length seen last."""
        return self.odds.chances(self._place)

    # --- choosing -----------------------------------------------------------------------------------------------------

    def choose(self, costs: Costs, now: Situation) -> int:
        """Return how many tokens to draft now, at most `now.limit`."""
        self._round += 1
        self._now, self._place = now, bucket(now.cached)
        most = min(self.most, now.limit)
        if most <= 0:
            self._last = 0
            return 0
        state = (now.sequences, now.others, most, self._place, self.odds.version)
        if self._round < self._plain_until and state == self._plain_while:
            self.chosen[0] += 1
            return 0
        chances = self.odds.chances(self._place)
        self._ask(costs, now, chances)
        rates = self._rates(chances, most, now)
        best = self._best(rates, most)
        if self._learning or self._rest(best):
            drafts = 0
        else:
            looked = self._go_on_looking(rates, best, most)
            if looked is None:
                looked = self._start_looking(rates, best, most)
            drafts = best if looked is None else looked
        self._last = drafts
        self._used[drafts] = self._round
        self.chosen[drafts] += 1
        self.quiet = 0
        if best == drafts == 0 and self._look is None:
            self.quiet = self._quiet_rounds(rates, most)
            self._plain_until, self._plain_while = self._round + self.quiet, state
        return drafts

    def _ask(self, costs: Costs, now: Situation, chances: list[float]) -> None:
        """Renew the prices of rounds with 0, 1, ... drafts, in the unit of `costs`."""
        backlog = now.backlog
        key = (self._place, now.sequences, now.others, backlog // 64)
        if self._asked is not None and self._asked[0] == key and self._round < self._asked[1]:
            return
        self._asked = (key, self._round + PRICES_LAST)
        self._prices, self._trusted, self._learning = [], [], False
        catching = costs.draft(backlog, now.cached) if backlog else 0.0
        for drafts in range(self.most + 1):
            price = round_price(costs, chances, drafts, now)
            self._prices.append(price + (catching / CATCH_UP_LASTS if drafts else 0.0))
            known = costs.known(now.others + now.sequences * (1 + drafts), now.cached)
            self._trusted.append(known >= (PLAIN_KNOWN if drafts == 0 else KNOWN))
            if drafts == 0 and known < PLAIN_FIRST:
                self._asked = None
                self._learning = True
        self._catching = catching / self._prices[0]

    def _rates(self, chances: list[float], most: int, now: Situation) -> list[float]:
        """Tokens per cost of rounds with 0 to `most` drafts."""
        rates, tokens, staying = [], 1.0, 1.0
        for drafts in range(most + 1):
            if drafts:
                staying *= chances[drafts - 1]
                tokens += staying
            rates.append((now.others + now.sequences * tokens) / self._prices[drafts])
        rates[0] *= 1 + self._margin
        return rates

    def _best(self, rates: list[float], most: int) -> int:
        best = max(range(most + 1), key=rates.__getitem__)
        best = next(drafts for drafts in range(most + 1) if rates[drafts] * STICK >= rates[best])  # fewer risk less
        if self._last <= most and self._look is None and rates[best] < STICK * rates[self._last]:
            best = self._last
        return min(best, self._reach)

    def _rest(self, best: int) -> bool:
        """Whether too much was lost to go on drafting, or looking, for now."""
        rested = self._resting
        self._resting = (best > 0 or self._look is not None) and self.safety < (SAFETY_RESUME if rested else 0.0)
        if self._resting:
            self._look = None
            if best and not rested:
                self.odds.forget(2 * BELIEVED)  # what promised a gain brought a loss
        return self._resting

    def _go_on_looking(self, rates: list[float], best: int, most: int) -> int | None:
        """An ongoing look goes on while what it alone has seen is better than what seems best."""
        look = self._look
        if look is None:
            return None
        hopes = self._rates(look.odds.chances(0), most, self._now)
        if look.drafts > most or look.drafts == best or hopes[look.drafts] <= rates[best]:
            self._look = None
        elif look.rounds >= BELIEVED:
            self._look = None
            if self._rates(look.odds.counted(0), most, self._now)[look.drafts] > rates[best]:
                self.odds.believe(look.odds, self._place, BELIEVED)
        else:
            self._pay(rates, best, look.drafts)
            return look.drafts
        return None

    def _start_looking(self, rates: list[float], best: int, most: int) -> int | None:
        """Take a look at another number that could be better and can be paid.

        From plain decoding that is the one with the least to lose, for a draft that stays says something of all of
        them; otherwise the one not used for longest.
        """
        if best and not self._trusted[0] and self._round - self._used[0] >= PLAIN_GAP:
            # What plain decoding costs is what safety is measured by.
            loss = self._loss(rates, best, 0)
            if loss <= self._curiosity and self._hope(rates, 0, best) > rates[best]:
                self._curiosity -= loss
                return 0
        if self._round - self._looked < LOOK_GAP:
            return None
        self._looked = self._round
        order = self._used.__getitem__ if best else lambda drafts: -rates[drafts]
        for drafts in sorted(range(most + 1), key=order):
            if drafts == best or self._hope(rates, drafts, best) <= rates[best]:
                continue
            loss = self._loss(rates, best, drafts)
            if loss > self._curiosity or (best == 0 and loss + self._catching > self.safety):
                continue
            self._pay(rates, best, drafts)
            if drafts > best:
                self._look = _Look(drafts, self.most)
            return drafts
        return None

    def _quiet_rounds(self, rates: list[float], most: int) -> int:
        """Rounds until the first look can be paid, if all are plain until then."""
        waits = [float(QUIET_MOST)]
        for drafts in range(1, most + 1):
            if self._hope(rates, drafts, 0) > rates[0]:
                loss = self._loss(rates, 0, drafts)
                curious, safe = (loss - self._curiosity) / CURIOSITY, (loss + self._catching - self.safety) / GRANT
                waits.append(max(curious, safe))
        return max(math.ceil(min(waits)), LOOK_GAP)

    def _hope(self, rates: list[float], drafts: int, best: int) -> float:
        """The rate that `drafts` would have if all drafts beyond `best` stayed, and doubtful costs were lower."""
        rate = rates[drafts]
        if drafts > best:
            chances = [*self.acceptance[:best], *[1.0] * (drafts - best)] if best else [1.0] * drafts
            rate = self._rates(chances, drafts, self._now)[drafts]
        return rate if self._trusted[drafts] else rate / DOUBT

    def _loss(self, rates: list[float], best: int, drafts: int) -> float:
        """What a round with `drafts` is expected to cost more than its tokens would at best, in plain rounds."""
        return max(self._prices[drafts] * (1 - rates[drafts] / rates[best]) / self._prices[0], 0.0)

    def _pay(self, rates: list[float], best: int, drafts: int) -> None:
        self._curiosity -= self._loss(rates, best, drafts)

    # --- learning -----------------------------------------------------------------------------------------------------

    def observe(self, drafted: int, accepted: int, cached: float = 0.0) -> None:
        """Take note of what became of one sequence's drafts."""
        if not drafted:
            return
        self.odds.observe(bucket(cached), drafted, accepted)
        if self._look is not None:
            self._look.odds.observe(0, drafted, accepted)
        if accepted >= min(drafted, self._reach):
            self._reach = max(self._reach, min(2 * drafted, self.most))

    def settle(self, tokens: int, cost: float | None = None, catching_up: float = 0.0) -> None:
        """End a round and enter it into the accounts.

        Args:
            tokens: that it gave, of all sequences.
            cost: that it had, in the unit of the costs; None is what was expected.
            catching_up: what letting the modules catch up cost besides.
        """
        now, drafts = self._now, self._last
        spent = 1.0
        if drafts:
            plain, expected = self._prices[0], self._prices[drafts]
            if cost is None:
                catching_up = self._catching * plain
            spent = (min(expected if cost is None else cost, DEAREST * expected) + catching_up) / plain
            expected = now.others + now.sequences * expected_tokens(self.acceptance, drafts)
            luck = tokens - expected - self._surprise
            self._surprise += SURPRISE * luck
            self.safety += (tokens - LUCK * luck) / (now.sequences + now.others) - spent
            if self._look is not None:
                self._look.rounds += 1
        self.safety = min(self.safety + GRANT * spent, SAFETY_MOST)
        self._curiosity = min(self._curiosity + (CURIOSITY_DRAFTING if drafts else CURIOSITY) * spent, CURIOSITY_MOST)

    def stayed_plain(self, rounds: int) -> None:
        """Take note of plain rounds for which nobody asked, because they were quiet."""
        self._round += rounds
        self.chosen[0] += rounds
        self.safety = min(self.safety + GRANT * rounds, SAFETY_MOST)
        self._curiosity = min(self._curiosity + CURIOSITY * rounds, CURIOSITY_MOST)

    def charge(self, cost: float) -> bool:
        """Pay for modules that catch up without drafting, in the unit of the costs; False if that is too much now."""
        rounds = cost / self._prices[0]
        if rounds > self.safety:
            return False
        self.safety -= rounds
        return True
