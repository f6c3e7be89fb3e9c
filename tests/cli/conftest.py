"""The command line as a person meets it: words in; exit status, stdout and stderr out. And models small enough for it."""

import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from cueva import api
from cueva.checkpoint import save_model
from cueva.cli import main
from cueva.config import model_config
from cueva.text import Tokenizer
from cueva.train import RunResult, TrainConfig
from tests.builders import tiny_model

ROOT = Path(__file__).resolve().parent.parent.parent
WORDS = "the cave keeps what the river forgets and the river sings what the cave has kept for it "


class Ran(NamedTuple):
    """What became of a command."""

    status: int
    out: str
    err: str


Cueva = Callable[..., Ran]


@pytest.fixture
def cueva(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cueva:
    """Run a command in this process; `stdin` is what a pipe would bring."""

    def run(*words: str | Path, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main([str(word) for word in words])
        code = leaving.value.code
        captured = capsys.readouterr()
        return Ran(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


def process(words: Sequence[str | Path], cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, as from a shell in the folder `cwd`."""
    import os

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cueva", *map(str, words)]
    return subprocess.run(  # pyright: ignore[reportCallIssue]
        command, cwd=cwd, env=environment, text=True, capture_output=True, timeout=240, check=False, **options
    )


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS * 20], vocab_size=300)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights that make up their mind."""
    folder = tmp_path_factory.mktemp("models") / "random"
    shape = model_config(
        "tiny",
        vocab_size=tokenizer.size,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    save_model(tiny_model(shape), folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few documents."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(12):
        (folder / f"{number}.txt").write_text((WORDS + f"number {number} ") * (3 + number), encoding="utf-8")
    return folder


def run_config(texts: Path, folder: Path, name: str = "small", **run: object) -> TrainConfig:
    """The settings of a run that takes a second."""
    return TrainConfig(
        model={"preset": "tiny", "max_position_embeddings": 128},
        data={"sources": [str(texts)], "vocab_size": 300, "sequence_length": 32, "held_out_share": 0.2},
        batch={"rows": 4},
        run={"folder": str(folder), "name": name, "steps": 4, "eval_every": 2, "load_every": 1, "sample_every": 4, **run},
    )


@pytest.fixture(scope="session")
def trained(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A finished run of a few steps."""
    return api.train(run_config(texts, tmp_path_factory.mktemp("runs")))
