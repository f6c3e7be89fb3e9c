"""Decoding token by token."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cueva.text import Tokenizer
from tests.text.strategies import texts

WORDS = ["▁hola", "▁la", "▁luz", "▁", "s", "▁▁", "é", "<0xE6>", "<0xBC>", "<0xA2>", "<0x20>", "<0xFF>", "<s>", "</s>"]
LLAMA = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
GEMMA = {"type": "Sequence", "decoders": LLAMA["decoders"][:3]}


def made(decoder: dict[str, Any], folder: Path) -> Tokenizer:
    """A tokenizer in the manner of SentencePiece conversions, with these few words."""
    fields = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    definition = {
        "model": {"type": "BPE", "vocab": {word: place for place, word in enumerate(WORDS)}, "merges": []},
        "added_tokens": [
            {"id": WORDS.index(word), "content": word, "special": True, **fields} for word in ("<s>", "</s>")
        ],
        "decoder": decoder,
    }
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}', encoding="utf-8")
    return Tokenizer.load(folder)


@pytest.fixture(scope="module", params=[LLAMA, METASPACE, GEMMA], ids=["llama", "metaspace", "gemma"])
def pieced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return made(request.param, tmp_path_factory.mktemp("pieced"))


def streamed(tokenizer: Tokenizer, ids: list[int], **options: Any) -> list[str]:
    stream = tokenizer.stream(**options)
    return [*map(stream.push, ids), stream.flush()]


@given(ids=st.lists(st.integers(0, 720), max_size=30), special=st.booleans())
def test_the_stream_adds_up_to_the_whole(tokenizer: Tokenizer, ids: list[int], special: bool) -> None:
    assert "".join(streamed(tokenizer, ids, special=special)) == tokenizer.decode(ids, special=special)


@given(text=texts())
@example(text="漢🙂é")
def test_half_a_character_is_never_shown(tokenizer: Tokenizer, text: str) -> None:
    pieces = streamed(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert text.startswith("\ufffd") or all("\ufffd" not in piece or "\ufffd" in text for piece in pieces)
    assert pieces[-1] == ""


def test_a_character_appears_with_its_last_byte_and_a_broken_one_as_soon_as_it_is_certain(tokenizer: Tokenizer) -> None:
    by_byte = {tokenizer.token_bytes(token): token for token in range(tokenizer.size)}
    one, two, three, letter = (by_byte[byte] for byte in (b"\xe6", b"\xbc", b"\xa2", b"a"))
    assert streamed(tokenizer, [one, two, three, letter]) == ["", "", "漢", "a", ""]
    assert streamed(tokenizer, [one, two, letter]) == ["", "", "\ufffda", ""]
    assert streamed(tokenizer, [one, two]) == ["", "", "\ufffd"]
    assert streamed(tokenizer, [three, letter]) == ["\ufffd", "a", ""]


@given(ids=st.lists(st.integers(0, len(WORDS) + 1), max_size=12), special=st.booleans())
def test_the_stream_adds_up_to_the_whole_for_sentencepiece_models(
    pieced: Tokenizer, ids: list[int], special: bool
) -> None:
    assert "".join(streamed(pieced, ids, special=special)) == pieced.decode(ids, special=special)


@given(ids=st.lists(st.sampled_from([w for w in range(len(WORDS)) if not WORDS[w].startswith("<0x")]), max_size=8))
def test_the_library_decodes_sentencepiece_models_in_the_same_way(pieced: Tokenizer, ids: list[int]) -> None:
    """Bytes are left out: the library gives one U+FFFD for each byte of a broken run, we follow Unicode."""
    assert pieced.decode(ids) == pieced._plain.decode(ids, skip_special_tokens=True)


def test_a_continuation_keeps_the_space_of_its_first_word(pieced: Tokenizer) -> None:
    hola, luz = WORDS.index("▁hola"), WORDS.index("▁luz")
    assert "".join(streamed(pieced, [luz], after=[hola])) == " luz"


@given(ids=st.lists(st.integers(0, len(WORDS) - 1), max_size=10), cut=st.integers(0, 10))
def test_a_continuation_is_what_the_whole_adds_to_its_beginning(pieced: Tokenizer, ids: list[int], cut: int) -> None:
    before = pieced.stream()
    begun = "".join(map(before.push, ids[:cut]))
    assert begun + "".join(streamed(pieced, ids[cut:], after=ids[:cut])) == pieced.decode(ids)


def test_bytes_of_sentencepiece_models_join_to_characters(pieced: Tokenizer) -> None:
    han = [WORDS.index(word) for word in ("<0xE6>", "<0xBC>", "<0xA2>")]
    if not pieced._decoding.drops_first_mark:  # Metaspace alone has no bytes
        assert pieced.decode([WORDS.index("s"), *han]) == "s漢"
        assert pieced.token_bytes(WORDS.index("<0xFF>")) == b"\xff"
    assert pieced.token_bytes(WORDS.index("▁luz")) == b" luz"


def test_the_library_decodes_bytes_in_the_same_way(tokenizer: Tokenizer) -> None:
    @given(ids=st.lists(st.integers(0, 699), max_size=20))
    def check(ids: list[int]) -> None:
        assert tokenizer.decode(ids) == engine.decode(ids, skip_special_tokens=True)

    engine = tokenizer._marked
    check()
