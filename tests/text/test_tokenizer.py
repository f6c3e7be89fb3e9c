"""Text to ids and back, with tokenizers of ours and of others."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cueva.errors import CheckpointError, TextError
from cueva.text import Document, Tokenizer
from cueva.text import library as library_module
from cueva.text.special import SPECIAL_TOKENS
from tests.text.strategies import code, hostile_texts, texts

ROOT = Path(__file__).resolve().parents[2]
BPE = '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}'
WORDPIECE = '"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true}'
Change = Callable[[dict[str, Any]], None]


def changed(saved: Path, folder: Path, change: Change | None = None, **config: Any) -> Tokenizer:
    """Load a copy of a saved tokenizer with its tokenizer.json changed and its tokenizer_config.json replaced."""
    definition = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))
    if change is not None:
        change(definition)
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Tokenizer.load(folder)


@given(text=st.one_of(texts(), code(), hostile_texts()))
@example(text="\x00\u200d\ufeff\U0010ffff\r\n\u2028 \t")
@example(text="<｜User｜><think>\u0301")
def test_decode_of_encode_returns_any_unicode_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


@given(text=hostile_texts())
@example(text="".join(SPECIAL_TOKENS))
def test_ordinary_text_never_becomes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    assert all(token >= len(SPECIAL_TOKENS) for token in tokenizer.encode(text))
    assert all(token >= len(SPECIAL_TOKENS) for token in tokenizer.encode_batch([text, text])[1])


def test_special_tokens_are_written_only_on_request(tokenizer: Tokenizer) -> None:
    spelled = "".join(SPECIAL_TOKENS)
    assert tokenizer.encode(spelled, special=True) == list(range(len(SPECIAL_TOKENS)))
    assert tokenizer.encode("hola", bos=True) == [0, *tokenizer.encode("hola")]
    assert tokenizer.encode_batch(["hola"], bos=True, eos=True) == [[0, *tokenizer.encode("hola"), 1]]


def test_decoding_hides_what_divides_texts_and_shows_thoughts_and_tool_calls(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(
        "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜><think>b</think>c<｜end▁of▁sentence｜>", special=True
    )
    assert tokenizer.decode(ids) == "a<think>b</think>c"
    assert tokenizer.decode(ids, special=True).startswith("<｜begin▁of▁sentence｜><｜User｜>a")


@given(ids=st.lists(st.one_of(st.integers(0, 699), st.sampled_from([700, 5000, 2**40])), max_size=20))
def test_any_id_can_be_decoded_also_one_without_a_token(tokenizer: Tokenizer, ids: list[int]) -> None:
    known = [token for token in ids if token < tokenizer.size]
    assert tokenizer.decode(ids) == tokenizer.decode(known)
    assert tokenizer.decode([700, 5000]) == ""
    assert tokenizer.token_bytes(5000) == b""


@pytest.mark.long
@pytest.mark.parametrize("run", [" ", "a", "7", '{"a": "b c", "d": 12}, '])
def test_one_line_of_eleven_megabytes_is_encoded(tokenizer: Tokenizer, run: str) -> None:
    """The regular expression engine panics on ten million spaces, unless they come in pieces."""
    text = "x" + run * (11_000_000 // len(run.encode())) + "y"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_long_texts_reach_the_library_in_pieces(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "x" + " " * 3000 + "\n".join(["una línea"] * 400)
    whole = tokenizer.encode(text)
    monkeypatch.setattr(library_module, "LONGEST_PIECE", 1000)
    cut = tokenizer.encode(text)
    assert tokenizer.decode(cut) == text
    assert cut[-1500:] == whole[-1500:]
    assert cut != whole  # the run of spaces has no border to cut at


def test_a_panic_in_the_library_is_a_sentence(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    def give_up(*_: object, **__: object) -> None:
        raise PanicException("retry-limit-in-match over")

    monkeypatch.setattr(tokenizer, "_plain", SimpleNamespace(encode_batch_fast=give_up))
    with pytest.raises(TextError, match="gave up on a text: retry-limit"):
        tokenizer.encode("x")


def test_encoding_takes_time_in_proportion_to_the_length(tokenizer: Tokenizer) -> None:
    def seconds(size: int) -> float:
        began = time.process_time()
        tokenizer.encode("abracadabra" * (size // 11))
        return time.process_time() - began

    seconds(1000)
    short = min(seconds(100_000) for _ in range(3))
    assert seconds(1_600_000) < 16 * 5 * short


def test_half_a_character_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TextError, match=r"character 2 of the text: \\ud83d is half"):
        tokenizer.encode("a\ud83d")


# --- files ------------------------------------------------------------------------------------------------------------


def test_saving_and_loading_changes_nothing(tokenizer: Tokenizer, saved: Path, tmp_path: Path) -> None:
    loaded = Tokenizer.load(saved)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.size, loaded.bos_id, loaded.eos_ids, loaded.pad_id) == (700, 0, (1,), 2)
    assert loaded.adds_bos
    assert loaded.encode("class Hidalgo:\n    pass") == tokenizer.encode("class Hidalgo:\n    pass")
    loaded.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()
    config = json.loads((saved / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_max_length"] == 512
    assert config["add_bos_token"] is True


def test_the_fingerprint_follows_the_ids_and_not_the_layout(tokenizer: Tokenizer, saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "tokenizer_config.json").read_text(encoding="utf-8"))
    same = changed(saved, tmp_path, lambda definition: definition.update(truncation=None), **config)
    assert same.fingerprint == tokenizer.fingerprint
    other = changed(saved, tmp_path, lambda definition: definition["model"]["merges"].pop(), **config)
    assert other.fingerprint != tokenizer.fingerprint
    assert changed(saved, tmp_path, bos_token="<think>", eos_token="</think>").fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[]", "an object with `model`"),
        ('{"model": {"type": "Wrong"}}', "library cannot read"),
        (f"{BPE}, {WORDPIECE}}}", "decoder has a step 'WordPiece'"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_said(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(TextError, match=sentence) as raised:
        Tokenizer.load(tmp_path)
    assert str(tmp_path / "tokenizer.json") in raised.value.message


def test_an_absent_tokenizer_is_said(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(TextError, match=r"there is no .*tokenizer\.json") as raised:
        Tokenizer.load(tmp_path)
    assert "converting tokenizer.model" in str(raised.value)


def test_a_folder_that_cannot_be_written_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        tokenizer.save(tmp_path / "file")


def test_a_published_file_that_cuts_texts_is_read_without_cutting(saved: Path, tmp_path: Path) -> None:
    def cutting(definition: dict[str, Any]) -> None:
        definition["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}

    assert len(changed(saved, tmp_path, cutting).encode("una frase más larga que cuatro")) > 4


def test_tokens_marked_as_not_special_are_guarded_all_the_same(saved: Path, tmp_path: Path) -> None:
    """The published V3 files mark `<｜User｜>` so; the library alone would match it in any text."""

    def unmark(definition: dict[str, Any]) -> None:
        for token in definition["added_tokens"]:
            token["special"] = False

    tokenizer = changed(saved, tmp_path, unmark)
    assert all(token >= len(SPECIAL_TOKENS) for token in tokenizer.encode("<｜User｜></think>"))
    assert tokenizer.encode("<｜User｜>", special=True) == [3]
    assert tokenizer.special_id("<｜User｜>") == 3


def test_added_words_and_spaces_stay_text(saved: Path, tmp_path: Path) -> None:
    def add(definition: dict[str, Any]) -> None:
        for token, text in ((700, "hidalgo"), (701, "      ")):
            fields = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
            definition["added_tokens"].append({"id": token, "content": text, **fields})

    tokenizer = changed(saved, tmp_path, add)
    assert tokenizer.encode("hidalgo      ") == [700, 701]
    assert tokenizer.decode([700, 701]) == "hidalgo      "
    assert tokenizer.special_id("hidalgo") is None
    assert tokenizer.size == 702


def test_a_model_that_makes_special_tokens_by_itself_is_refused(tmp_path: Path) -> None:
    """A Unigram model matches `</s>` as a piece like any other, whatever the library is told about special tokens."""
    special = {"special": True, **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)}
    definition = {
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["</s>", 0.0], ["a", -1.0], ["▁", -1.0]]},
        "added_tokens": [{"id": 0, "content": "<unk>", **special}, {"id": 1, "content": "</s>", **special}],
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}', encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("aza") == [2, 0, 2]
    with pytest.raises(TextError, match="makes special tokens of ordinary text"):
        tokenizer.encode("a</s>")


# --- the library ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_after_encoding_is_silent_and_the_child_can_encode(saved: Path) -> None:
    code = (
        "import os, sys\n"
        "from cueva.text import Tokenizer\n"
        f"tokenizer = Tokenizer.load({str(saved)!r})\n"
        "before = tokenizer.encode_batch(['uno dos tres'] * 50)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if tokenizer.encode_batch(['uno dos tres'] * 50) == before else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert 'TOKENIZERS_PARALLELISM' not in os.environ\n"
        "os.environ['TOKENIZERS_PARALLELISM'] = 'true'\n"
        "if os.fork() == 0: os._exit(0)\n"
        "assert os.environ['TOKENIZERS_PARALLELISM'] == 'true'\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- against transformers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peer(saved: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(saved)


@pytest.mark.oracle
@settings(max_examples=50)
@given(text=st.one_of(texts(), code()))
def test_transformers_gives_the_same_ids(tokenizer: Tokenizer, peer: Any, text: str) -> None:
    assert peer(text, add_special_tokens=False).input_ids == tokenizer.encode(text, special=True)
    assert peer(text).input_ids == tokenizer.encode(text, bos=True, special=True)


@pytest.mark.oracle
@given(ids=st.lists(st.integers(0, 699), max_size=12), special=st.booleans())
def test_transformers_gives_the_same_text(tokenizer: Tokenizer, peer: Any, ids: list[int], special: bool) -> None:
    assert peer.decode(ids, skip_special_tokens=not special) == tokenizer.decode(ids, special=special)


@pytest.mark.oracle
def test_transformers_sees_the_same_settings(tokenizer: Tokenizer, library: list[Document], peer: Any) -> None:
    assert (peer.bos_token_id, peer.eos_token_id, peer.pad_token_id) == (0, 1, 2)
    assert len(peer) == len(tokenizer) == 700
    assert peer.model_max_length == 512
    assert peer.chat_template == tokenizer.chat_template
    for one in library:
        assert peer(one.text).input_ids == tokenizer.encode(one.text, bos=True)
