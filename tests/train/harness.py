"""What the tests of training share: rows that can be learned, small configs, and a run with its parts.

Importable without pytest, because the tests that kill a run start it in a process of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from cueva.files import atomic_folder
from cueva.model import CausalLM
from cueva.train import Batch, Dials, Parts, TrainConfig

LENGTH = 16
VOCAB = 40


class PatternRows:
    """Rows with something to learn: every token is one of three that may follow the one before."""

    def __init__(self, rows_per_epoch: int = 50, length: int = LENGTH, seed: int = 0, vocab: int = VOCAB):
        self.rows_per_epoch, self.length, self.seed, self.vocab = rows_per_epoch, length, seed, vocab
        self.asked: list[int] = []
        """Every row that was ever asked for."""

    def batch(self, step_rows: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any]]:
        self.asked += step_rows
        rows = [self.row(number) for number in step_rows]
        return np.stack([ids for ids, _ in rows]), np.stack([document for _, document in rows])

    def row(self, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        random = np.random.default_rng((self.seed, number))
        token, ids = int(random.integers(self.vocab)), []
        for _ in range(self.length + 1):
            ids.append(token)
            token = (token * 3 + int(random.integers(3))) % self.vocab
        border = int(random.integers(2, self.length))
        return np.array(ids, dtype=np.int64), (np.arange(self.length + 1) >= border).astype(np.int64)


def tiny_config(folder: Path | str, *, steps: int | None = 8, **sections: Any) -> TrainConfig:
    """A run of a few steps of a model of a few thousand weights; sections are added key by key."""
    values: dict[str, Any] = {
        "model": {
            "preset": "tiny",
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "intermediate_size": 24,
            "moe_intermediate_size": 8,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 4,
            "qk_rope_head_dim": 4,
            "v_head_dim": 4,
            "initializer_range": 0.1,
        },
        "data": {"sequence_length": LENGTH},
        "optimizer": {"lr": 0.01},
        "schedule": {"name": "constant", "warmup_share": 0.0},
        "batch": {"rows": 2},
        "run": {
            "folder": str(folder),
            "name": "test",
            "threads": 1,
            "log_every": 1,
            "load_every": 2,
            "eval_every": 4,
            "eval_tokens": 4 * LENGTH,
            "sample_every": 4,
            "save_every": 4,
        },
    }
    if steps is not None:
        values["run"]["steps"] = steps
    for section, keys in sections.items():
        values.setdefault(section, {}).update(keys)
        if section == "schedule" and "name" in keys:
            values[section] = keys
    return TrainConfig(**values)


def fresh_model(config: TrainConfig) -> CausalLM:
    """Weights drawn with the run's seed."""
    model = CausalLM(config.shape())
    model.init_weights(torch.Generator().manual_seed(config.run.seed))
    return model


class Recorder:
    """A display that remembers."""

    def __init__(self) -> None:
        self.header: Any = None
        self.steps: list[Any] = []
        self.notes: list[Any] = []
        self.saves: list[int] = []
        self.ended = False

    def begin(self, header: Any) -> None:
        self.header = header

    def step(self, record: Any, progress: float) -> None:
        self.steps.append((record, progress))

    def note(self, record: Any) -> None:
        self.notes.append(record)

    def saved(self, step: int) -> None:
        self.saves.append(step)

    def end(self) -> None:
        self.ended = True

    @property
    def events(self) -> list[str]:
        return [note["text"] for note in self.notes if note["kind"] == "event"]


def save_weights(model: CausalLM, folder: Path) -> None:
    """Stands for the published format, which training knows nothing of."""
    with atomic_folder(folder) as new:
        save_file({name: tensor.detach() for name, tensor in model.named_parameters()}, new / "model.safetensors")


def parts(config: TrainConfig, **changes: Any) -> Parts:
    """Everything a tiny run works with; the seed decides weights and rows."""
    values: dict[str, Any] = {
        "model": fresh_model(config),
        "data": PatternRows(seed=config.run.seed, length=config.data.sequence_length),
        "save": save_weights,
        "display": Recorder(),
        "held_out": PatternRows(rows_per_epoch=6, seed=10_000, length=config.data.sequence_length),
        "sample": lambda model, prompt: f" and {int(model.lm_head.weight.argmax())}",
        "token_bytes_A": torch.arange(VOCAB) % 4 + 1,
        "data_fingerprint": "pattern",
    }
    return Parts(**{**values, **changes})


def dials_of(**changes: Any) -> Dials:
    """A step's dials: everything on, nothing moved."""
    values: dict[str, Any] = {
        "lr": 0.0,
        "clip": None,
        "bias_speed": 0.0,
        "bias_rule": "sign",
        "sequence_loss": 0.0,
        "sequence_loss_choice": "literal",
        "mtp_weight": 0.3,
        "document_mask": True,
        "precision": "float32",
        "recompute": False,
    }
    return Dials(**{**values, **changes})


def packed_batch(rows: int = 4, length: int = LENGTH, vocab: int = VOCAB, seed: int = 0, padding: int = 0) -> Batch:
    """Rows of random ids, two or three documents each, some padding at the end of the last row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, (rows, length + 1), generator=generator)
    borders = torch.randint(0, 5, (rows, length + 1), generator=generator) == 0
    document = borders.long().cumsum(-1)
    if padding:
        document[-1, -padding:] = -1
    return Batch(ids, document)
