"""What passes cost on this machine, learned while they run.

    seconds = level x prior(rows, cached) x correction(rows, cached)

* The *prior* is the model's shape (`nominal.py`), bent to what the runner measured when the engine was loaded.
* The *correction* of one row count and one range of cached lengths is the trimmed mean of its last passes. Row counts
  never seen take those of their neighbours, in between by interpolation; a new range takes that of the nearest one,
  shifted by what the row counts seen in both have in common.
* The *level* is how fast the machine is now. Passes whose cost is well known and that all turn out dearer or cheaper
  say that the machine changed (memory bandwidth may halve for minutes), and move all costs at once, also of what has
  not run since.

A cost is everything between two points of a round, Python included: what is not computed in a pass is waited for too.
"""

import math
import statistics
import time
from collections import deque
from typing import Final, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cueva.engine.corrections import Corrections, bucket
from cueva.engine.nominal import NominalCosts

Kind = Literal["verify", "draft", "reduced"]
"""A pass of the main model; a step of drafting with the whole head; one with a reduced draft vocabulary."""

KEPT: Final = 128
"""Passes of a kind, row count and length that count: enough to average noise of 20% to 2%, soon replaced."""
KNOWN: Final = 8
"""Passes after which a cost is known, so that what deviates is the machine and not the estimate."""
ALARM: Final = 9
"""Latest deviations whose median decides whether the machine changed."""
CHANGED: Final = math.log(1.15)
"""That median is a change, unless the machine is noisy:"""
NOISE_MARGIN: Final = 2.25
"""then it must be so many times the usual deviation, which is over four times the noise of a median of nine: a change
that was none makes everything that is not running seem as much dearer or cheaper."""
USUAL: Final = 0.15
"""Deviation assumed at first."""
RECENT: Final = 512
"""Rounds after which a pass counts no more, if at least so many newer ones are there:"""
LEAST: Final = 6
LATELY: Final = 1024
"""Rounds after which a pass no longer speaks for what such passes cost."""
MEASURE_ROWS: Final = (1, 2, 3, 5)
MEASURE_CACHED: Final = (16, 1024)
MEASURE_CATCH_UP: Final = 128
"""Rows by which it is measured what catching up costs."""
MEASURE_SECONDS: Final = 0.8
"""What measuring at load may take; large models then measure fewer shapes."""
MEASURE_SLOW: Final = 0.05
"""Seconds of a pass from which one measurement has to do."""
MEASURE_AGAIN: Final = 5
"""Measurements of one shape, of which the median counts."""


@runtime_checkable
class Measures(Protocol):
    """What a runner offers that can say at load what its passes cost."""

    def measure(self, depth: int, rows: int, cached: int, ids: NDArray[np.int64] | None = None) -> float:
        """Run one made-up pass and return its seconds.

        Args:
            depth: 0 is the main model with logits for every row; k is MTP module k with logits for the last row.
            rows: of one sequence. Many rows of a module (more than `drafting.CATCH_UP_FROM`) run as they do when it
                catches up: by `mtp_prefill`.
            cached: positions that the first row attends to besides itself.
            ids: a reduced draft vocabulary, sorted; None is the whole one. Packing it is not part of the seconds.
        """
        ...


class _Cell:
    """The latest passes of one kind, row count and range of lengths."""

    __slots__ = ("added", "entries", "seen")

    def __init__(self) -> None:
        self.entries: deque[list[float]] = deque(maxlen=KEPT)
        """[log(seconds / prior), level at that time, round]"""
        self.added = self.seen = 0

    def value(self) -> float:
        """Trimmed mean of what is not too old; passes are slow for any reason and hardly fast, so more is cut above."""
        since, least = self.seen - RECENT, len(self.entries) - LEAST
        ordered = sorted(x - level for i, (x, level, when) in enumerate(self.entries) if when >= since or i >= least)
        count = len(ordered)
        if count < 4:
            return ordered[(count - 1) // 2]
        kept = ordered[count // 8 : count - count // 4]
        return sum(kept) / len(kept)


class _Table:
    """One kind of pass."""

    def __init__(self) -> None:
        self.measured = Corrections()
        self.learned = Corrections()
        self.cells: dict[tuple[int, int], _Cell] = {}


class LearnedCosts:
    """Seconds of this engine's passes, Python included; one for the life of an engine."""

    def __init__(self, nominal: NominalCosts, reduced: NominalCosts | None = None):
        """Start from costs by the model's shape; `reduced` is the one with a reduced draft vocabulary."""
        self._nominal, self._reduced = nominal, reduced or nominal
        self._padded = nominal.padded_rows
        self._tables: dict[Kind, _Table] = {"verify": _Table(), "draft": _Table(), "reduced": _Table()}
        self._level: float | None = None
        self._deviating: deque[tuple[float, list[float]]] = deque(maxlen=ALARM)
        self._usual = USUAL
        self._changed = -1
        self.rounds = 0
        """Verifications so far."""

    # --- what it says -------------------------------------------------------------------------------------------------

    def seconds(self, kind: Kind, rows: float, cached: float) -> float:
        """Predict. Before anything was measured or seen the unit is a plain step. Rows may be a mean: 2.4."""
        low = max(math.floor(rows), 1)
        first = self._seconds(kind, low, cached)
        share = rows - low
        return first if share <= 0 else (1 - share) * first + share * self._seconds(kind, low + 1, cached)

    def _seconds(self, kind: Kind, rows: int, cached: float) -> float:
        rows, table = self._rows(rows), self._tables[kind]
        learned = table.learned.at(rows, bucket(cached))
        return math.exp(self._prior(kind, table, rows, cached) + learned + (self._level or 0.0))

    def _rows(self, rows: int) -> int:
        return rows if self._padded is None else -(-rows // self._padded) * self._padded

    def _prior(self, kind: Kind, table: _Table, rows: int, cached: float) -> float:
        return math.log(self._shape(kind, rows, cached)) + table.measured.at(rows, bucket(cached))

    def _shape(self, kind: Kind, rows: int, cached: float) -> float:
        if kind == "verify":
            return self._nominal.verify(rows, cached)
        return (self._nominal if kind == "draft" else self._reduced).draft(rows, cached)

    def known(self, rows: int, cached: float) -> int:
        """How many such verifications ran of late, at this and the neighbouring ranges of lengths."""
        rows, place, since = self._rows(rows), bucket(cached), max(self.rounds - LATELY, self._changed)
        cells = self._tables["verify"].cells
        found = [cell for near in (place, place - 1, place + 1) if (cell := cells.get((rows, near))) is not None]
        return sum(entry[2] > since for cell in found if cell.seen > since for entry in cell.entries)

    def view(self, *, reduced: bool) -> "CostsNow":
        """The costs as the controller reads them (`Costs`), with the whole or a reduced draft vocabulary."""
        return CostsNow(self, "reduced" if reduced else "draft")

    # --- what it learns -----------------------------------------------------------------------------------------------

    def add(self, kind: Kind, rows: int, cached: float, seconds: float) -> None:
        """Take note of what one pass, or one step of drafting, took."""
        rows, table, place = self._rows(rows), self._tables[kind], bucket(cached)
        if kind == "verify":
            self.rounds += 1
        x = math.log(max(seconds, 1e-9)) - self._prior(kind, table, rows, cached)
        if self._level is None:
            self._level = x
        cell = table.cells.setdefault((rows, place), _Cell())
        entry = [x, self._level, self.rounds]
        if len(cell.entries) >= KNOWN:
            deviation = x - self._level - table.learned.known[place][rows]
            self._usual += 0.03 * (abs(deviation) - self._usual)
            self._deviating.append((deviation, entry))
        cell.entries.append(entry)
        cell.seen = self.rounds
        cell.added += 1
        # Known costs change slowly: looking at every fourth is enough, and this must not cost what it is to save.
        if len(cell.entries) <= KNOWN or cell.added % 4 == 0:
            self._notice_a_change()
            table.learned.set(rows, place, self._value(table, rows, place, cell))

    def _value(self, table: _Table, rows: int, place: int, cell: _Cell) -> float:
        """What a cell says; the first passes only move it away from what its neighbours say."""
        count = len(cell.entries)
        guess, weight = table.learned.guess(rows, place)
        return (count * cell.value() + weight * guess) / (count + weight)

    def _notice_a_change(self) -> None:
        """Move the level if the latest well-known passes all say so; they were measured at the new level, then."""
        if len(self._deviating) < ALARM or self._level is None:
            return
        change = statistics.median(deviation for deviation, _ in self._deviating)
        if abs(change) < max(CHANGED, NOISE_MARGIN * self._usual):
            return
        self._level += change
        self._changed = self.rounds - 1  # costs may have changed in proportion, or not
        for _, entry in self._deviating:
            entry[1] += change
        self._deviating.clear()

    def measure(
        self, runner: Measures, *, positions: int, ids: NDArray[np.int64] | None, budget: float = MEASURE_SECONDS
    ) -> None:
        """Ask the runner what passes cost, the most needed shapes first, until the time is up.

        Args:
            runner: offers `measure`.
            positions: of the model's context; nothing longer is tried.
            ids: the reduced draft vocabulary that may be used, or None.
            budget: seconds for all of it; the first two shapes are measured in any case.
        """
        lengths = [n for n in MEASURE_CACHED if n + max(MEASURE_ROWS) < positions] or [1]
        rows = [self._padded] if self._padded is not None else list(MEASURE_ROWS)
        if self._padded is not None:
            lengths = lengths[:1]  # rows attend one by one; what length adds is learned on the way
        shapes: list[tuple[Kind, int, int]] = []
        drafting: tuple[Kind, ...] = ("draft",) if ids is None else ("reduced", "draft")
        for cached in lengths:
            for count in rows:
                kinds: tuple[Kind, ...] = ("verify", *drafting) if count in rows[:2] else ("verify",)
                shapes.extend((kind, count, cached) for kind in kinds)
        if self._padded is None and lengths[0] + MEASURE_CATCH_UP < positions:
            shapes.insert(2 + len(drafting), ("draft", MEASURE_CATCH_UP, lengths[0]))
        started = time.perf_counter()
        for number, (kind, count, cached) in enumerate(shapes):
            if number >= 2 and time.perf_counter() - started > budget:
                return
            some = None if kind != "reduced" else ids
            depth = int(kind != "verify")
            first = runner.measure(depth, count, cached, some)  # touches the memory, packs the head
            again = MEASURE_AGAIN if first < MEASURE_SLOW else 1
            took = [runner.measure(depth, count, cached, some) for _ in range(again)]
            self.measured(kind, count, cached, statistics.median(took))

    def measured(self, kind: Kind, rows: int, cached: float, seconds: float) -> None:
        """Bend the prior to a measurement made before any pass counted."""
        rows, table = self._rows(rows), self._tables[kind]
        if self._level is None:
            self._level = 0.0
        table.measured.set(rows, bucket(cached), math.log(seconds / self._shape(kind, rows, cached)))

    def seen(self, kind: Kind) -> dict[int, float]:
        """Seconds by row count, in the range of lengths that ran last; only what was seen there."""
        cells = self._tables[kind].cells
        if not cells:
            return {}
        last = max(cells, key=lambda key: cells[key].seen)[1]
        cached = 64 if last == 0 else 96 << last
        return {rows: self.seconds(kind, rows, cached) for rows, place in sorted(cells) if place == last}


class CostsNow:
    """`LearnedCosts` with one kind of draft head (`Costs`)."""

    def __init__(self, costs: LearnedCosts, kind: Kind):
        self._costs = costs
        self._kind: Kind = kind

    def verify(self, rows: float, cached: float) -> float:
        """See `Costs`."""
        return self._costs.seconds("verify", rows, cached)

    def draft(self, rows: float, cached: float) -> float:
        """See `Costs`."""
        return self._costs.seconds(self._kind, rows, cached)

    def known(self, rows: int, cached: float) -> float:
        """See `Costs`."""
        return self._costs.known(rows, cached)
