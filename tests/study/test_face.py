"""What the folder offers, and what asking for it costs."""

import subprocess
import sys
from pathlib import Path

import pytest

from cueva import study

ROOT = Path(__file__).resolve().parents[2]


def test_every_name_on_offer_is_there_and_others_are_refused_by_name() -> None:
    for name in study.__all__:
        assert getattr(study, name).__module__.startswith("cueva.study.")
        assert name in dir(study)
    with pytest.raises(AttributeError, match=r"no attribute 'wirte_report'; it offers .*write_report"):
        _ = study.wirte_report  # pyright: ignore[reportAttributeAccessIssue]


def test_a_report_of_numbers_alone_needs_no_torch(tmp_path: Path) -> None:
    """Torch comes in only with a saved model, whose config the checkpoint folder reads."""
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "loss": 2.0}\n', encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from cueva.study import write_report\n"
        f"write_report(Path({str(tmp_path)!r}))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "False", done.stderr
