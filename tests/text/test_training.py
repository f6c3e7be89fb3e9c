"""Learning a vocabulary."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cueva.errors import TextError
from cueva.text import Document, Tokenizer
from cueva.text.special import SPECIAL_TOKENS
from cueva.text.training import SMALLEST_VOCABULARY, train_bpe

ROOT = Path(__file__).resolve().parents[2]


def learn(texts: list[str], size: int, sample_bytes: int = 10**8) -> str:
    return train_bpe(texts, size, sample_bytes=sample_bytes, min_frequency=2)


def test_the_same_texts_give_the_same_file_whatever_the_threads(library: list[Document]) -> None:
    code = (
        "import sys, json, hashlib\n"
        "from cueva.text.training import train_bpe\n"
        "texts = json.load(sys.stdin)\n"
        "made = train_bpe(texts, 600, sample_bytes=10**8, min_frequency=2)\n"
        "print(hashlib.sha256(made.encode()).hexdigest())"
    )
    texts = json.dumps([one.text for one in library])
    found = set()
    for threads in ("1", "2"):
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": threads}
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, input=texts, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_indentation_becomes_single_tokens(library: list[Document]) -> None:
    """Four, eight, twelve spaces: one token for all but the last, which goes with the word."""
    tokenizer = Tokenizer.train((one.text for one in library), 1000)
    for width in (4, 8, 12):
        ids = tokenizer.encode("\n" + " " * width + "return")
        assert tokenizer.token_bytes(ids[1]) == b" " * (width - 1)
        assert tokenizer.token_bytes(ids[2]).startswith(b" r")


def test_numbers_fall_into_groups_of_three_and_punctuation_takes_line_breaks(tokenizer: Tokenizer) -> None:
    cut = [piece for piece, _ in tokenizer._plain.pre_tokenizer.pre_tokenize_str("x=1234567 hola():\n\n  y漢字kana")]
    assert cut == ["x", "=", "123", "456", "7", "Ġhola", "():ĊĊ", "Ġ", "Ġy", "æ¼¢åŃĹ", "kana"]


def test_special_tokens_have_the_first_ids_in_their_published_spelling(tokenizer: Tokenizer) -> None:
    assert [tokenizer.special_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert SPECIAL_TOKENS[:3] == (
        "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<\uff5c\u2581pad\u2581\uff5c>",
    )
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (0, (1,), 2)
    assert tokenizer.special_id("<|User|>") is None


def test_a_vocabulary_larger_than_the_text_supports_is_refused_with_its_size() -> None:
    with pytest.raises(TextError, match=r"supports a vocabulary of 276 entries, but 5000 were asked for") as raised:
        learn(["la luz la luz la luz"], 5000)
    assert raised.value.way_out == "try a vocab_size of 276 or less, or more text"
    assert Tokenizer.train(["la luz la luz la luz"], 276).size == 276


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(TextError, match=rf"271 entries is too small: .* need {SMALLEST_VOCABULARY}"):
        learn(["x"], SMALLEST_VOCABULARY - 1)
    with pytest.raises(TextError, match="no text to learn"):
        learn([""], SMALLEST_VOCABULARY)
    with pytest.raises(TextError, match="half of a surrogate pair"):
        learn(["\ud800"], SMALLEST_VOCABULARY)


def test_a_sample_is_bounded_and_does_not_depend_on_the_order() -> None:
    texts = [f"{word} " * 3000 for word in ("uno", "dos", "tres", "cuatro", "cinco", "seis")]
    small = learn(texts, 279, sample_bytes=30_000)
    assert small == learn(texts[::-1], 279, sample_bytes=30_000)
    assert small != learn(texts, 279)


def test_an_endless_stream_is_not_read_to_its_end() -> None:
    def endless() -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield f"otra frase distinta {number} " * 40

    assert json.loads(train_bpe(endless(), 300, sample_bytes=20_000, min_frequency=2))["model"]["type"] == "BPE"


def test_a_word_of_300_kilobytes_is_learned_from_in_reasonable_time() -> None:
    """Without cutting, every one of the merges would walk over the whole word again: minutes."""
    word = "".join(random.Random(5).choices("ACGT", k=300_000))
    began = time.process_time()
    learn([word], 2000)
    assert time.process_time() - began < 10
