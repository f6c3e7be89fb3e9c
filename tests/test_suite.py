"""The suite's own promises: no network, a ledger, and oracles that cannot be skipped unseen."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_socket

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = """
import pytest

@pytest.mark.oracle
def test_runs():
    pass

@pytest.mark.oracle
def test_is_skipped():
    pytest.skip("no peer here")
"""
WHOLE_MODULE = """
import pytest
pytest.importorskip("a_peer_that_is_not_there")

@pytest.mark.oracle
def test_never_seen():
    pass
"""


def suite(folder: Path, *flags: str, required: bool) -> subprocess.CompletedProcess[str]:
    """Run the tests in a folder with this suite's plugin."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUEVA_REQUIRE_ORACLES": "1" if required else "0"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(folder), "-p", "no:cacheprovider", *flags, str(folder)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_network_is_out_of_reach() -> None:
    with pytest.raises(pytest_socket.SocketConnectBlockedError), socket.socket() as reaching:
        reaching.connect(("192.0.2.1", 80))


def test_this_machine_is_in_reach() -> None:
    with socket.socket() as listening, socket.socket() as reaching:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        reaching.connect(listening.getsockname())


@pytest.mark.parametrize("flags", [(), ("-n", "1")], ids=["one process", "a worker"])
def test_a_skipped_oracle_fails_the_run_where_oracles_are_required(tmp_path: Path, flags: tuple[str, ...]) -> None:
    (tmp_path / "test_one.py").write_text(SKIPPED)
    (tmp_path / "test_other.py").write_text(WHOLE_MODULE)
    lenient = suite(tmp_path, *flags, required=False)
    assert lenient.returncode == 0, lenient.stdout
    strict = suite(tmp_path, *flags, required=True)
    assert strict.returncode == 1, strict.stdout
    assert "test_one.py::test_is_skipped: no peer here" in strict.stdout
    assert "test_other.py: could not import 'a_peer_that_is_not_there'" in strict.stdout
    assert "the run fails, because 2 were skipped" in strict.stdout


def test_a_run_without_oracles_fails_where_they_are_required(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_nothing(): pass\n")
    assert suite(tmp_path, required=True).returncode == 1
    (tmp_path / "test_one.py").write_text(SKIPPED.replace('pytest.skip("no peer here")', "pass"))
    fine = suite(tmp_path, required=True)
    assert fine.returncode == 0, fine.stdout
    assert "all 2 oracles ran" in fine.stdout


def test_the_ledger_is_written_and_what_people_added_is_kept(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_first(): pass\ndef test_second(): pass\n")
    ledger = tmp_path / "ledger.md"
    ledger.write_text("# Test ledger\n\nold\n\n## Long tests\n\n3 passed\n")
    done = suite(tmp_path, f"--ledger={ledger}", required=False)
    text = ledger.read_text()
    assert "slowest 2 of 2 tests" in done.stdout
    assert "| `test_one.py::test_first` |" in text
    assert "old" not in text
    assert text.endswith("\n## Long tests\n\n3 passed\n")


def test_the_check_fails_when_a_step_fails(capsys: pytest.CaptureFixture[str]) -> None:
    from tools import check

    good = check.run(check.Step("good", [sys.executable, "-c", "print('quiet')"]), dict(os.environ))
    bad = check.run(check.Step("bad", [sys.executable, "-c", "print('why'); raise SystemExit(3)"]), dict(os.environ))
    assert (good.status, bad.status) == (0, 3)
    shown = capsys.readouterr().out
    assert "quiet" not in shown
    assert "why" in shown
    assert "bad: FAILED" in shown
