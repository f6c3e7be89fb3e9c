"""Preparing a folder of texts, for tests."""

from pathlib import Path
from typing import Any

from cueva.text import Corpus, Prepared, Tokenizer, prepare


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run(texts: Path, tokenizer: Tokenizer, folder: Path, **options: Any) -> Prepared:
    options = {"held_out_share": 0.1, **options}
    return prepare(Corpus([str(texts)]), tokenizer, folder, **options)
