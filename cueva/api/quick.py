"""Everything once, in a few minutes and without a download: read, learn tokens, train, write, draft, report.

The text is the source code of Python's own standard library, which every reader of this has. Settings that differ from
the defaults say why. The run is an ordinary one: `cueva train --config runs/quickstart/config.toml` is the same.
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from cueva.api.models import Engine
from cueva.api.texts import Say, Watch
from cueva.api.training import train
from cueva.engine import Answer, Sampling
from cueva.errors import ConfigError
from cueva.files import atomic_write
from cueva.study.records import read_records
from cueva.text import TokenShards
from cueva.train import Display, TrainConfig, max_violation
from cueva.train.directory import open_directory

MINUTES: Final = 3.5
"""Of training. Reading, measuring and the report come on top: about a minute on two cores."""
RESULTS: Final = "quickstart.json"
PROMPTS: Final = ("import ", "def ", "class ")
SAMPLE_TOKENS: Final = 96
DRAFT_PROMPTS: Final = 4
PROMPT_TOKENS: Final = 48
DRAFT_TOKENS: Final = 64
LAST_STEPS: Final = 50
"""Steps over which the balance of the experts is averaged."""


@dataclass(frozen=True)
class Quickstart:
    """What a quickstart came to."""

    directory: Path
    stopped: bool
    """It was interrupted and saved; the same call goes on."""
    before: bool
    """It had been finished by an earlier call."""
    facts: dict[str, Any]
    """The results as JSON can hold them; empty when it was interrupted."""


def quickstart(
    folder: str | os.PathLike[str] = "runs/quickstart",
    *,
    minutes: float = MINUTES,
    steps: int | None = None,
    seed: int = 0,
    preset: str = "pocket",
    sources: tuple[str, ...] = ("python",),
    display: Display | None = None,
    watch: Watch | None = None,
    say: Say | None = None,
) -> Quickstart:
    """Train a small model on Python's own library, let it write, and measure what drafting buys.

    Calling it again goes on where it stopped, and shows the results once it is finished.

    Args:
        folder: where the run lives.
        minutes: of training; the schedule fits itself to them.
        steps: end after so many steps, if that comes first.
        seed: of weights, order and samples.
        preset: shape of the model.
        sources: text to learn from.
        display: shows the training.
        watch: told how reading goes on.
        say: told what is worth knowing.

    Raises:
        ConfigError: the folder holds another run, or the same with other settings.
        CheckpointError: the disk refuses.
        RunError: the training failed.
    """
    config = quickstart_config(folder, minutes=minutes, steps=steps, seed=seed, preset=preset, sources=sources)
    results = config.directory / RESULTS
    if results.is_file():
        open_directory(config, force=False)  # other settings are refused, not answered with old results
        return Quickstart(config.directory, False, True, _read(results))
    done = train(config, display=display, watch=watch, say=say)
    if done.stopped:
        return Quickstart(config.directory, True, False, {})
    if say is not None:
        say("measuring what drafting buys")
    facts = _facts(config)
    atomic_write(results, json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
    return Quickstart(config.directory, False, False, facts)


def quickstart_config(
    folder: str | os.PathLike[str],
    *,
    minutes: float,
    steps: int | None,
    seed: int,
    preset: str,
    sources: tuple[str, ...],
) -> TrainConfig:
    """The settings of a quickstart."""
    place = Path(folder)
    if not place.name:
        raise ConfigError(f"{folder!s} is no folder to make a run in", way_out="try --folder runs/quickstart")
    length: dict[str, Any] = {"minutes": float(minutes)}
    if steps is not None:
        length["steps"] = steps
    settings: dict[str, Any] = {
        "model": {"preset": preset},
        "data": {"sources": list(sources), "sequence_length": 256},
        # Measured on this model and text: half of it learns slower, twice of it unlearns.
        "optimizer": {"lr": 4e-3},
        # Most of such a short run is decay: a low rate at the end is worth more than a long stay at the highest.
        "schedule": {"name": "wsd", "warmup_share": 0.04, "decay_share": 0.7},
        # Few rows a step: with so few tokens in all, the number of steps is what is scarce.
        "batch": {"rows": 4},
        # The report's 0.001 and 0.0001 even out the experts over many thousands of steps; these are a few hundred.
        "balance": {"bias_speed": 0.005, "sequence_loss": 0.01, "off_share": 0.0},
        "run": {
            "folder": str(place.parent),
            "name": place.name,
            "seed": seed,
            "eval_every": 100,
            "eval_tokens": 16_384,
            "sample_every": 100,
            "sample_prompt": "def ",
            "save_every": 200,
            "load_every": 1,
            "keep_last": 1,
            **length,
        },
    }
    return TrainConfig(**settings)


# --- private ----------------------------------------------------------------------------------------------------------


def _read(results: Path) -> dict[str, Any]:
    try:
        return json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{results} cannot be read: {error}", way_out=f"try deleting {results}") from error


def _facts(config: TrainConfig) -> dict[str, Any]:
    """Everything worth telling, from what was written down and from the model as it was saved."""
    directory = config.directory
    records = read_records(directory)
    last, evaluation = records.steps[-1], records.evals[-1] if records.evals else {}
    balance = [record["max_vio"] for record in records.steps[-LAST_STEPS:] if record.get("max_vio")]
    engine = Engine(directory / "model")
    return {
        "directory": str(directory),
        "model": str(directory / "model"),
        "report": str(directory / "report.html"),
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": last["seconds"],
        "loss": last["loss"],
        "tokens_per_second": statistics.median(record["tokens_per_second"] for record in records.steps),
        "held_out_bits_per_byte": evaluation.get("bits_per_byte"),
        "held_out_acceptance": evaluation.get("acceptance", []),
        # Of each gate the mean over the last steps, and of these the worst.
        "max_vio": max((statistics.mean(gate) for gate in zip(*balance, strict=True)), default=None),
        # Of each gate the loads of those steps added up: what of the unevenness is not the chance of a small batch.
        "max_vio_together": _together(records.loads[-LAST_STEPS:]),
        "max_vio_steps": len(balance),
        "samples": _samples(engine, config.run.seed),
        "drafting": _drafting(engine, directory / "tokens", config.run.seed),
    }


def _together(loads: Sequence[Mapping[str, Any]]) -> float | None:
    """MaxVio of the worst gate over the loads of several steps; None without gates."""
    if not loads:
        return None
    load_GE = torch.tensor([record["load"] for record in loads]).sum(0)
    return max(max_violation(load_E) for load_E in load_GE)


def _samples(engine: Engine, seed: int) -> list[dict[str, str]]:
    sampling = Sampling(max_new_tokens=min(SAMPLE_TOKENS, engine.config.max_position_embeddings // 2), seed=seed)
    answers = engine.generate(list(PROMPTS), sampling)
    return [{"prompt": prompt, "text": answer.text} for prompt, answer in zip(PROMPTS, answers, strict=True)]


def _drafting(engine: Engine, tokens: Path, seed: int) -> dict[str, Any] | None:
    """Speed with and without drafting on beginnings of held-out documents, in turns: both meet the same machine."""
    if not engine.config.num_nextn_predict_layers:
        return None
    prompts = _beginnings(tokens, min(PROMPT_TOKENS, engine.config.max_position_embeddings // 4))
    length = min(DRAFT_TOKENS, engine.config.max_position_embeddings // 4)
    plain: list[Answer] = []
    drafted: list[Answer] = []
    for number, prompt in enumerate(prompts):
        sampling = Sampling(max_new_tokens=length, ignore_eos=True, seed=seed + number)
        plain += engine.generate([prompt], sampling, draft=0)
        drafted += engine.generate([prompt], sampling, draft="auto")
    greedy = Sampling(max_new_tokens=length, ignore_eos=True, temperature=0)
    same = [engine.generate([prompts[0]], greedy, draft=draft)[0].token_ids for draft in (0, 1)]
    tried = sum(answer.stats.drafted[0] for answer in drafted if answer.stats.drafted)
    kept = sum(answer.stats.accepted[0] for answer in drafted if answer.stats.accepted)
    passes = sum(answer.stats.passes for answer in drafted)
    return {
        "prompts": len(prompts),
        "new_tokens": length,
        "plain_tokens_per_second": statistics.median(answer.stats.tokens_per_second for answer in plain),
        "drafted_tokens_per_second": statistics.median(answer.stats.tokens_per_second for answer in drafted),
        "first_draft_accepted": kept / tried if tried else None,
        "tokens_per_pass": sum(answer.stats.new_tokens - 1 for answer in drafted) / passes if passes else None,
        "greedy_text_is_the_same": same[0] == same[1],
    }


def _beginnings(tokens: Path, length: int) -> list[list[int]]:
    """How the longest of the held-out documents begin; of the training documents, if none are held out."""
    from cueva.text.shards import read_manifest

    split = "held_out" if read_manifest(tokens)["held_out"]["documents"] else "train"
    shards = TokenShards.open(tokens, split, verify=False)
    longest = sorted(range(len(shards)), key=lambda document: -len(shards.document(document)))[:DRAFT_PROMPTS]
    return [shards.document(document)[:length].tolist() for document in longest]
