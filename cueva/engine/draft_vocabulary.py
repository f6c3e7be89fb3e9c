"""Drafts from the frequent part of the vocabulary: a smaller head for the MTP modules, and nothing else.

A draft step is one block and a product with the vocabulary head; where the vocabulary is large, the head is most of it.
Drafts are guesses, so a head over the ids that make up nearly all text guesses nearly as well. Verification uses the
whole head: which text comes out is decided there (`acceptance.py`: any distribution may propose).

Which ids: given as such, or as a size. Of a size, the lowest ids first, since byte-level BPE numbers its tokens in the
order of merging and `sentencepiece` in the order of score, the frequent ones first; then, as the engine sees prompts
and answers, those that occur most. What was seen changes with use, so it serves greedy requests only, whose text it
cannot change. Sampled requests keep to the first choice, for with a seed, other drafts give another text.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cueva.config import ModelConfig
from cueva.errors import RequestError

AskedVocabulary = Literal["auto"] | int | Sequence[int] | NDArray[np.int64] | None
"""What `Engine(draft_vocabulary=...)` takes."""

AUTO_FROM: Final = 8192
"""Vocabularies smaller than this stay whole under "auto": their head is little beside a block."""
AUTO_SHARE: Final = 4
"""Under "auto" one id in four is kept (8,000 of 32,000), within these bounds:"""
AUTO_LEAST: Final = 4096
AUTO_MOST: Final = 16384
FIRST_LOOK: Final = 2048
"""Tokens seen before the choice is looked at again; then whenever twice as many were seen."""
WORTH: Final = 0.01
"""Share of the tokens seen that a new choice must add: packing a head takes as long as some passes."""
DECAY: Final = 0.995
"""Weight of the past in the hit rate, per token: about the last two hundred count."""


def frequent_ids(token_ids: Iterable[int], size: int, vocab_size: int) -> NDArray[np.int64]:
    """Choose the `size` ids that occur most in `token_ids`, a text like those to be written; ties to the lower id.

    Returns:
        Ascending, int64; for `Engine(draft_vocabulary=...)`.

    Raises:
        RequestError: a size or an id that does not fit the vocabulary.

    Examples:
        >>> frequent_ids([7, 7, 3, 7, 3, 5], 2, vocab_size=10).tolist()
        [3, 7]
    """
    seen = np.fromiter(token_ids, np.int64)
    if seen.size and not 0 <= seen.min() <= seen.max() < vocab_size:
        raise RequestError(f"the text holds token {seen.max()}, but the vocabulary has {vocab_size}")
    if not 0 < size <= vocab_size:
        raise RequestError(f"a draft vocabulary of {size} ids does not fit: it has from 1 to {vocab_size}")
    return _most_frequent(np.bincount(seen, minlength=vocab_size), size)


def _most_frequent(count_A: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return _frozen(np.sort(np.argsort(-count_A, kind="stable")[:size]))


def _frozen(ids_V: NDArray[np.int64]) -> NDArray[np.int64]:
    ids_V = np.ascontiguousarray(ids_V, np.int64)
    ids_V.setflags(write=False)
    return ids_V


class DraftVocabulary:
    """Which ids drafts may be, for one engine. `V` is their number.

    Attributes:
        fixed_V: the first choice; None where drafts may be any token.
        current_V: the choice for greedy requests; the same object until use suggests another.
        auto: whether it may be given up where it does not pay.
    """

    def __init__(self, asked: AskedVocabulary, config: ModelConfig, usable: int):
        """Choose.

        Args:
            asked: a size; the ids; "auto"; None or 0 for the whole vocabulary.
            config: of the model.
            usable: ids from here on are never chosen, and not drafted either.

        Raises:
            RequestError: nothing of the sort, or it does not fit the vocabulary.
        """
        self.auto = isinstance(asked, str) and asked == "auto"
        self._adapts = self.auto or isinstance(asked, int)
        self.fixed_V = _chosen(asked, config, usable) if config.num_nextn_predict_layers else None
        self.current_V = self.fixed_V
        self._usable = usable
        self._count_A = np.zeros(config.vocab_size, np.int64)
        self._seen, self._next_look = 0, FIRST_LOOK
        self._hits, self._tries = 0.0, 0.0
        self._member_A = self._members()

    def _members(self) -> NDArray[np.bool_]:
        member_A = np.zeros(len(self._count_A), np.bool_)
        if self.current_V is not None:
            member_A[self.current_V] = True
        return member_A

    @property
    def hit_rate(self) -> float:
        """Share of the latest tokens that the current choice holds; 1 before any was seen."""
        return (self._hits + 1.0) / (self._tries + 1.0)

    def coverage(self, token_ids: Sequence[int]) -> float:
        """Share of a text that the first choice holds; 1 for an empty one."""
        if self.fixed_V is None or not len(token_ids):
            return 1.0
        ids = np.asarray(token_ids)
        return float((self.fixed_V[np.searchsorted(self.fixed_V, ids).clip(max=len(self.fixed_V) - 1)] == ids).mean())

    def saw(self, token_ids: Sequence[int], *, prompt: bool = False) -> None:
        """Take note of tokens of a prompt or of an answer; a prompt only says what is frequent."""
        if self.fixed_V is None or not len(token_ids):
            return
        self._seen += len(token_ids)
        if prompt:
            self._count_A += np.bincount(np.asarray(token_ids), minlength=len(self._count_A))
        else:
            for token_id in token_ids:
                self._count_A[token_id] += 1
                self._hits = DECAY * self._hits + bool(self._member_A[token_id])
                self._tries = DECAY * self._tries + 1.0
        if self._adapts and self._seen >= self._next_look:
            self._next_look = 2 * self._seen
            self._look_again()

    def _look_again(self) -> None:
        """Take the ids seen most, if they would have covered noticeably more of what was seen."""
        assert self.current_V is not None
        best_V = _most_frequent(self._count_A[: self._usable], len(self.current_V))
        gained = (self._count_A[best_V].sum() - self._count_A[self.current_V].sum()) / self._count_A.sum()
        if gained >= WORTH:
            self.current_V = best_V
            self._member_A = self._members()
            self._hits = self._tries = 0.0


def _chosen(asked: Any, config: ModelConfig, usable: int) -> NDArray[np.int64] | None:
    """The first choice; None for the whole vocabulary."""
    size: int | None = None
    if asked is None or asked is False:
        return None
    if isinstance(asked, str):
        if asked != "auto":
            raise RequestError(
                f"draft_vocabulary is {asked!r}, but it is 'auto', a number of ids, the ids themselves, or None",
                way_out="try cueva.engine.frequent_ids, which chooses ids from the tokens of a text",
            )
        if config.vocab_size < AUTO_FROM:
            return None
        size = min(max(config.vocab_size // AUTO_SHARE, AUTO_LEAST), AUTO_MOST)
    elif isinstance(asked, int | np.integer) and not isinstance(asked, bool):
        size = int(asked)
        if size < 0 or size > config.vocab_size:
            raise RequestError(
                f"draft_vocabulary is {size}, but it must be from 1 to the {config.vocab_size} of the vocabulary, or 0 "
                "for all of it"
            )
    if size is not None:
        return _frozen(np.arange(size)) if 0 < size < usable else None
    try:
        ids_V = np.unique(np.asarray(asked))
    except (TypeError, ValueError):
        ids_V = np.empty(0, np.int64)
    if ids_V.ndim != 1 or not ids_V.size or ids_V.dtype.kind not in "iu":
        raise RequestError("draft_vocabulary must be 'auto', a number of ids, or a list of token ids that is not empty")
    if ids_V[0] < 0 or ids_V[-1] >= config.vocab_size:
        outside = ids_V[0] if ids_V[0] < 0 else ids_V[-1]
        raise RequestError(f"draft_vocabulary names token {outside}, outside the vocabulary of {config.vocab_size}")
    ids_V = ids_V[ids_V < usable]
    if not ids_V.size:
        raise RequestError(f"draft_vocabulary names only tokens that this tokenizer does not know (from {usable})")
    return _frozen(ids_V)
