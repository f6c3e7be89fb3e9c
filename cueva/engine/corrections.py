"""By how much costs differ from their prior: known for some row counts and lengths, and guessed for the others.

Passes with other row counts at the same length, and with the same row count at other lengths, say something of each
cell; `costs.py` fills the table.
"""

from typing import Final

GUESS_WEIGHT: Final = 2.0
"""Passes that a guess from other row counts counts as."""
LENGTH_WEIGHT: Final = 8.0
"""Passes that a guess from the same row count at other lengths counts as."""


def bucket(cached: float) -> int:
    """The range of lengths that costs and acceptance are kept for: 0 to 127, then powers of two."""
    return max(int(cached).bit_length() - 7, 0)


class Corrections:
    """Logarithms of factors by range of lengths and row count, and what follows for those never seen."""

    def __init__(self) -> None:
        """Know nothing; then every factor is 1."""
        self.known: dict[int, dict[int, float]] = {}
        self._said: dict[tuple[int, int], float] = {}

    def set(self, rows: int, place: int, value: float) -> None:
        """Take note that `rows` rows in range `place` have this logarithm."""
        self.known.setdefault(place, {})[rows] = value
        self._said.clear()

    def at(self, rows: int, place: int) -> float:
        """What is known of `rows` rows in range `place`, else the guess."""
        own = self.known.get(place)
        if own and rows in own:
            return own[rows]
        if not self.known:
            return 0.0
        if (rows, place) not in self._said:
            self._said[rows, place] = self.guess(rows, place)[0]
        return self._said[rows, place]

    def guess(self, rows: int, place: int) -> tuple[float, float]:
        """What all others say of `rows` at `place`, and how many passes that should count as."""
        # 1. The same row count at other lengths: the nearest on either side, weighed by distance.
        others = [b for b in self.known if rows in self.known[b] and b != place]
        below = max((b for b in others if b < place), default=None)
        above = min((b for b in others if b > place), default=None)
        if below is not None and above is not None:
            share = (place - below) / (above - below)
            return (
                (1 - share) * self._moved(rows, below, place) + share * self._moved(rows, above, place)
            ), LENGTH_WEIGHT
        if below is not None or above is not None:
            return self._moved(rows, below if above is None else above, place), LENGTH_WEIGHT
        # 2. Other row counts at the nearest length.
        if not self.known:
            return 0.0, GUESS_WEIGHT
        some = self.known[min(self.known, key=lambda b: abs(b - place))]
        fewer = max((r for r in some if r < rows), default=None)
        more = min((r for r in some if r > rows), default=None)
        if fewer is None or more is None:
            edge = fewer if more is None else more
            return (0.0 if edge is None else some[edge]), GUESS_WEIGHT
        share = (rows - fewer) / (more - fewer)
        return (1 - share) * some[fewer] + share * some[more], GUESS_WEIGHT

    def _moved(self, rows: int, other: int | None, place: int) -> float:
        """What `rows` have at `other`, moved by what row counts known at both lengths say of the difference."""
        assert other is not None
        own, there = self.known.get(place, {}), self.known[other]
        shared = [own[r] - there[r] for r in own if r in there and r != rows]
        return there[rows] + (sum(shared) / len(shared) if shared else 0.0)
