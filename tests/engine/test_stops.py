import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cueva.engine.stops import ShownText
from tests.engine.doubles import PieceTokenizer


class Cut:
    """A decoder whose tokens are the pieces of a given text."""

    def __init__(self, pieces: list[str]):
        self.pieces = pieces

    def push(self, token_id: int, /) -> str:
        return self.pieces[token_id]

    def flush(self) -> str:
        return ""


def plainly(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: character by character, the first end of a stop string ends the text."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


texts = st.text("abc", max_size=12)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


@given(text=texts, stops=stop_lists, borders=st.sets(st.integers(1, 11)))
@example(text="abc", stops=["abc", "b"], borders=set())
@example(text="ababac", stops=["abac"], borders={3})
@example(text="aab", stops=["ab"], borders={2})
def test_where_text_ends_does_not_depend_on_how_it_was_cut(text: str, stops: list[str], borders: set[int]) -> None:
    edges = [0, *sorted(b for b in borders if b < len(text)), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    shown = ShownText(Cut(pieces), stops)
    got = ""
    for token_id in range(len(pieces)):
        got += shown.push(token_id)
        # What was shown is never taken back, and holds no stop string.
        assert plainly(text, stops)[0].startswith(got)
    got += shown.flush()
    assert (got, shown.stopped) == plainly(text, stops)


@given(text=st.text(max_size=20), stops=st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_no_half_character_is_ever_shown(text: str, stops: list[str]) -> None:
    tokenizer = PieceTokenizer()
    shown = ShownText(tokenizer.stream(), stops)
    pieces = [shown.push(token_id) for token_id in tokenizer.encode(text)] + [shown.flush()]
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == plainly(text, stops)[0]


def test_text_is_held_back_only_while_it_may_become_a_stop_string() -> None:
    shown = ShownText(Cut(["x<", "e", "n", "y"]), ["<end>"])
    assert [shown.push(i) for i in range(4)] == ["x", "", "", "<eny"]


def test_without_stop_strings_nothing_is_held_back() -> None:
    shown = ShownText(Cut(["ab", "c"]))
    assert [shown.push(0), shown.push(1), shown.flush()] == ["ab", "c", ""]


def test_after_a_stop_string_nothing_is_shown() -> None:
    shown = ShownText(Cut(["a", "STOP", "b"]), ["STOP"])
    assert [shown.push(0), shown.push(1), shown.push(2), shown.flush()] == ["a", "", "", ""]
    assert shown.stopped == "STOP"


@pytest.mark.parametrize("ending", ["<en", ""])
def test_what_never_became_a_stop_string_is_text_in_the_end(ending: str) -> None:
    shown = ShownText(Cut(["a" + ending]), ["<end>"])
    assert shown.push(0) + shown.flush() == "a" + ending
