"""What a run wrote down about itself, `metrics.jsonl` and the shape of its model, read so that nothing breaks a report.

A run that is still going leaves a torn last line; a run that was killed and resumed repeats some steps; a run without
experts or without MTP modules lacks whole keys. All of that is ordinary here: what cannot be used is left out and
counted.
"""

import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cueva.config import ModelConfig
from cueva.errors import CuevaError, RunError

Record = Mapping[str, Any]
Floats = NDArray[np.float64]


@dataclass
class RunRecords:
    """The lines of one `metrics.jsonl`, by kind and in order of steps."""

    steps: list[Record] = field(default_factory=list)
    evals: list[Record] = field(default_factory=list)
    loads: list[Record] = field(default_factory=list)
    samples: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    unusable: int = 0
    """Lines that are no JSON object, or have no whole-number `step`, or a kind that nobody knows. A torn last line is
    not counted: it is a run being written.
    """
    repeated: int = 0
    """Steps that a resumed run did again; the later record counts."""

    @property
    def kinds(self) -> dict[str, list[Record]]:
        """The lists by the word that `kind` has in the file."""
        return {
            "step": self.steps,
            "eval": self.evals,
            "load": self.loads,
            "sample": self.samples,
            "event": self.events,
        }


def read_records(run: Path) -> RunRecords:
    """Read `run/metrics.jsonl`.

    Args:
        run: a run directory. A file that is absent counts as a run that has not logged yet.

    Returns:
        The usable records. When a step comes again (a run was killed and resumed from an earlier state), everything at
        or after that step is forgotten first, so that each step appears once, as it was last done; events are kept.

    Raises:
        RunError: there is no such directory, or the file cannot be read.
    """
    if not run.is_dir():
        raise RunError(
            f"there is no run directory at {run}", way_out="try the folder that `cueva train` named, runs/NAME"
        )
    records = RunRecords()
    path = run / "metrics.jsonl"
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            _sort_in(records, lines)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    return records


def _sort_in(records: RunRecords, lines: Iterable[str]) -> None:
    kinds = records.kinds
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            records.unusable += line.endswith("\n")  # without its newline it is still being written
            continue
        if not isinstance(record, dict) or record.get("kind") not in kinds or not _is_step(record.get("step")):
            records.unusable += 1
            continue
        if record["kind"] == "step" and records.steps and record["step"] <= records.steps[-1]["step"]:
            _rewind(records, record["step"])
        kinds[record["kind"]].append(record)


def _rewind(records: RunRecords, step: int) -> None:
    records.repeated += sum(record["step"] >= step for record in records.steps)
    for kind, kept in records.kinds.items():
        if kind != "event":
            kept[:] = [record for record in kept if record["step"] < step]


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def number(value: object) -> float:
    """Return `value` as a finite float, or NaN for whatever is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def column(records: Sequence[Record], key: str) -> Floats:
    """One number of every record, NaN where it is missing, null or not finite."""
    return _floats([record.get(key) for record in records])


def columns(records: Sequence[Record], key: str) -> Floats:
    """A list in every record, such as one number per depth: (width, records), NaN where there is none.

    The width is that of the longest list, and 0 when no record has one.
    """
    rows = [value if isinstance(value := record.get(key), list) else [] for record in records]
    table = np.full((max(map(len, rows), default=0), len(records)), np.nan)
    for position, row in enumerate(rows):
        table[: len(row), position] = _floats(row)
    return table


def _floats(values: Sequence[object]) -> Floats:
    """What `number` says of each value; fast, because a long run has millions of them."""
    plain = [value if type(value) is float or type(value) is int else math.nan for value in values]
    try:
        found = np.array(plain, dtype=np.float64)
    except OverflowError:
        return np.array([number(value) for value in values], dtype=np.float64)
    found[~np.isfinite(found)] = np.nan
    return found


# --- the settings beside it -------------------------------------------------------------------------------------------


def read_settings(run: Path) -> tuple[str, dict[str, Any]]:
    """Return `config.toml` as its text and as a table; both empty when it is absent or unreadable."""
    try:
        text = (run / "config.toml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", {}
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return text, {}


def read_model_config(run: Path, settings: Mapping[str, Any]) -> ModelConfig | None:
    """The shape of the run's model, or None when nothing says it.

    From `model/config.json`; before the first save, from what `config.toml` asks for. There the vocabulary may still
    change with the tokenizer.
    """
    if (run / "model" / "config.json").is_file():
        from cueva.checkpoint import read_config

        try:
            return read_config(run / "model")
        except (CuevaError, OSError, ValueError):
            pass
    if not settings:
        return None
    from cueva.train import TrainConfig

    try:
        return TrainConfig(**settings).shape()
    except (CuevaError, TypeError, ValueError):
        return None
