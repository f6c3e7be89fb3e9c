"""Rows for training and for evaluation, cut out of token shards.

Training: an epoch is all documents in an order drawn for it, one after another without gaps, cut into rows of `length`
tokens and one more, the last target, which is the first token of the next row; the rows are then drawn in an order of
their own. Every row follows from (seed, epoch, index) and nothing else, so it does not matter who asks for it or when.

Evaluation: every document from its own beginning, so that the number does not depend on what happens to lie beside it.

Letters: B rows in a batch, T tokens of a row.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cueva.errors import TextError

PADDING: Final = -1
"""The document id of positions behind the last token of a row."""


class Tokens(Protocol):
    """What rows are cut from: a `TokenShards`, or anything with the same two arrays."""

    tokens: NDArray[np.unsignedinteger]
    starts: NDArray[np.int64]


class PackedRow(NamedTuple):
    """One row of T + 1 tokens, and which document each belongs to.

    A position is trained to predict the next one, and further ones at MTP depths, where both have one document id.
    """

    ids: NDArray[np.int64]
    document: NDArray[np.int64]
    """Counts up from 0 within the row; negative on padding."""


class Packing:
    """The training rows of a corpus.

    Args:
        shards: the training split.
        length: positions of a row that are trained (T); a row has one token more.
        seed: decides the order of documents and rows.

    Raises:
        TextError: the corpus is shorter than one row.
    """

    def __init__(self, shards: Tokens, length: int, seed: int):
        _require(length, seed)
        self.shards = shards
        self.length = length
        self.seed = seed
        tokens = int(shards.starts[-1])
        self.rows_per_epoch: int = (tokens - 1) // length
        """Rows of one epoch. The end of the stream that fills no row, less than one row, is left out; it is another in
        each epoch."""
        if self.rows_per_epoch < 1:
            raise TextError(
                f"the corpus has {tokens:,} tokens, but one row takes {length + 1:,} (a length of {length:,} and the "
                "last target)",
                way_out=f"try a length of {tokens - 1:,} or less, or more text"
                if tokens > 1
                else "try more text; there is next to none",
            )
        self._sizes = np.diff(shards.starts)
        self._orders: dict[int, _Order] = {}

    def row(self, epoch: int, index: int) -> PackedRow:
        """Return row `index`, from 0 to `rows_per_epoch` - 1, of an epoch.

        Takes time that grows with the logarithm of the number of documents, once the epoch's order is drawn.
        """
        if not 0 <= index < self.rows_per_epoch or epoch < 0:
            raise TextError(
                f"there is no row {index} of epoch {epoch}: rows 0 to {self.rows_per_epoch - 1} of epochs from 0 exist"
            )
        order = self._order_of(epoch)
        first = int(order.rows[index]) * self.length
        last = first + self.length + 1
        ids = np.empty(self.length + 1, np.int64)
        document = np.empty(self.length + 1, np.int64)
        place, number = int(np.searchsorted(order.ends, first, side="right")), 0
        done = 0
        while first + done < last:
            chosen = order.documents[place]
            size = self._sizes[chosen]
            skip = first + done - (int(order.ends[place]) - int(size))
            take = min(int(size) - skip, last - first - done)
            begin = int(self.shards.starts[chosen]) + skip
            ids[done : done + take] = self.shards.tokens[begin : begin + take]
            document[done : done + take] = number
            done += take
            place += 1
            number += take > 0
        return PackedRow(ids, document)

    def batch(self, rows: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows by their number in the whole run; number g is row g % n of epoch g // n, n = `rows_per_epoch`.

        Returns:
            ids_BT and document_BT, each (B, length + 1).
        """
        found = [self.row(*divmod(row, self.rows_per_epoch)) for row in rows]
        return np.stack([row.ids for row in found]), np.stack([row.document for row in found])

    def _order_of(self, epoch: int) -> "_Order":
        found = self._orders.get(epoch)
        if found is None:
            documents = permutation(len(self._sizes), self.seed, epoch, 0)
            rows = permutation(self.rows_per_epoch, self.seed, epoch, 1)
            found = _Order(documents, np.cumsum(self._sizes[documents]), rows)
            # Two are kept: one batch can hold the end of an epoch and the beginning of the next.
            self._orders = dict([*self._orders.items(), (epoch, found)][-2:])
        return found


class _Order(NamedTuple):
    """How an epoch is laid out."""

    documents: NDArray[np.int64]
    """Which document is at which place."""
    ends: NDArray[np.int64]
    """Where in the epoch's stream the document at each place ends."""
    rows: NDArray[np.int64]
    """Which stretch of the stream each row is."""


class Sequential:
    """The evaluation rows of a corpus; `sequential` makes one.

    Every token but the first of each document (the begin token) is the target of exactly one position. A document
    longer than a row goes on in further pieces, which begin with the last target of the piece before and see nothing
    earlier. Pieces follow one another in a row as long as they fit, each with a document id of its own; the rest is
    padding.
    """

    def __init__(self, shards: Tokens, length: int):
        _require(length, 0)
        self.shards = shards
        self.length = length
        starts, stops = [], []
        for start, end in zip(shards.starts[:-1].tolist(), shards.starts[1:].tolist(), strict=True):
            for begin in range(start, max(end - 1, start), length):
                starts.append(begin)
                stops.append(min(begin + length + 1, end))
        self.targets: int = sum(stops) - sum(starts) - len(starts)
        """How many tokens are predicted in all rows together."""
        if not self.targets:
            raise TextError("there is nothing to evaluate: no document has a token after its first")
        self._pieces = list(zip(starts, stops, strict=True))
        self._firsts = [0]
        """The first piece of each row, and how many there are."""
        used = 0
        for place, (start, stop) in enumerate(self._pieces):
            if used + stop - start > length + 1:
                self._firsts.append(place)
                used = 0
            used += stop - start
        self._firsts.append(len(self._pieces))

    def __len__(self) -> int:
        return len(self._firsts) - 1

    def row(self, index: int) -> PackedRow:
        """Return one row."""
        if not 0 <= index < len(self):
            raise TextError(f"there is no row {index}: there are rows 0 to {len(self) - 1}")
        ids = np.zeros(self.length + 1, np.int64)
        document = np.full(self.length + 1, PADDING, np.int64)
        done = 0
        for number, (start, stop) in enumerate(self._pieces[self._firsts[index] : self._firsts[index + 1]]):
            ids[done : done + stop - start] = self.shards.tokens[start:stop]
            document[done : done + stop - start] = number
            done += stop - start
        return PackedRow(ids, document)

    def batch(self, rows: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return ids_BT and document_BT of some rows, each (B, length + 1)."""
        found = [self.row(row) for row in rows]
        return np.stack([row.ids for row in found]), np.stack([row.document for row in found])


def sequential(shards: Tokens, length: int) -> Sequential:
    """Lay out a corpus for evaluation.

    Args:
        shards: usually the held-out split.
        length: positions of a row; a row has one token more.

    Raises:
        TextError: no document has two tokens.
    """
    return Sequential(shards, length)


def permutation(size: int, *key: int) -> NDArray[np.int64]:
    """Draw an order of 0 .. size - 1 that depends on the key only.

    Philox's raw numbers and the seeding are fixed for all versions of numpy; `Generator.permutation` is not, and a run
    has to be repeatable after an upgrade. So the order is that of raw 64-bit draws, ties as they come.
    """
    draws = np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(draws, kind="stable")


def _require(length: int, seed: int) -> None:
    if length < 1:
        raise TextError(f"a row of {length} positions holds nothing to predict; give a length of at least 1")
    if seed < 0:
        raise TextError(f"the seed is {seed}; give a whole number of at least 0")
