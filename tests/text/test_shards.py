"""Token shards on disk: read back, refused when damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cueva.errors import TextError
from cueva.text import Document, Tokenizer, TokenShards, prepare, tokenize
from tests.text.test_tokenizer import changed

DOCUMENTS = [Document(f"documento {number}: " + "niño " * number, f"d/{number}") for number in range(40)]


@pytest.fixture(scope="module")
def prepared(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "tokens"
    prepare(DOCUMENTS, tokenizer, folder, held_out_share=0.2)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(prepared, tmp_path / "tokens"))


def test_shards_give_back_the_documents(tokenizer: Tokenizer, prepared: Path) -> None:
    found = {}
    for split in ("train", "held_out"):
        shards = TokenShards.open(prepared, split)
        assert shards.tokens.dtype == np.uint16
        assert isinstance(shards.tokens, np.memmap)
        assert (shards.starts[0], shards.starts[-1]) == (0, len(shards.tokens))
        assert len(shards) == len(shards.sources) == len(shards.starts) - 1
        assert shards.bytes == sum(shards.document_bytes)
        assert shards.tokenizer == tokenizer.fingerprint
        for index, source in enumerate(shards.sources):
            ids = shards.document(index).tolist()
            assert (ids[0], ids[-1]) == (0, 1)
            found[source] = tokenizer.decode(ids)
            assert shards.document_bytes[index] == len(found[source].encode())
    assert found == {one.source: one.text for one in DOCUMENTS}
    assert TokenShards.open(prepared).fingerprint == TokenShards.open(prepared, "held_out").fingerprint


@pytest.mark.parametrize("name", ["train.bin", "train.index", "train.sources"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "altered", "missing"])
def test_a_damaged_file_is_refused_by_name(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    data = path.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(data[:-1])
        case "longer":
            path.write_bytes(data + b"\0")
        case "altered":
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        case "missing":
            path.unlink()
    said = {"truncated": "cut short", "longer": "longer than it was", "altered": "was altered", "missing": "is missing"}
    with pytest.raises(TextError, match=said[damage]) as raised:
        TokenShards.open(folder)
    assert str(path) in raised.value.message
    assert len(TokenShards.open(folder, "held_out")) > 0, "the other split is whole"
    if damage == "altered":
        assert TokenShards.open(folder, verify=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dtype": "uint32"}, "manifest.json was altered"),
        ({"version": 2}, "says format 'cueva token shards', version 2"),
        ({"files": {}}, "manifest.json was altered"),
        ({"tokenizer": None}, "manifest.json was altered"),
    ],
)
def test_an_altered_manifest_is_refused(folder: Path, change: dict[str, object], sentence: str) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(TextError, match=sentence):
        TokenShards.open(folder)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 1'])
def test_a_damaged_manifest_is_refused(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(TextError, match=r"manifest\.json is damaged"):
        TokenShards.open(folder)


def test_a_folder_that_is_no_prepared_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"is not prepared text: there is no manifest.json in it"):
        TokenShards.open(tmp_path)


def test_an_unknown_split_is_said(prepared: Path) -> None:
    with pytest.raises(TextError, match="no split 'test'; the splits are: train, held_out"):
        TokenShards.open(prepared, "test")  # type: ignore[arg-type]


def test_a_large_vocabulary_takes_four_bytes_a_token(saved: Path, tmp_path: Path) -> None:
    def widen(definition: dict[str, dict[str, dict[str, int]]]) -> None:
        vocab = definition["model"]["vocab"]
        vocab.update({f"unused {number}": number for number in range(len(vocab), 70_000)})

    wide = changed(saved, tmp_path, widen, bos_token="<｜begin▁of▁sentence｜>", eos_token="<｜end▁of▁sentence｜>")
    prepare(DOCUMENTS, wide, tmp_path / "tokens", held_out_share=0)
    shards = TokenShards.open(tmp_path / "tokens")
    assert shards.tokens.dtype == np.uint32
    assert wide.decode(shards.document(3).tolist()) == DOCUMENTS[3].text


def test_shards_in_memory_are_those_on_disk(tokenizer: Tokenizer, tmp_path: Path) -> None:
    prepare(DOCUMENTS, tokenizer, tmp_path / "tokens", held_out_share=0)
    disk, memory = TokenShards.open(tmp_path / "tokens"), tokenize(iter(DOCUMENTS), tokenizer)
    for name in ("tokens", "starts", "document_bytes"):
        assert np.array_equal(getattr(disk, name), getattr(memory, name))
    assert list(disk.sources) == list(memory.sources)
    assert memory.fingerprint != tokenize(DOCUMENTS[1:], tokenizer).fingerprint


def test_texts_that_cannot_be_tokens_are_said(tokenizer: Tokenizer, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(TextError, match="there are no documents"):
        tokenize([], tokenizer)
    with pytest.raises(TextError, match=r"d/bad: character 1 of the text: \\ud800 is half"):
        tokenize([*DOCUMENTS, Document("\ud800", "d/bad")], tokenizer)
    with pytest.raises(TextError, match="has no end token"):
        tokenize(DOCUMENTS, changed(saved, tmp_path, bos_token="<｜begin▁of▁sentence｜>"))
