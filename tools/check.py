"""Format, lint, types, native kernels and tests in one command: `python -m tools.check`.

It is the same by hand and in CI. Each step runs even when one before it failed, so one call shows everything; the last
lines say what failed. `--fix` repairs what the formatter and the linter can repair by themselves first. What follows
`--` goes to pytest: `python -m tools.check -- tests/text -x`.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PYTHON_FOLDERS = ("cueva", "tests", "tools", "benchmarks", "examples")


class Step(NamedTuple):
    """One thing that must succeed; a loud one shows its output as it comes, a quiet one only when it fails."""

    name: str
    command: list[str]
    loud: bool = False


class Outcome(NamedTuple):
    """What a step left behind."""

    name: str
    status: int
    seconds: float


def steps(options: argparse.Namespace) -> list[Step]:
    """List what to run, in order."""
    python = sys.executable
    folders = [folder for folder in PYTHON_FOLDERS if any((ROOT / folder).rglob("*.py"))]
    found = []
    if options.fix:
        found.append(Step("fix format", [python, "-m", "ruff", "format", *folders]))
        found.append(Step("fix lint", [python, "-m", "ruff", "check", "--fix", *folders]))
    found.append(Step("format", [python, "-m", "ruff", "format", "--check", *folders]))
    found.append(Step("lint", [python, "-m", "ruff", "check", *folders]))
    found.append(Step("types", [python, "-m", "basedpyright", "--pythonpath", python, "--level", "error"]))
    if not options.no_tests:
        # The tests run on the checkout, so its native kernels have to be those of its sources.
        found.append(Step("build", [python, "-m", "tools.build", "--if-possible"]))
        tests = [python, "-m", "pytest", "-q", "-n", str(options.workers), "--dist", "worksteal"]
        if options.junit:
            tests.append(f"--junitxml={options.junit}")
        if options.ledger:
            tests.append(f"--ledger={options.ledger}")
        found.append(Step("tests", [*tests, *options.pytest], loud=True))
    return found


def run(step: Step, environment: dict[str, str]) -> Outcome:
    """Run one step and say how it went on one line."""
    print(f"{step.name} ...", flush=True)
    began = time.monotonic()
    done = subprocess.run(step.command, cwd=ROOT, env=environment, capture_output=not step.loud, text=True)
    seconds = time.monotonic() - began
    if done.returncode and not step.loud:
        print((done.stdout + done.stderr).rstrip())
    print(f"{step.name}: {'ok' if done.returncode == 0 else 'FAILED'}, {seconds:.1f} s", flush=True)
    return Outcome(step.name, done.returncode, seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every step; returns 0 when all succeeded and 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.check", description="Format, lint, types, native kernels and tests in one command."
    )
    parser.add_argument(
        "--fix", action="store_true", help="let the formatter and the linter repair what they can first"
    )
    parser.add_argument("--no-tests", action="store_true", help="only format, lint and types: a few seconds")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="test processes (default 2)")
    parser.add_argument("--junit", metavar="FILE", help="write the test results to FILE as JUnit XML")
    parser.add_argument("--ledger", metavar="FILE", help="write the slowest tests to FILE as Markdown")
    parser.add_argument("pytest", nargs="*", metavar="-- PYTEST ARGUMENTS", help="handed on to pytest")
    options = parser.parse_args(arguments)

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    outcomes = [run(step, environment) for step in steps(options)]
    failed = [outcome.name for outcome in outcomes if outcome.status]
    print(f"\n{'what':<12}{'result':<10}seconds")
    for outcome in outcomes:
        print(f"{outcome.name:<12}{'FAILED' if outcome.status else 'ok':<10}{outcome.seconds:7.1f}")
    if failed:
        print(f"\nnot ready: {', '.join(failed)} failed")
    else:
        print("\nready: everything passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
