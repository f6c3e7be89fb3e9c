"""Logits become a loss, a loss becomes a step, steps become a run. Read `step.py` first, then `loop.py`."""

from cueva.train.balance import apply_balance, bias_step, max_violation, sequence_loss
from cueva.train.batches import Batch, Rows, bits_per_byte, take_batches, target_bytes
from cueva.train.config_file import config_difference, read_train_config
from cueva.train.display import Display, Header, Lines, Panel, Silence, open_display
from cueva.train.evaluate import Evaluation, evaluate
from cueva.train.flops import forward_flops_per_token, measure_peak, training_flops_per_token
from cueva.train.loop import Parts, RunResult, run_training
from cueva.train.loss import IGNORE, Reading, read_head, targets, visible_documents
from cueva.train.optimizer import build_optimizer, clip_gradients, gradient_norm
from cueva.train.plan import plan_run
from cueva.train.schedule import Dials, dials
from cueva.train.settings import TrainConfig
from cueva.train.state import Place, load_state, prune_states, save_state, saved_states
from cueva.train.step import StepReport, Totals, training_step

__all__ = [
    "IGNORE",
    "Batch",
    "Dials",
    "Display",
    "Evaluation",
    "Header",
    "Lines",
    "Panel",
    "Parts",
    "Place",
    "Reading",
    "Rows",
    "RunResult",
    "Silence",
    "StepReport",
    "Totals",
    "TrainConfig",
    "apply_balance",
    "bias_step",
    "bits_per_byte",
    "build_optimizer",
    "clip_gradients",
    "config_difference",
    "dials",
    "evaluate",
    "forward_flops_per_token",
    "gradient_norm",
    "load_state",
    "max_violation",
    "measure_peak",
    "open_display",
    "plan_run",
    "prune_states",
    "read_head",
    "read_train_config",
    "run_training",
    "save_state",
    "saved_states",
    "sequence_loss",
    "take_batches",
    "target_bytes",
    "targets",
    "training_flops_per_token",
    "training_step",
    "visible_documents",
]
