"""What a run shows while it goes: one live panel on a terminal, plain lines anywhere else. Talk goes to stderr.

Both show the records of `metrics.jsonl` and nothing else. The panel's figures:

    loss              nats per token of the last step, main head; bits per byte of its text beside it
    held out          bits per byte of the last evaluation
    tokens/s          positions of a step / its seconds
    share of peak     tokens/s * training FLOPs per token (formula in `flops.py`) / measured speed of a matrix product
    busiest expert    per gate: its load / the mean load, that is MaxVio + 1; the bar is full at 3
    match             how often a depth's likeliest token is the target, in training
    acceptance        how often it is the main head's own choice, held out
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final, Protocol

Record = Mapping[str, Any]

BAR_FULL: Final = 2.0
"""MaxVio at which a bar is full."""
BAR_CELLS: Final = 12
SAMPLE_LINES: Final = 8
GATES_SHOWN: Final = 16
"""More gates than this are shown as the busiest ones only."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is known before the first step."""

    name: str
    steps: int | None
    minutes: float | None
    log_every: int
    gates: Sequence[str]
    depths: int


class Display(Protocol):
    """What the loop tells about itself. `record`s are those of `metrics.jsonl`."""

    def begin(self, header: Header) -> None:
        """The run is about to begin, or to go on."""
        ...

    def step(self, record: Record, progress: float) -> None:
        """A step is done, and this share of the run with it."""
        ...

    def note(self, record: Record) -> None:
        """An evaluation, a sample or an event."""
        ...

    def saved(self, step: int) -> None:
        """The state after this step is on the disk."""
        ...

    def end(self) -> None:
        """Nothing more comes."""
        ...


def open_display(stream: IO[str] | None = None, *, quiet: bool = False) -> Display:
    """Choose: nothing when quiet, a panel when `stream` (None: stderr) is a terminal, lines otherwise."""
    if quiet:
        return Silence()
    out: IO[str] = stream or sys.stderr
    return Panel(out) if out.isatty() else Lines(out)


class Silence:
    """Shows nothing."""

    def begin(self, header: Header) -> None:
        """Nothing."""

    def step(self, record: Record, progress: float) -> None:
        """Nothing."""

    def note(self, record: Record) -> None:
        """Nothing."""

    def saved(self, step: int) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Clock:
    """Estimates the time left from how the share done has grown since this process began."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first: float | None = None

    def left(self, progress: float) -> str:
        """`4 min left`, or an empty string while nothing can be said."""
        if self._first is None:
            self._first, self._began = progress, time.monotonic()
            return ""
        if progress <= self._first:
            return ""
        return f"{duration((time.monotonic() - self._began) / (progress - self._first) * (1 - progress))} left"


class Lines:
    """One line per `run.log_every` steps, and one for whatever else happens."""

    def __init__(self, stream: IO[str]):
        self._stream = stream
        self._header: Header | None = None
        self._clock = Clock()
        self._saved: int | None = None
        self._finished = False

    def begin(self, header: Header) -> None:
        """Remember the header and say where the run is."""
        self._header = header
        self._print(f"training in {header.name}")

    def step(self, record: Record, progress: float) -> None:
        """Print every `log_every`-th step, and the last."""
        assert self._header is not None
        left = self._clock.left(progress)
        last = record["step"] == self._header.steps
        if record["step"] % self._header.log_every and not last:
            return
        self._print("  ".join(step_words(record, self._header, left, self._saved)))

    def note(self, record: Record) -> None:
        """Print it."""
        self._print(note_words(record))

    def saved(self, step: int) -> None:
        """The next line says so; after the last step there is none, so say it now."""
        self._saved = step
        if self._header is not None and (self._header.steps is None or step == self._header.steps):
            self._print(f"saved step {step}")

    def end(self) -> None:
        """Nothing is left to do."""

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def step_words(record: Record, header: Header, left: str, saved: int | None) -> list[str]:
    """The parts of a progress line, each with its unit."""
    of = f"/{header.steps}" if header.steps is not None else ""
    words = [f"step {record['step']}{of}", f"loss {number(record['loss'])} nats/token"]
    if record["bits_per_byte"] is not None:
        words.append(f"{number(record['bits_per_byte'])} bits/byte")
    if record["mtp_match"]:
        words.append("mtp match " + " ".join(f"{share:.0%}" for share in record["mtp_match"]))
    words.append(f"grad norm {record['grad_norm']:.2f}")
    words.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    if record["peak_share"] is not None:
        words.append(f"{record['peak_share']:.0%} of peak")
    if record["max_vio"]:
        words.append(f"busiest expert {1 + max(record['max_vio']):.2f}x mean")
    if saved is not None:
        words.append(f"saved {saved}")
    if record["skipped"]:
        words.append("skipped")
    return [*words, left] if left else words


def note_words(record: Record) -> str:
    """One line for an evaluation or an event, several for a sample."""
    match record["kind"]:
        case "eval":
            words = [f"held out after step {record['step']}:"]
            if record["bits_per_byte"] is not None:
                words.append(f"{number(record['bits_per_byte'])} bits/byte")
            words.append(f"loss {number(record['loss'])} nats/token")
            if record["acceptance"]:
                words.append("acceptance " + " ".join(f"{share:.0%}" for share in record["acceptance"]))
            return "  ".join(words)
        case "sample":
            lines = [f"it writes after step {record['step']}:"]
            lines += [f"  | {line}" for line in sample_lines(record["prompt"] + record["text"])]
            return "\n".join(lines)
        case _:
            return f"step {record['step']}: {record['text']}"


def sample_lines(text: str, lines: int = SAMPLE_LINES, width: int = 100) -> list[str]:
    """The first lines of a sample, control characters shown as dots."""
    clean = "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "·" for c in text)
    return [line[:width] for line in clean.split("\n")[:lines]]


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """`45 s`, `3 min`, `2 h 05 min`, `3 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{round(seconds / 86_400)} days"


def bar(violation: float, cells: int = BAR_CELLS) -> str:
    """A bar for MaxVio, full at `BAR_FULL`."""
    filled = min(max(violation / BAR_FULL, 0.0), 1.0) * cells
    whole = int(filled)
    part = " ▏▎▍▌▋▊▉"[int((filled - whole) * 8)] if whole < cells else ""
    return ("█" * whole + part).ljust(cells)


@dataclass
class _Seen:
    """The latest of everything."""

    step: Record | None = None
    evaluation: Record | None = None
    sample: Record | None = None
    events: list[str] = field(default_factory=list)
    progress: float = 0.0
    saved: int | None = None


class Panel:
    """One panel that is redrawn in place."""

    def __init__(self, stream: IO[str]):
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream)
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._clock = Clock()
        self._seen = _Seen()
        self._header: Header | None = None
        self._left = ""

    def begin(self, header: Header) -> None:
        """Open the panel."""
        self._header = header
        self._live.start()

    def step(self, record: Record, progress: float) -> None:
        """Show the step."""
        self._seen.step, self._seen.progress = record, progress
        self._left = self._clock.left(progress)
        self._draw()

    def note(self, record: Record) -> None:
        """Show the latest evaluation and sample, and the last few events."""
        match record["kind"]:
            case "eval":
                self._seen.evaluation = record
            case "sample":
                self._seen.sample = record
            case _:
                self._seen.events = [*self._seen.events[-2:], note_words(record)]
        self._draw()

    def saved(self, step: int) -> None:
        """Show which step is on the disk."""
        self._seen.saved = step
        self._draw()

    def end(self) -> None:
        """Leave the last state of the panel on the screen."""
        self._live.stop()

    def _draw(self) -> None:
        if self._header is not None:
            self._live.update(panel(self._header, self._seen, self._left))


def panel(header: Header, seen: _Seen, left: str) -> Any:
    """Put the panel together (a rich renderable)."""
    from rich import box
    from rich.console import Group, RenderableType
    from rich.panel import Panel as Frame
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    step, parts = seen.step, list[RenderableType]()
    track = Table.grid(expand=True)
    track.add_row(ProgressBar(total=1.0, completed=seen.progress))
    parts.append(track)

    # 1. The figures, two columns of name and value.
    if step is not None:
        figures = Table.grid(padding=(0, 2))
        for name, value, other, second in _figures(step, seen):
            figures.add_row(Text(name, "dim"), Text(value, "bold"), Text(other, "dim"), Text(second, "bold"))
        parts.append(figures)

    # 2. How busy the busiest expert of each gate is.
    if step is not None and step["max_vio"]:
        ranked = sorted(zip(header.gates, step["max_vio"], strict=True), key=lambda pair: -pair[1])[:GATES_SHOWN]
        shown = {name for name, _ in ranked}
        loads = Table.grid(padding=(0, 1))
        pairs = [pair for pair in zip(header.gates, step["max_vio"], strict=True) if pair[0] in shown]
        half = (len(pairs) + 1) // 2
        for at in range(half):
            cells: list[Text] = []
            for name, violation in pairs[at::half][:2]:
                colour = "green" if violation < 0.5 else "yellow" if violation < 1 else "red"
                cells += [Text(name, "dim"), Text(bar(violation), colour), Text(f"{1 + violation:.2f}x  ")]
            loads.add_row(*cells)
        parts += [Text("busiest expert of each gate, times the mean", "dim"), loads]

    # 3. The depths.
    if step is not None and header.depths:
        accepted = seen.evaluation["acceptance"] if seen.evaluation is not None else []
        for depth, (loss, match) in enumerate(zip(step["mtp_loss"], step["mtp_match"], strict=True), start=1):
            words = f"depth {depth}  loss {number(loss)}  match {match:.0%}"
            if len(accepted) >= depth:
                words += f"  held-out acceptance {accepted[depth - 1]:.0%}"
            parts.append(Text(words))

    # 4. What it writes, and what happened.
    if seen.sample is not None:
        parts.append(Text(f"it writes after step {seen.sample['step']}:", "dim"))
        parts += [Text(line, "cyan") for line in sample_lines(seen.sample["prompt"] + seen.sample["text"])]
    parts += [Text(text, "yellow") for text in seen.events]

    at = "" if step is None else f" step {step['step']}" + (f"/{header.steps}" if header.steps else "")
    title = "  ".join(word for word in (header.name, at.strip(), f"{seen.progress:.0%}", left) if word)
    return Frame(Group(*parts), title=Text(title), title_align="left", box=box.ROUNDED)


def _figures(step: Record, seen: _Seen) -> list[tuple[str, str, str, str]]:
    held = seen.evaluation["bits_per_byte"] if seen.evaluation is not None else None
    share = step["peak_share"]
    return [
        ("loss", f"{number(step['loss'])} nats/token", "grad norm", f"{step['grad_norm']:.2f}"),
        ("this step", f"{number(step['bits_per_byte'])} bits/byte", "learning rate", f"{step['lr']:.2e}"),
        ("held out", f"{number(held)} bits/byte", "tokens", f"{step['tokens']:,}"),
        (
            "speed",
            f"{step['tokens_per_second']:,.0f} tokens/s",
            "share of peak",
            "-" if share is None else f"{share:.0%}",
        ),
        ("saved", "-" if seen.saved is None else f"step {seen.saved}", "skipped", "yes" if step["skipped"] else "no"),
    ]
