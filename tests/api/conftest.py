"""Short names for the fixtures that the commands' tests share."""

from pathlib import Path

import pytest

from cueva.text import Tokenizer
from cueva.train import RunResult


@pytest.fixture
def tokenizer(small_tokenizer: Tokenizer) -> Tokenizer:
    return small_tokenizer


@pytest.fixture
def model(small_model: Path) -> Path:
    return small_model


@pytest.fixture
def texts(small_texts: Path) -> Path:
    return small_texts


@pytest.fixture
def trained(small_run: RunResult) -> RunResult:
    return small_run
