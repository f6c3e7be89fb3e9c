"""A small tokenizer that many tests share, and the texts it was trained on."""

from pathlib import Path

import pytest

from cueva.text import Corpus, Document, Tokenizer

SPANISH = "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, ¿no ha mucho tiempo? vivía un hidalgo.\n"


@pytest.fixture(scope="session")
def library() -> list[Document]:
    """Some files of the standard library: enough code for a vocabulary of a few hundred entries."""
    wanted = ("argparse", "ast", "bisect", "calendar", "csv", "heapq", "textwrap", "topics/for", "topics/class")
    found = [
        one for one in Corpus(["python"]) if one.source.startswith("python/") and any(w in one.source for w in wanted)
    ]
    assert len(found) >= 7
    return found


@pytest.fixture(scope="session")
def tokenizer(library: list[Document]) -> Tokenizer:
    return Tokenizer.train([one.text for one in library] + [SPANISH] * 3, vocab_size=700)


@pytest.fixture(scope="session")
def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder, model_max_length=512)
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02}.txt").write_text(f"texto {number}: " + "ñandú " * (number % 7 * 20), encoding="utf-8")
    return folder
