"""A training run put together: text, tokenizer, shards, rows, model, loop, report."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from cueva.api.models import Engine
from cueva.api.texts import TRAIN, RunText, Say, Watch, run_text
from cueva.checkpoint import save_model
from cueva.config import ModelConfig
from cueva.engine import Sampling
from cueva.errors import CuevaError
from cueva.model import CausalLM
from cueva.study import make_trace, write_report
from cueva.text import Tokenizer
from cueva.train import Display, Parts, RunResult, Silence, TrainConfig, measure_peak, plan_run, run_training
from cueva.train.directory import open_directory

SAMPLE_TOKENS: Final = 80
"""Length of the samples that a run writes on its way."""
TRACE_TOKENS: Final = 160
"""Length of the text that the report shows token by token."""
TEMPERATURE: Final = 0.8
TOP_P: Final = 0.95
"""Sampling defaults of the models we train, in their generation_config.json: small models ramble at temperature 1."""


def train(
    config: TrainConfig,
    *,
    force: bool = False,
    display: Display | None = None,
    watch: Watch | None = None,
    say: Say | None = None,
) -> RunResult:
    """Train a model, or go on with a run that stopped.

    Everything goes to `config.directory`: `config.toml`, `tokenizer/`, `tokens/`, `metrics.jsonl`, `state/`, `model/`
    and `report.html`. Calling it again with the same config goes on where it stopped.

    Args:
        config: the run.
        force: go on although settings or text differ from those the run began with.
        display: shows the training; see `cueva.train.open_display`. None: nothing.
        watch: told how preparing the text goes on.
        say: told what is worth knowing besides.

    Returns:
        How the run ended; `stopped` when it was interrupted and saved.

    Raises:
        ConfigError: settings that do not fit together, or differ from the run's.
        TextError: the text cannot be used.
        CheckpointError: the disk refuses.
        RunError: the training failed.
    """
    # What is refused is refused before the text is read. A forced change is written down by the loop, which tells about
    # it.
    if not (force and (config.directory / "config.toml").exists()):
        open_directory(config, force=force)
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    text = run_text(config, force=force, watch=watch, say=say)
    model = _new_model(config, text.tokenizer)
    report = _RunningReport(config.directory)

    def save(model: CausalLM, folder: Path) -> None:
        save_model(model, folder, tokenizer=text.tokenizer, generation=_generation(model.config))
        report.refresh()

    def sample(model: CausalLM, prompt: str) -> str:
        sampling = _sampling(config, model.config, SAMPLE_TOKENS)
        return Engine(model, text.tokenizer, rows=1).generate([prompt], sampling, draft=0)[0].text

    parts = Parts(
        model=model,
        data=text.train,
        save=save,
        display=display or Silence(),
        held_out=text.held_out,
        sample=sample,
        token_bytes_A=token_bytes(text.tokenizer, model.config.vocab_size),
        data_fingerprint=text.fingerprint,
        peak_flops=measure_peak(config.run.precision) if model.lm_head.weight.device.type == "cpu" else None,
    )
    done = run_training(config, parts, force=force)
    if not done.stopped:
        _report(config, model, text, say)
    return done


def plan(config: TrainConfig) -> dict[str, Any]:
    """Say what a run needs before it begins: parameters, memory, tokens, time. Measures this machine for a second.

    Returns:
        As `cueva.train.plan_run`.

    Raises:
        ConfigError, TextError: the run could not begin; its text is not read for this.
    """
    size = None if config.data.tokenizer == TRAIN else Tokenizer.load(config.data.tokenizer).size
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    return plan_run(config, config.shape(size), peak_flops=measure_peak(config.run.precision))


def run_facts(done: RunResult) -> dict[str, Any]:
    """A `RunResult` as JSON can hold it."""
    facts = dataclasses.asdict(done) | {"directory": str(done.directory), "model": str(done.directory / "model")}
    return facts | {"report": str(done.directory / "report.html")}


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> torch.Tensor:
    """UTF-8 bytes of each token, int64; 0 for tokens that ordinary text cannot become, and for rows without a token."""
    special = {token.id for token in tokenizer.control.values()}
    sizes = [0 if token in special else len(tokenizer.token_bytes(token)) for token in range(tokenizer.size)]
    return torch.tensor(sizes + [0] * (vocab_size - len(sizes)), dtype=torch.int64)


# --- private ----------------------------------------------------------------------------------------------------------


class _RunningReport:
    """The report of a run that goes on: redrawn at saves, as often as one percent of the run's time allows."""

    share: Final = 0.01

    def __init__(self, directory: Path):
        self.directory = directory
        self._again = 0.0

    def refresh(self) -> None:
        """Redraw it, unless the last time was too dear to do so again this soon."""
        began = time.monotonic()
        if began < self._again:
            return
        write_report(self.directory)
        took = time.monotonic() - began
        self._again = began + took / self.share


def _new_model(config: TrainConfig, tokenizer: Tokenizer) -> CausalLM:
    """A model in float32 with drawn weights, where the training will run."""
    shape = config.shape(tokenizer.size)
    known = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    known = {key: value for key, value in known.items() if key not in config.model.overrides}
    torch.manual_seed(config.run.seed)
    model = CausalLM(dataclasses.replace(shape, **known))
    model.init_weights(torch.Generator().manual_seed(config.run.seed))
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _generation(shape: ModelConfig) -> Mapping[str, Any]:
    ends = list(shape.eos_token_id) if isinstance(shape.eos_token_id, tuple) else shape.eos_token_id
    tokens = {"bos_token_id": shape.bos_token_id, "eos_token_id": ends, "pad_token_id": shape.pad_token_id}
    return {key: value for key, value in tokens.items() if value is not None} | {
        "do_sample": True,
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
    }


def _sampling(config: TrainConfig, shape: ModelConfig, tokens: int) -> Sampling:
    """How a run lets its model write: at most half of the model's positions, the prompt has the other half."""
    most = max(1, min(tokens, shape.max_position_embeddings // 2))
    return Sampling(max_new_tokens=most, seed=config.run.seed, temperature=TEMPERATURE, top_p=TOP_P)


def _report(config: TrainConfig, model: CausalLM, text: RunText, say: Say | None) -> None:
    """Write the report with a traced text. A run that was trained is done, whatever becomes of its report."""
    try:
        sampling = _sampling(config, model.config, TRACE_TOKENS)
        engine = Engine(model, text.tokenizer)
        prompt = config.run.sample_prompt or _opening(text)
        write_report(config.directory, trace=make_trace(engine, prompt, sampling))
    except CuevaError as error:
        if say is not None:
            say(f"the report could not be written: {error.message}")


def _opening(text: RunText) -> list[int] | str:
    """How a held-out document begins: a prompt that the text itself would give."""
    if text.held_out is None:
        return ""
    return text.held_out.shards.document(0)[:16].tolist()
