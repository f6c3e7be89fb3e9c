"""Fixtures of several folders: a few texts, a tokenizer, a random model and a finished run, each as small as can be.

What is imported here comes with the fixtures, so that tests of the text need no torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cueva.text import Tokenizer
    from cueva.train import RunResult, TrainConfig

WORDS = "the cave keeps what the river forgets and the river sings what the cave has kept for it "


@pytest.fixture(scope="session")
def small_tokenizer() -> "Tokenizer":
    from cueva.text import Tokenizer

    return Tokenizer.train([WORDS * 20], vocab_size=300)


@pytest.fixture(scope="session")
def small_model(small_tokenizer: "Tokenizer", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights that make up their mind."""
    from cueva.checkpoint import save_model
    from cueva.config import model_config
    from tests.builders import tiny_model

    folder = tmp_path_factory.mktemp("models") / "random"
    shape = model_config(
        "tiny",
        vocab_size=small_tokenizer.size,
        max_position_embeddings=128,
        bos_token_id=small_tokenizer.bos_id,
        eos_token_id=small_tokenizer.eos_id,
    )
    save_model(tiny_model(shape), folder, tokenizer=small_tokenizer)
    return folder


@pytest.fixture(scope="session")
def small_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few documents."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(12):
        (folder / f"{number}.txt").write_text((WORDS + f"number {number} ") * (3 + number), encoding="utf-8")
    return folder


def run_config(texts: Path, folder: Path, name: str = "small", **run: Any) -> "TrainConfig":
    """The settings of a run that takes a second."""
    from cueva.train import TrainConfig

    length = {"steps": 4, "eval_every": 2, "load_every": 1, "sample_every": 4}
    return TrainConfig(
        model={"preset": "tiny", "max_position_embeddings": 128},
        data={"sources": [str(texts)], "vocab_size": 300, "sequence_length": 32, "held_out_share": 0.2},
        batch={"rows": 4},
        run={"folder": str(folder), "name": name, **length, **run},
    )


@pytest.fixture(scope="session")
def small_run(small_texts: Path, tmp_path_factory: pytest.TempPathFactory) -> "RunResult":
    """A finished run of a few steps."""
    from cueva import api

    return api.train(run_config(small_texts, tmp_path_factory.mktemp("runs")))
