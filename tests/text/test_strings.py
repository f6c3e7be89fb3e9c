"""Cutting long texts."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cueva.errors import TextError
from cueva.text import Tokenizer
from cueva.text.strings import pieces, utf8
from tests.text.strategies import code, texts


@given(text=st.one_of(texts(), code()), limit=st.integers(1, 20))
def test_pieces_are_short_and_join_to_the_text(text: str, limit: int) -> None:
    parts = list(pieces(text, limit))
    assert "".join(parts) == text
    assert all(len(part) <= limit for part in parts)
    assert text == "" or all(parts)


@example(text="d" * 18 + "\n" + "x" * 16 + "):  漢字", limit=37)
@given(text=st.lists(code(), min_size=3).map("".join), limit=st.integers(30, 60))
def test_a_cut_before_a_visible_line_or_word_changes_no_token(tokenizer: Tokenizer, text: str, limit: int) -> None:
    parts = list(pieces(text, limit))
    soft = all(
        (end[-1] == "\n" and not begin[0].isspace())
        or (begin[0] == " " and not end[-1].isspace() and not begin[1].isspace())
        for end, begin in zip(parts, [f"{part}\n" for part in parts[1:]], strict=False)
    )
    if soft:
        assert [token for part in parts for token in tokenizer.encode(part)] == tokenizer.encode(text)


def test_half_a_character_is_said_with_its_place() -> None:
    with pytest.raises(TextError, match=r"character 3 of the text: \\udc00 is half of a surrogate pair"):
        utf8("ab\udc00")
