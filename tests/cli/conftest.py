"""The command line as a person meets it: words in; exit status, stdout and stderr out. And small models for it."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from cueva.cli import main
from cueva.train import RunResult

ROOT = Path(__file__).resolve().parent.parent.parent


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


def process(words: Sequence[str | Path], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, as from a shell in the folder `cwd`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-m", "cueva", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True, timeout=240, check=False)


@pytest.fixture(scope="session")
def model(small_model: Path) -> Path:
    return small_model


@pytest.fixture(scope="session")
def texts(small_texts: Path) -> Path:
    return small_texts


@pytest.fixture(scope="session")
def trained(small_run: RunResult) -> RunResult:
    return small_run
