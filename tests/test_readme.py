"""The README is true: its commands exist, and a newcomer who follows it in an empty folder gets what it promises."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import cueva.cli
from tools.readme import opening_commands

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SPANISH = (ROOT / "README.es.md").read_text(encoding="utf-8")


def shell_lines(text: str) -> list[str]:
    """Indented lines that run the command line of the environment the README makes."""
    return [line.strip() for line in text.splitlines() if line.startswith("    .venv/bin/cueva ")]


def test_it_opens_with_two_commands_that_need_nothing_but_python() -> None:
    first, second = opening_commands(README)
    assert first == "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/cueva quickstart"
    assert second == "python3 -m venv .venv && .venv/bin/pip install '.[dev]' && .venv/bin/python -m tools.check"
    assert opening_commands(SPANISH) == [first, second]
    assert (ROOT / "tools" / "check.py").is_file()


@pytest.mark.parametrize("line", sorted({*shell_lines(README), *shell_lines(SPANISH)}))
def test_every_command_shown_exists_with_its_flags(line: str) -> None:
    words = shlex.split(line)[1:]
    group = typer.main.get_command(cueva.cli.app)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    for word in words:
        if word.startswith("examples/"):
            assert (ROOT / word).is_file()


def test_the_opening_commands_are_also_in_contributing() -> None:
    assert opening_commands(README)[1] in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder in which the quickstart was run as the README says, shortened."""
    folder = tmp_path_factory.mktemp("newcomer")
    done = run(["-m", "cueva", "quickstart", "--steps", "3", "--preset", "tiny"], folder)
    assert done.returncode == 0, done.stderr
    assert "It writes, after 'def ':" in done.stdout
    assert "bits per byte" in done.stdout
    assert "tokens/s without drafting" in done.stdout
    assert "What to try next" in done.stderr
    assert "DIFFERS" not in done.stdout
    return folder


def test_the_quickstart_leaves_what_the_readme_says(newcomer: Path) -> None:
    made = newcomer / "runs" / "quickstart"
    assert (made / "report.html").stat().st_size > 10_000
    assert (made / "model" / "config.json").is_file()
    assert sorted(path.name for path in newcomer.iterdir()) == ["runs"]


def test_a_second_quickstart_shows_the_results_again(newcomer: Path) -> None:
    again = run(["-m", "cueva", "quickstart", "--steps", "3", "--preset", "tiny"], newcomer)
    assert again.returncode == 0, again.stderr
    assert "was finished before" in again.stderr
    assert "bits per byte" in again.stdout


def test_what_the_readme_says_to_try_next_works(newcomer: Path) -> None:
    shown = shell_lines(README)
    model = "runs/quickstart/model"
    assert any(f"generate --model {model}" in line for line in shown)
    wrote = run(["-m", "cueva", "generate", "--model", model, "--prompt", "def ", "--max-new-tokens", "5"], newcomer)
    assert wrote.returncode == 0, wrote.stderr
    looked = run(["-m", "cueva", "inspect", model], newcomer)
    assert looked.returncode == 0, looked.stderr


def test_the_python_example_of_the_readme_runs(newcomer: Path) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.S)
    assert code is not None
    done = run(["-c", code.group(1)], newcomer)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_examples_run(newcomer: Path) -> None:
    done = run([str(ROOT / "examples" / "write.py")], newcomer)
    assert done.returncode == 0, done.stderr
    assert "weights in memory" in done.stdout


def test_the_example_configuration_is_one() -> None:
    from cueva.train import read_train_config

    config = read_train_config(ROOT / "examples" / "your_text.toml")
    assert config.run.name == "your_text"
    assert all((ROOT / source).exists() for source in config.data.sources)
