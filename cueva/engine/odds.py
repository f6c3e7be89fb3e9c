"""How often drafts stay: by their place in a draft and by the length of the context.

A draft's place matters, for an MTP module guesses less well the further it guesses; length matters, for long texts
repeat themselves. Each (place, range of lengths) counts its own drafts, older ones less; with few of its own it leans
on the nearest range, then on the place before it, then on a hopeful guess.
"""

from typing import Final

DECAY: Final = 0.985
"""Weight of the past with each draft: about the last seventy count."""
FIRST_GUESS: Final = 0.8
"""Chance assumed of the first draft before any was seen: hopeful, so that drafting is tried."""
GUESS_WEIGHT: Final = 3.0
"""Drafts that a guess from nothing, or from the place before, counts as."""
NEIGHBOUR_WEIGHT: Final = 30.0
"""Drafts that the nearest range of lengths counts as, at most; one less with each of its own."""
FADING: Final = 0.95
"""What a place's chance is of the chance of the place before, unless its own drafts say otherwise."""


class Odds:
    """Running counts, and the chances that follow from them."""

    def __init__(self, most: int, *, guess: float = FIRST_GUESS, weight: float = GUESS_WEIGHT):
        """Know nothing of drafts up to place `most`; until then guess, as if `weight` drafts had said so."""
        self.most = most
        self._guess, self._weight = guess, weight
        self._tried: dict[int, list[float]] = {}
        self._stayed: dict[int, list[float]] = {}
        self._said: dict[int, list[float]] = {}
        self.version = 0
        """Changes whenever the chances may."""

    def chances(self, place: int) -> list[float]:
        """How likely draft 1, 2, ... stays, once those before it did, in range `place` of lengths."""
        if place not in self._said:
            self._said[place] = [*self._chances(place)]
        return self._said[place]

    def _chances(self, place: int) -> list[float]:
        found: list[float] = []
        near = min((p for p in self._tried if p != place), key=lambda p: (abs(p - place), -p), default=None)
        tried, stayed = self._tried.get(place), self._stayed.get(place)
        for j in range(self.most):
            guess, weight = (found[-1] * FADING if found else self._guess), self._weight
            if near is not None and self._tried[near][j]:
                there, count = self._stayed[near][j], self._tried[near][j]
                guess = (there + self._weight * guess) / (count + self._weight)
                own = tried[j] if tried is not None else 0.0
                weight = max(min(count + self._weight, NEIGHBOUR_WEIGHT) - own, self._weight)
            if tried is None or stayed is None:
                found.append(guess)
            else:
                found.append((stayed[j] + weight * guess) / (tried[j] + weight))
        return found

    def observe(self, place: int, drafted: int, accepted: int) -> None:
        """Take note of a round: drafts behind the first rejected one say nothing about theirs."""
        tried = self._tried.setdefault(place, [0.0] * self.most)
        stayed = self._stayed.setdefault(place, [0.0] * self.most)
        for j in range(min(drafted, accepted + 1, self.most)):
            tried[j] = DECAY * tried[j] + 1.0
            stayed[j] = DECAY * stayed[j] + (j < accepted)
        self._said.clear()
        self.version += 1

    def forget(self, most: float) -> None:
        """Let no count say more than `most` drafts would: what is known has turned out to be old."""
        for place, tried in self._tried.items():
            for j, count in enumerate(tried):
                if count > most:
                    tried[j], self._stayed[place][j] = most, self._stayed[place][j] * most / count
        self._said.clear()
        self.version += 1

    def believe(self, fresh: "Odds", place: int, most: float) -> None:
        """Take what `fresh` counted in the last rounds for true, and all before it for no more than `most` drafts.

        Args:
            fresh: counted at its place 0; its drafts were counted here too.
            place: the range of lengths they belong to.
            most: see `forget`.
        """
        newer_tried, newer_stayed = fresh._tried.get(0), fresh._stayed.get(0)
        if newer_tried is None or newer_stayed is None or place not in self._tried:
            return
        tried, stayed = self._tried[place], self._stayed[place]
        for j in range(self.most):
            tried[j] = max(tried[j] - newer_tried[j], 0.0)
            stayed[j] = min(max(stayed[j] - newer_stayed[j], 0.0), tried[j])
        self.forget(most)
        for j in range(self.most):
            tried[j] += newer_tried[j]
            stayed[j] += newer_stayed[j]
        self._said.clear()

    def counted(self, place: int) -> list[float]:
        """The bare shares of drafts that stayed, without any guess; 0 where there was none."""
        tried, stayed = self._tried.get(place, []), self._stayed.get(place, [])
        shares = [there / count if count else 0.0 for there, count in zip(stayed, tried, strict=True)]
        return shares or [0.0] * self.most

    def seen(self) -> dict[int, tuple[float, ...]]:
        """The chances of every range of lengths that was seen, as far as drafts were."""
        return {
            place: tuple(self.chances(place)[: sum(count > 0 for count in self._tried[place])])
            for place in sorted(self._tried)
        }
