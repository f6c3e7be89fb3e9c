"""`metrics.jsonl`: what a run wrote down about itself, one JSON object per line, in the order of its steps.

`docs/training.md` has the schema. Numbers that are not finite become null: NaN is no JSON.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cueva.files import disk_errors
from cueva.model import CausalLM
from cueva.train.batches import bits_per_byte
from cueva.train.evaluate import Evaluation
from cueva.train.schedule import Dials
from cueva.train.state import Place
from cueva.train.step import StepReport


class MetricsFile:
    """Appends records. Each reaches the operating system at once, and the disk before a training state is saved.

    Args:
        path: made if it is missing.
        step: everything after this step is cut off: a run resumed there will write it again.
    """

    def __init__(self, path: Path, *, step: int):
        self.path = path
        with disk_errors(path):
            _cut_after(path, step)
            self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        with disk_errors(self.path):
            self._file.write(json.dumps(finite(record), ensure_ascii=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def finite(value: Any) -> Any:
    """The same value with null for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _cut_after(path: Path, step: int) -> None:
    """Keep the lines up to the first that is torn or of a later step."""
    if not path.exists():
        return
    kept = 0
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                fits = line.endswith(b"\n") and int(record["step"]) <= step
            except (ValueError, KeyError, TypeError):
                fits = False
            if not fits:
                break
            kept += len(line)
    if kept < path.stat().st_size:
        os.truncate(path, kept)


# --- the records ------------------------------------------------------------------------------------------------------


def step_record(
    place: Place, report: StepReport, dials: Dials, text_bytes: int, peak_share: float | None
) -> dict[str, Any]:
    """One optimizer step; `place` is the one after it, `text_bytes` those of the tokens it predicted."""
    return {
        "kind": "step",
        "step": place.step,
        "tokens": place.tokens,
        "seconds": place.seconds,
        "loss": report.loss,
        "bits_per_byte": bits_per_byte(report.loss * report.targets, text_bytes),
        "mtp_loss": list(report.mtp_loss),
        "mtp_match": list(report.mtp_match),
        "sequence_loss": report.sequence_loss,
        "lr": dials.lr,
        "grad_norm": report.grad_norm,
        "tokens_per_second": report.positions / place.step_seconds,
        "peak_share": peak_share,
        "bias_speed": dials.bias_speed,
        "mtp_weight": dials.mtp_weight,
        "max_vio": report.max_vio,
        "skipped": report.skipped is not None,
    }


def load_record(step: int, model: CausalLM, load_GE: Tensor) -> dict[str, Any]:
    """Every gate's loads in a step, and its biases after it."""
    biases = [gate.e_score_correction_bias for _, gate in model.gates()]
    return {
        "kind": "load",
        "step": step,
        "gates": gate_names(model),
        "load": load_GE.tolist(),
        "bias": [None if bias_E is None else bias_E.tolist() for bias_E in biases],
    }


def eval_record(place: Place, found: Evaluation) -> dict[str, Any]:
    """A pass over held-out text."""
    return {
        "kind": "eval",
        "step": place.step,
        "seconds": place.seconds,
        "bits_per_byte": found.bits_per_byte,
        "loss": found.loss,
        "mtp_loss": list(found.mtp_loss),
        "acceptance": list(found.acceptance),
    }


def gate_names(model: CausalLM) -> list[str]:
    """Names of the gates for people: `layer 3`, and `mtp 1` for a depth."""
    layers, names = model.config.num_hidden_layers, list[str]()
    for name, _ in model.gates():
        number = int(name.split("layers.")[1].split(".")[0])
        names.append(f"layer {number}" if number < layers else f"mtp {number - layers + 1}")
    return names
