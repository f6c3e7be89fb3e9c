"""A training run: steps, and between them looking, writing down, saving; and going on where it stopped.

The loop is handed what it works with: the model, the rows, and functions that save a model and write a sample. It
knows one directory, `config.directory`:

    config.toml       the settings, every key written out
    metrics.jsonl     what happened (`metrics.py`)
    model/            the model as last saved, in the published format
    state/step-N/     everything needed to go on after step N (`state.py`)

Running the same config again goes on. Every step follows from its number and the state before it, so a resumed run on
the same machine and number of threads repeats the same losses to the last bit. A run limited by time is the exception:
its schedules follow the clock, whose seconds are saved but do not repeat.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from cueva.errors import CheckpointError, ConfigError, CuevaError, RunError
from cueva.model import CausalLM
from cueva.train.batches import Rows, take_batches, target_bytes
from cueva.train.directory import Interrupts, only_one_process, open_directory
from cueva.train.display import Display, Header
from cueva.train.evaluate import Evaluation, evaluate
from cueva.train.flops import training_flops_per_token
from cueva.train.metrics import MetricsFile, eval_record, gate_names, load_record, step_record
from cueva.train.optimizer import build_optimizer
from cueva.train.schedule import dials, step_rows
from cueva.train.settings import TrainConfig
from cueva.train.state import Place, load_state, prune_states, save_state, saved_states
from cueva.train.step import StepReport, training_step

SKIPPED_AT_MOST: Final = 25
"""Steps in a row without a finite loss or gradient after which a run gives up."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run works with."""

    model: CausalLM
    """Float32; weights drawn, or loaded. A resumed run overwrites them."""
    data: Rows
    save: Callable[[CausalLM, Path], None]
    """Writes the model into a folder, whole or not at all."""
    display: Display
    held_out: Rows | None = None
    """Text never trained on; None: no evaluation."""
    sample: Callable[[CausalLM, str], str] | None = None
    """Goes on from a prompt."""
    token_bytes_A: Tensor | None = None
    """int64, UTF-8 bytes of each token, 0 for special ones; None: no bits per byte."""
    data_fingerprint: str = ""
    """Of the tokens and the order of rows; a run is not resumed on others."""
    peak_flops: float | None = None
    """What this machine can do, from `measure_peak`; None: its share is not shown."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    directory: Path
    step: int
    tokens: int
    seconds: float
    loss: float | None
    """Of the last step; None when there was none left to do."""
    evaluation: Evaluation | None
    """The last one of this process."""
    stopped: bool
    """Whether it was interrupted before its end; the same command goes on."""


def run_training(config: TrainConfig, parts: Parts, *, force: bool = False) -> RunResult:
    """Train, or go on training, until the run's steps or minutes are over.

    Args:
        config: the run; its directory decides whether it begins or goes on.
        parts: what it works with.
        force: go on even if the config or the data differ from those the run began with.

    Raises:
        ConfigError: the directory holds a run with another config, or no run at all.
        CheckpointError: states exist and none can be used, or the disk refuses.
        RunError: too many steps in a row were not finite, or another process trains this run.
    """
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    with only_one_process(config.directory), Interrupts() as interrupts:
        run = _Run(config, parts, force=force)
        try:
            run.go(interrupts)
        finally:
            run.metrics.close()
            parts.display.end()
        return run.result


class _Run:
    """One process's part of a run."""

    def __init__(self, config: TrainConfig, parts: Parts, *, force: bool):
        self.config, self.parts, self.model = config, parts, parts.model
        self.directory = config.directory
        self.device = next(parts.model.parameters()).device
        self.optimizer = build_optimizer(parts.model, config.optimizer)
        self.flops = training_flops_per_token(parts.model.config, config.data.sequence_length)
        self.gates = gate_names(parts.model)
        self.held_out = parts.held_out if config.run.eval_every else None
        self.loss: float | None = None
        self.evaluation: Evaluation | None = None
        self.evaluated = self.sampled = self.saved = -1
        self.stopped = False

        if parts.data.rows_per_epoch < 1:
            raise ConfigError(
                f"the text to train on is shorter than one row of {config.data.sequence_length + 1} tokens",
                way_out="try more text, or a smaller data.sequence_length",
            )
        changes = open_directory(config, force=force)
        self.place, remarks = self._resume(force=force)
        if self.held_out is not None and self.held_out.rows_per_epoch < 1:
            remarks.append("the held-out text is shorter than one row, so there is nothing to evaluate")
            self.held_out = None
        self.metrics = MetricsFile(self.directory / "metrics.jsonl", step=self.place.step)
        parts.display.begin(
            Header(
                name=str(self.directory),
                steps=config.run.steps,
                minutes=config.run.minutes,
                log_every=config.run.log_every,
                gates=self.gates,
                depths=parts.model.config.num_nextn_predict_layers,
            )
        )
        for text in [*remarks, *(f"changed by force: {change}" for change in changes)]:
            self.event(text)
        self.place.config_fingerprint = config.fingerprint
        self.place.data_fingerprint = parts.data_fingerprint
        self.place.threads, self.place.torch = torch.get_num_threads(), torch.__version__

    @property
    def result(self) -> RunResult:
        place = self.place
        return RunResult(
            self.directory, place.step, place.tokens, place.seconds, self.loss, self.evaluation, self.stopped
        )

    def go(self, interrupts: "Interrupts") -> None:
        """Step until it is over; then look, show and save once more."""
        run = self.config.run
        if self.over and self.saved == self.place.step:
            self.parts.display.note(self.event_record(f"this run is finished, after {self.place.step} steps"))
            return
        while not self.over and not interrupts.asked:
            self.step()
            last = self.over or interrupts.asked
            if due(run.eval_every, self.place.step) and not last:
                self.evaluate()
            if due(run.sample_every, self.place.step) and not last:
                self.sample()
            if due(run.save_every, self.place.step) and not last:
                self.save()
        if self.over:
            self.evaluate()
            self.sample()
            self.save()
        else:
            self.stopped = True
            self.save()
            self.event(f"stopped and saved after step {self.place.step}; the same command goes on from here")

    # --- one step -----------------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether the steps or the minutes are used up."""
        run, place = self.config.run, self.place
        return (run.steps is not None and place.step >= run.steps) or (
            run.minutes is not None and place.seconds >= 60 * run.minutes
        )

    @property
    def progress(self) -> float:
        """The share of the run that will be done when the next step ends; what schedules go by."""
        run, place, shares = self.config.run, self.place, [0.0]
        if run.steps is not None:
            shares.append((place.step + 1) / run.steps)
        if run.minutes is not None:
            shares.append((place.seconds + place.step_seconds) / (60 * run.minutes))
        return min(1.0, max(shares))

    def step(self) -> None:
        """One optimizer step, and its record."""
        config, place, progress = self.config, self.place, self.progress
        knobs = dials(config, progress)
        rows = range(place.row, place.row + step_rows(config.batch, progress))
        began = time.perf_counter()
        batches = take_batches(self.parts.data, rows, config.batch.rows, self.device)
        report = training_step(self.model, self.optimizer, batches, knobs)
        seconds = time.perf_counter() - began

        epoch = rows.start // max(self.parts.data.rows_per_epoch, 1)
        place.step += 1
        place.row = rows.stop
        place.tokens += report.positions
        place.seconds += seconds
        place.step_seconds = seconds
        place.bits_per_byte = None
        self.loss = report.loss

        text_bytes = 0
        if self.parts.token_bytes_A is not None:
            text_bytes = target_bytes(batches, self.parts.token_bytes_A, document_mask=knobs.document_mask)
        record = step_record(place, report, knobs, text_bytes, self.peak_share(report.positions / seconds))
        self.metrics.write(record)
        self.parts.display.step(record, progress)
        if due(config.run.load_every, place.step) and self.gates:
            self.metrics.write(load_record(place.step, self.model, report.load_GE))
        if rows.stop // max(self.parts.data.rows_per_epoch, 1) > epoch:
            self.event(f"all rows of the text were seen {epoch + 1} times; they come again in another order")
        self._mind_skipping(report)

    def peak_share(self, tokens_per_second: float) -> float | None:
        """How much of this machine's matrix speed that is."""
        return None if self.parts.peak_flops is None else tokens_per_second * self.flops / self.parts.peak_flops

    def _mind_skipping(self, report: StepReport) -> None:
        if report.skipped is None:
            self.place.skipped_in_a_row = 0
            return
        self.place.skipped_in_a_row += 1
        self.event(f"step skipped, nothing was changed: {report.skipped}")
        if self.place.skipped_in_a_row >= SKIPPED_AT_MOST:
            states = saved_states(self.directory)
            raise RunError(
                f"{SKIPPED_AT_MOST} steps in a row were skipped at step {self.place.step}: {report.skipped}"
                + (f"; the last saved state is {states[0].name}" if states else ""),
                way_out="try a lower optimizer.lr, a longer warm-up, or look at the text of these rows",
            )

    # --- between steps ------------------------------------------------------------------------------------------------

    def event(self, text: str) -> None:
        """Write down and show something worth knowing."""
        record = self.event_record(text)
        self.metrics.write(record)
        self.parts.display.note(record)

    def event_record(self, text: str) -> dict[str, Any]:
        """An event, not yet written."""
        return {"kind": "event", "step": self.place.step, "text": text}

    def evaluate(self) -> None:
        """Score held-out text, unless that was just done."""
        held_out, config, place = self.held_out, self.config, self.place
        if held_out is None or self.evaluated == place.step:
            return
        rows = held_out.rows_per_epoch
        if config.run.eval_tokens is not None:
            rows = min(rows, -(-config.run.eval_tokens // config.data.sequence_length))
        knobs = dials(config, self.progress)
        found = evaluate(self.model, held_out, rows, config.batch.rows, knobs, self.parts.token_bytes_A)
        self.evaluation, self.evaluated = found, place.step
        place.bits_per_byte = found.bits_per_byte
        record = eval_record(place, found)
        self.metrics.write(record)
        self.parts.display.note(record)

    def sample(self) -> None:
        """Let the model write a little, unless it just did."""
        prompt = self.config.run.sample_prompt
        if self.parts.sample is None or not self.config.run.sample_every or self.sampled == self.place.step:
            return
        self.sampled = self.place.step
        try:
            text = self.parts.sample(self.model, prompt)
        except CuevaError as error:  # a prompt that does not fit is no reason to lose a run
            self.event(f"no sample: {error.message}")
            return
        record = {"kind": "sample", "step": self.place.step, "prompt": prompt, "text": text}
        self.metrics.write(record)
        self.parts.display.note(record)

    def save(self) -> None:
        """Save the state, then the model; keep what is to be kept."""
        if self.saved == self.place.step:
            return
        self.place.saves += 1
        self.metrics.sync()
        save_state(self.directory, self.model, self.optimizer, self.place)
        self.parts.save(self.model, self.directory / "model")
        prune_states(self.directory, keep_last=self.config.run.keep_last, keep_every=self.config.run.keep_every)
        self.saved = self.place.step
        self.parts.display.saved(self.place.step)

    # --- beginning ----------------------------------------------------------------------------------------------------

    def _resume(self, *, force: bool) -> tuple[Place, list[str]]:
        """Load the newest state that is whole; a fresh place when there is none. And what is to be said about it."""
        remarks: list[str] = []
        states = saved_states(self.directory)
        for folder in states:
            try:
                place = load_state(folder, self.model, self.optimizer)
            except CheckpointError as error:
                if folder == states[-1]:
                    raise CheckpointError(
                        f"{error.message}; there is no other state to go on from",
                        way_out=error.way_out
                        or f"try another run.name, or delete {self.directory / 'state'} to begin again",
                    ) from error
                remarks.append(f"{error.message}; going on from an older one")
                continue
            self._check_same_data(place, force=force)
            self.saved = place.step
            if place.bits_per_byte is not None:
                self.evaluated = place.step
            remarks.append(f"going on from step {place.step} (state/{folder.name})")
            threads = torch.get_num_threads()
            if (place.threads, place.torch) != (threads, torch.__version__):
                remarks.append(
                    f"saved with {place.threads} threads and torch {place.torch}, going on with {threads} and "
                    f"{torch.__version__}: sums may round differently from here on"
                )
            return place, remarks
        return Place(), remarks

    def _check_same_data(self, place: Place, *, force: bool) -> None:
        if place.data_fingerprint != self.parts.data_fingerprint and not force:
            raise ConfigError(
                f"the text of this run has changed: it began with data {place.data_fingerprint[:12]}, and is now given "
                f"{self.parts.data_fingerprint[:12]}",
                way_out="try another run.name for the new text, or --force to go on with it",
            )


def due(every: int, step: int) -> bool:
    """Whether something done every so many steps is done after this one; 0 is never."""
    return every > 0 and step % every == 0
