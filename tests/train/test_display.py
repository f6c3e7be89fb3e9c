"""What a run shows: lines with units where there is no terminal, one panel where there is one."""

import io
import re
from typing import Any

import pytest

from cueva.train.display import (
    Clock,
    Header,
    Lines,
    Panel,
    Silence,
    bar,
    duration,
    note_words,
    open_display,
    sample_lines,
)

HEADER = Header(name="runs/test", steps=2000, minutes=None, log_every=10, gates=["layer 1", "mtp 1"], depths=1)
STEP: dict[str, Any] = {
    "kind": "step",
    "step": 120,
    "tokens": 245_760,
    "seconds": 13.4,
    "loss": 3.2141,
    "bits_per_byte": 1.82,
    "mtp_loss": [3.9],
    "mtp_match": [0.31],
    "sequence_loss": 2.1,
    "lr": 1e-3,
    "grad_norm": 0.871,
    "tokens_per_second": 18_400.4,
    "peak_share": 0.43,
    "bias_speed": 0.001,
    "mtp_weight": 0.3,
    "max_vio": [0.08, 0.02],
    "skipped": False,
}
EVAL = {
    "kind": "eval",
    "step": 100,
    "seconds": 1,
    "bits_per_byte": 2.25,
    "loss": 4.0,
    "mtp_loss": [4.5],
    "acceptance": [0.55],
}
SAMPLE = {"kind": "sample", "step": 100, "prompt": "def ", "text": "main():\n\treturn [bold]1[/bold]\x1b[31m"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_progress_line_carries_its_units() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.begin(HEADER)
    lines.saved(100)
    lines.step(STEP, 0.06)
    assert stream.getvalue().splitlines() == [
        "training in runs/test",
        "step 120/2000  loss 3.214 nats/token  1.820 bits/byte  mtp match 31%  grad norm 0.87  18,400 tokens/s  "
        "43% of peak  busiest expert 1.08x mean  saved 100",
    ]


def test_a_line_comes_every_so_many_steps_and_at_the_end() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.begin(Header(name="r", steps=25, minutes=None, log_every=10, gates=[], depths=0))
    for step in range(1, 26):
        lines.step({**STEP, "step": step, "max_vio": [], "mtp_match": [], "mtp_loss": []}, step / 25)
    shown = re.findall(r"step (\d+)/25", stream.getvalue())
    assert shown == ["10", "20", "25"]
    assert "busiest" not in stream.getvalue()
    assert "left" in stream.getvalue()


def test_evaluations_samples_and_events_are_shown_as_they_come() -> None:
    assert note_words(EVAL) == "held out after step 100:  2.250 bits/byte  loss 4.000 nats/token  acceptance 55%"
    assert note_words({"kind": "event", "step": 3, "text": "step skipped"}) == "step 3: step skipped"
    assert note_words(SAMPLE).splitlines() == [
        "it writes after step 100:",
        "  | def main():",
        "  |  return [bold]1[/bold]·[31m",
    ]


def test_a_sample_cannot_move_the_cursor() -> None:
    assert sample_lines("a\x1b[2Jb\r\x07\tc\nd", lines=1) == ["a·[2Jb·· c"]


def test_the_panel_shows_every_figure_and_takes_no_markup_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("LINES", "60")
    stream = Terminal()
    display = open_display(stream)
    assert isinstance(display, Panel)
    display.begin(HEADER)
    display.step(STEP, 0.06)
    display.note(EVAL)
    display.note(SAMPLE)
    display.note({"kind": "event", "step": 100, "text": "going on from step 100"})
    display.saved(100)
    display.end()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    for words in (
        "runs/test  step 120/2000  6%",
        "3.214 nats/token",
        "1.820 bits/byte",
        "2.250 bits/byte",
        "18,400 tokens/s",
        "43%",
        "0.87",
        "layer 1",
        "1.08x",
        "mtp 1",
        "depth 1  loss 3.900  match 31%  held-out acceptance 55%",
        "[bold]1[/bold]·[31m",
        "going on from step 100",
        "step 100",
    ):
        assert words in shown, words


def test_a_panel_of_a_dense_model_and_of_one_with_many_gates_can_be_drawn() -> None:
    for gates in ([], [f"layer {n}" for n in range(1, 59)]):
        display = Panel(Terminal())
        display.begin(Header(name="r", steps=None, minutes=5, log_every=10, gates=gates, depths=0))
        dense = {**STEP, "max_vio": [n / 10 for n in range(len(gates))], "mtp_loss": [], "mtp_match": []}
        display.step({**dense, "loss": float("nan"), "bits_per_byte": None, "peak_share": None}, 0.5)
        display.end()


def test_where_there_is_no_terminal_there_are_lines_and_quiet_means_nothing() -> None:
    assert isinstance(open_display(io.StringIO()), Lines)
    assert isinstance(open_display(Terminal(), quiet=True), Silence)


def test_time_left_is_what_the_rest_takes_at_the_pace_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("cueva.train.display.time.monotonic", lambda: now[0])
    clock = Clock()
    assert clock.left(0.5) == ""  # resumed half-way: nothing is known yet
    now[0] += 60
    assert clock.left(0.6) == "4 min left"
    assert clock.left(1.0) == "0 s left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5000, "83 min"), (7500, "2 h 05 min"), (259_200, "3 days")],
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_bars_are_empty_at_balance_and_full_at_twice_above_the_mean() -> None:
    assert bar(0.0).strip() == ""
    assert bar(1.0).rstrip() == "█" * 6
    assert bar(2.0) == bar(9.0) == "█" * 12
    assert len({len(bar(n / 7)) for n in range(20)}) == 1
