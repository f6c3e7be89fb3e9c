"""Texts, conversations and corpora as Hypothesis draws them."""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from numpy.typing import NDArray

from cueva.text.special import SPECIAL_TOKENS

SPELLINGS = st.sampled_from([*SPECIAL_TOKENS, "<|User|>", "<thi", "nk>", "<", "｜", "</", "<｜end▁of"])


def texts(max_size: int = 60) -> SearchStrategy[str]:
    """Any string of whole characters: every script, controls, private use, unassigned."""
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=max_size)


def code() -> SearchStrategy[str]:
    """What a programmer types: words, numbers, punctuation, indentation, line ends of every kind."""
    parts = st.sampled_from(
        [
            "def",
            "x",
            "_y",
            "self",
            "12345",
            "3.14",
            "(",
            "):",
            '"',
            "#",
            "    ",
            "  ",
            "\t",
            "\n",
            "\r\n",
            "\n\n",
            "é",
            "漢字",
            " ",
        ]
    )
    return st.lists(parts, max_size=30).map("".join)


def hostile_texts() -> SearchStrategy[str]:
    """Text in which somebody spells special tokens, whole and in parts."""
    return st.lists(st.one_of(SPELLINGS, texts(5)), max_size=8).map("".join)


def conversations() -> SearchStrategy[list[dict[str, Any]]]:
    """Alternating turns whose every text is hostile."""
    turn = st.tuples(hostile_texts(), hostile_texts())
    return st.tuples(st.booleans(), hostile_texts(), st.lists(turn, max_size=3), hostile_texts()).map(_conversation)


def _conversation(drawn: tuple[bool, str, list[tuple[str, str]], str]) -> list[dict[str, Any]]:
    with_system, system, turns, last = drawn
    messages = [{"role": "system", "content": system}] if with_system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": last}]


class Stream(NamedTuple):
    """Shards in memory: every token of the corpus has a value of its own."""

    tokens: NDArray[np.uint32]
    starts: NDArray[np.int64]


def stream(sizes: list[int]) -> Stream:
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Stream(np.arange(starts[-1], dtype=np.uint32), starts)


class PackingCase(NamedTuple):
    shards: Stream
    length: int
    seed: int


@st.composite
def packings(draw: st.DrawFn) -> PackingCase:
    """Corpora of a few documents, from two tokens long, and a length that leaves at least one row."""
    sizes = draw(st.lists(st.integers(2, 40), min_size=1, max_size=12))
    length = draw(st.integers(1, sum(sizes) - 1))
    return PackingCase(stream(sizes), length, draw(st.integers(0, 2**32)))
