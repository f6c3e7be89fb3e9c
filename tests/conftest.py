"""What every test may rely on: no network, fixed seeds, one thread, and a ledger of what took long.

The file is a pytest plugin in four parts. Environment variables are set before anything imports torch, because thread
counts are read at import.
"""

import os

# One thread per process: the suite runs two processes on two cores, and a sum of floats has one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# A terminal as wide as the machine happens to have would wrap messages differently for every person.
os.environ["COLUMNS"] = "120"

import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import pytest_socket

hypothesis.settings.register_profile("cueva", deadline=None, print_blob=True)
# A red run in CI must be red again when it is repeated.
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "cueva")

pytest_plugins = ["tests.small_runs"]

SEED = 20_241_226
SHOWN = 15
REQUIRE_ORACLES = "CUEVA_REQUIRE_ORACLES"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ledger", metavar="FILE", help="write the durations of the slowest tests to FILE, as Markdown")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Ledger(config), "cueva-ledger")


# --- no network, fixed seeds ------------------------------------------------------------------------------------------


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Sockets reach this machine and nothing else; what tries anyway fails with the address in its message."""
    pytest_socket.socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(SEED)
    np.random.seed(SEED)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(SEED)


# --- the ledger, and oracles that must not be skipped -----------------------------------------------------------------


class Ledger:
    """Adds up what each test took and which oracle was skipped; with several processes, in the one that reports."""

    def __init__(self, config: pytest.Config):
        self.config = config
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.oracles: set[str] = set()
        self.skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if "oracle" in report.keywords:
            self.oracles.add(report.nodeid)
            if report.skipped:
                self.skipped[report.nodeid] = _reason(report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        # A module skipped as a whole never shows its marks, so its text has to say whether it held an oracle.
        if report.skipped:
            path = self.config.rootpath / report.nodeid
            if path.is_file() and "mark.oracle" in path.read_text(encoding="utf-8"):
                self.skipped[report.nodeid] = _reason(report.longrepr)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        output = getattr(self.config, "workeroutput", None)
        if output is not None:  # a worker: it hands on what it alone saw
            output["cueva_skipped_modules"] = {k: v for k, v in self.skipped.items() if "::" not in k}
            return
        if os.environ.get(REQUIRE_ORACLES) == "1" and (self.skipped or not self.oracles) and exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        self.skipped.update(getattr(node, "workeroutput", {}).get("cueva_skipped_modules", {}))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.seconds:
            return
        slowest = sorted(self.seconds.items(), key=lambda item: -item[1])
        total = sum(self.seconds.values())
        terminalreporter.section(f"slowest {min(SHOWN, len(slowest))} of {len(slowest)} tests, {total:.0f} s in all")
        for name, seconds in slowest[:SHOWN]:
            terminalreporter.line(f"{seconds:7.2f} s  {name}")
        if self.config.getoption("--ledger"):
            self._write(Path(self.config.getoption("--ledger")), slowest, total)
        if self.skipped:
            terminalreporter.section("oracles that were skipped")
            for name, reason in sorted(self.skipped.items()):
                terminalreporter.line(f"{name}: {reason}")
        if os.environ.get(REQUIRE_ORACLES) == "1":
            if self.skipped:
                terminalreporter.line(f"{REQUIRE_ORACLES}=1: the run fails, because {len(self.skipped)} were skipped")
            elif not self.oracles:
                terminalreporter.line(f"{REQUIRE_ORACLES}=1: the run fails, because no oracle was among these tests")
            else:
                terminalreporter.line(f"{REQUIRE_ORACLES}=1: all {len(self.oracles)} oracles ran")

    def _write(self, path: Path, slowest: list[tuple[str, float]], total: float) -> None:
        lines = [
            "# Test ledger",
            "",
            f"{len(slowest)} tests, {len(self.oracles)} of them oracles; {total:.0f} s of work, on two processes.",
            "Written by `python -m tools.check --ledger docs/test-ledger.md`; these are the slowest fifty.",
            "",
            "| seconds | test |",
            "|---:|---|",
            *(f"| {seconds:.2f} | `{name.replace('|', chr(92) + '|')}` |" for name, seconds in slowest[:50]),
        ]
        # Sections written by people (the results of the long tests) stay below the table.
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        kept = "\n## " + old.split("\n## ", 1)[1] if "\n## " in old else ""
        path.write_text("\n".join(lines) + "\n" + kept, encoding="utf-8")


def _reason(longrepr: Any) -> str:
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ").splitlines()[0] if text else "no reason given"
