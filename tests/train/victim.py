"""A run in a process of its own, to be killed; `python -m tests.train.victim FOLDER STEPS` does the same by hand."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.train.harness import parts, tiny_config


def config_of(folder: str, steps: int, precision: str = "float32"):
    return tiny_config(
        folder,
        steps=steps,
        batch={"rows": 1, "accumulate": 2, "ramp_from": 1, "ramp_share": 0.5},
        schedule={"name": "report", "warmup_share": 0.1},
        run={"save_every": 3, "eval_every": 6, "sample_every": 0, "load_every": 1, "precision": precision},
        balance={"bias_speed": 0.01, "sequence_loss": 0.01},
        model={"num_nextn_predict_layers": 2},
    )


def train(folder: str, steps: int, precision: str = "float32") -> None:
    from cueva.train import run_training

    config = config_of(folder, steps, precision)
    run_training(config, parts(config))


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]))
