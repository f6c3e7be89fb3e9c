"""What each mechanism buys in equal time: held-out bits per byte of five models trained on the same text.

    python -m benchmarks.quality [--seconds 90] [--seeds 0 1 2] [--variants full no-mtp ...] [--out runs/quality]

The variants: `full` (the quickstart's model), `no-mtp` (without the MTP module), `aux-loss` (the balance bias stays at
zero and a sequence-wise loss a hundred times the report's balances instead), `unbalanced` (neither), `dense` (an
ordinary GPT, sized to the budget). Every variant gets the same rows in the same order for the same seed, the same
optimizer settings, and the same time; faster ones see more text.

Time is processor time of one thread, so that a busy machine costs patience and not comparability. Seeds are the outer
loop. Every result is appended to `results.jsonl` as it comes; the table at the end has medians and ranges.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.dense_gpt import DenseGPT, DenseShape
from cueva.api.quick import quickstart_config
from cueva.config import model_config
from cueva.model import CausalLM
from cueva.text import Corpus, Packing, Tokenizer, TokenShards, prepare
from cueva.train.balance import max_violation
from cueva.train.batches import take_batches
from cueva.train.evaluate import evaluate
from cueva.train.optimizer import build_optimizer
from cueva.train.schedule import dials
from cueva.train.settings import TrainConfig
from cueva.train.step import training_step

VARIANTS = ("full", "no-mtp", "aux-loss", "unbalanced", "dense")
LAST_STEPS = 50
EVALUATED_TOKENS = 25_000


def settings_of(variant: str, base: TrainConfig, seconds: float) -> TrainConfig:
    """The quickstart's settings, with what this variant changes."""
    values = base.model_dump()
    values["run"] |= {"minutes": seconds / 60, "steps": None}
    if variant == "no-mtp":
        values["model"]["num_nextn_predict_layers"] = 0
    if variant in ("aux-loss", "unbalanced"):
        values["balance"] |= {"bias_speed": 0.0, "sequence_loss": 0.01 if variant == "aux-loss" else 0.0}
    return TrainConfig.model_validate(values)


def build(variant: str, settings: TrainConfig, seed: int) -> Any:
    """A fresh model."""
    generator = torch.Generator().manual_seed(seed)
    shape = settings.shape()
    if variant == "dense":
        dense = DenseGPT(DenseShape(vocab_size=shape.vocab_size, hidden_size=128, layers=4, heads=4))
        dense.init_weights(generator, shape.initializer_range)
        return dense
    model = CausalLM(shape)
    model.init_weights(generator)
    return model


def measure(variant: str, seed: int, settings: TrainConfig, folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Train one variant for its seconds and score it."""
    length = settings.data.sequence_length
    data = Packing(TokenShards.open(folder, "train"), length, seed)
    held_out = Packing(TokenShards.open(folder, "held_out"), length, 0)
    bytes_A = torch.tensor([len(tokenizer.token_bytes(i)) for i in range(settings.shape().vocab_size)])
    model = build(variant, settings, seed)
    optimizer = build_optimizer(model, settings.optimizer)
    assert settings.run.minutes is not None
    limit, spent, steps, loads = settings.run.minutes * 60, 0.0, 0, []
    while spent < limit:
        rows = range(steps * settings.batch.full, (steps + 1) * settings.batch.full)
        batches = take_batches(data, rows, settings.batch.rows, torch.device("cpu"))
        knobs = dials(settings, min(spent / limit, 1.0))
        start = time.process_time()
        report = training_step(model, optimizer, batches, knobs)
        spent += time.process_time() - start
        steps += 1
        loads = [*loads[1 - LAST_STEPS :], report.load_GE]
    rows = min(EVALUATED_TOKENS // length, held_out.rows_per_epoch)
    scored = evaluate(model, held_out, rows, 8, dials(settings, 1.0), bytes_A)
    each = torch.stack(loads)
    return {
        "variant": variant,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "tokens": steps * settings.batch.full * length,
        "seconds": round(spent, 1),
        "bits_per_byte": scored.bits_per_byte,
        "acceptance": list(scored.acceptance),
        "max_vio_of_a_step": worst_gate([[max_violation(g) for g in load_GE] for load_GE in each]),
        "max_vio_of_50_steps": worst_gate([[max_violation(g) for g in each.sum(0)]]),
    }


def worst_gate(vio: list[list[float]]) -> float | None:
    """The mean over steps of the gate that is worst by it; None without gates."""
    return max((statistics.fmean(column) for column in zip(*vio, strict=True)), default=None)


def table(results: list[dict[str, Any]]) -> str:
    """Medians and ranges over the seeds, as Markdown."""
    lines = [
        "| variant | parameters | tokens seen | held-out bits per byte: median (range) | first-depth acceptance | "
        "MaxVio, worst gate: of a step, of 50 steps together |",
        "|---|---|---|---|---|---|",
    ]
    for variant in dict.fromkeys(r["variant"] for r in results):
        mine = [r for r in results if r["variant"] == variant]
        bpb = sorted(r["bits_per_byte"] for r in mine)
        accepted = [r["acceptance"][0] for r in mine if r["acceptance"]]
        vio = [[r[key] for r in mine if r[key] is not None] for key in ("max_vio_of_a_step", "max_vio_of_50_steps")]
        lines.append(
            f"| {variant} | {mine[0]['parameters'] / 1e6:.1f}M | {statistics.median(r['tokens'] for r in mine):,.0f} | "
            f"{statistics.median(bpb):.3f} ({bpb[0]:.3f} to {bpb[-1]:.3f}) | "
            f"{f'{statistics.median(accepted):.0%}' if accepted else '-'} | "
            f"{', '.join(f'{statistics.median(v):.2f}' for v in vio) if vio[0] else '-'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train everything in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="of processor time in training steps, for each model [90]"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    base = quickstart_config(
        asked.out, minutes=asked.seconds / 60, steps=None, seed=0, preset="pocket", sources=("python",)
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    tokens, words = asked.out / "tokens", asked.out / "tokenizer"
    corpus = Corpus(["python"])
    if words.exists():
        tokenizer = Tokenizer.load(words)
    else:
        tokenizer = Tokenizer.train((d.text for d in corpus), model_config("pocket").vocab_size)
        tokenizer.save(words)
    prepare(corpus, tokenizer, tokens, held_out_share=base.data.held_out_share)
    results: list[dict[str, Any]] = []
    for seed in asked.seeds:
        for variant in asked.variants:
            result = measure(variant, seed, settings_of(variant, base, asked.seconds), tokens, tokenizer)
            results.append(result)
            with (asked.out / "results.jsonl").open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)
    print(f"\n{asked.seconds:.0f} processor seconds of training each\n\n{table(results)}")


if __name__ == "__main__":
    main()
