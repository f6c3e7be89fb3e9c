"""Run folders with made-up but lifelike metrics: loss curves that fall, gates that settle, samples that improve."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cueva.study.trace import Trace, TraceToken

HOSTILE = "</script><script>window.broken = 1</script><!-- <b>&amp; \u2028\u2029 \x00 \ud800 ' \" ` ${1}"

STAGES = (
    "eeee  the   tttt ,,,, \n\n the the",
    "def self self(self, self.self):\n    self = self\n    return self.self",
    "def read(self, name=None):\n    if name is None:\n        return self.name\n    return self._read(name)",
    'def read_text(self, encoding=None):\n    """Open the file in text mode, read it, and close the file."""\n'
    "    with self.open(mode='r', encoding=encoding) as f:\n        return f.read()",
)


def make_run(
    folder: Path,
    *,
    steps: int = 600,
    gates: int = 5,
    experts: int = 16,
    depths: int = 1,
    seed: int = 0,
    load_every: int = 10,
    eval_every: int = 50,
    sample_every: int = 100,
    sample_text: str | None = None,
    planned: int | None = None,
    model: bool = True,
) -> Path:
    """Write `metrics.jsonl`, `config.toml` and `model/config.json` of a run that looks like a small training.

    A count of 0 leaves that kind out altogether, as a model without experts or MTP modules does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    bias = np.zeros((gates, experts))
    taste = random.normal(0, 0.55, (gates, experts))
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:

        def log(record: Mapping[str, Any]) -> None:
            file.write(json.dumps(record, separators=(",", ":")) + "\n")

        log({"kind": "event", "step": 0, "text": "started on 2 cores, float32"})
        for step in range(1, steps + 1):
            part = step / steps
            loss = 1.55 + 6.9 * np.exp(-step / (0.012 * steps + 8)) + 1.7 * np.exp(-part * 4) + random.normal(0, 0.06)
            load = _loads(random, taste, bias, 8192) if gates else np.zeros((0, 1))
            vio = (load.max(-1) - load.mean(-1)) / load.mean(-1) if gates else np.zeros(0)
            speed = 0.004 if part < 0.9 else 0.0
            if gates:
                bias += speed * np.sign(load.mean(-1, keepdims=True) - load)
                taste += random.normal(0, 0.004, taste.shape)
            log(_step(step, steps, float(loss), vio, depths, speed, random))
            if gates and load_every and step % load_every == 0:
                names = [f"layer {index + 1}" for index in range(gates - depths)] + [
                    f"mtp {k + 1}" for k in range(depths)
                ]
                log(_load(step, names[:gates], load, bias))
            if eval_every and step % eval_every == 0:
                log(_eval(step, float(loss), part, depths, random))
            if sample_every and step % sample_every == 0:
                stage = STAGES[min(int(part * len(STAGES)), len(STAGES) - 1)]
                text = stage if sample_text is None else sample_text
                log({"kind": "sample", "step": step, "prompt": "def ", "text": text})
    _settings(folder, planned or steps)
    if model:
        _model(folder, gates=gates, experts=experts, depths=depths)
    return folder


def _loads(random: np.random.Generator, taste: np.ndarray, bias: np.ndarray, choices: int) -> np.ndarray:
    chance = np.exp(2.2 * (taste * 0.5 + bias * 4))
    chance /= chance.sum(-1, keepdims=True)
    return np.stack([random.multinomial(choices, row) for row in chance]).astype(float)


def _step(
    step: int, steps: int, loss: float, vio: np.ndarray, depths: int, speed: float, random: np.random.Generator
) -> dict[str, Any]:
    part = step / steps
    spike = 14.0 if step == int(0.41 * steps) else 1.0
    return {
        "kind": "step",
        "step": step,
        "tokens": step * 2048,
        "seconds": round(step * 0.42, 3),
        "loss": round(loss, 5),
        "bits_per_byte": round(loss / 0.6931 / 2.05, 5),
        "mtp_loss": [round(loss + 0.5 * (k + 1) + random.normal(0, 0.05), 5) for k in range(depths)],
        "mtp_match": [
            round(float(np.clip(0.62 * (1 - np.exp(-part * 5)) / (k + 1) + random.normal(0, 0.02), 0, 1)), 4)
            for k in range(depths)
        ],
        "lr": 3e-3 * min(1.0, step / (0.05 * steps + 1)) * (1.0 if part < 0.7 else 0.1 + 0.9 * (1 - part) / 0.3),
        "grad_norm": round(float(spike * (0.4 + 3 * np.exp(-part * 9)) * np.exp(random.normal(0, 0.18))), 5),
        "tokens_per_second": round(4900 + random.normal(0, 160), 1),
        "peak_share": round(0.41 + random.normal(0, 0.01), 4),
        "bias_speed": speed,
        "mtp_weight": 0.3 if part < 0.67 else 0.1,
        "sequence_loss": round(float(len(vio) * (1 + 0.4 * np.exp(-part * 8)) + random.normal(0, 0.01)), 5)
        if len(vio)
        else 0.0,
        "max_vio": [round(float(value), 5) for value in vio],
        "skipped": False,
    }


def _load(step: int, names: list[str], load: np.ndarray, bias: np.ndarray) -> dict[str, Any]:
    rows = [[int(value) for value in row] for row in load]
    return {"kind": "load", "step": step, "gates": names, "load": rows, "bias": np.round(bias, 5).tolist()}


def _eval(step: int, loss: float, part: float, depths: int, random: np.random.Generator) -> dict[str, Any]:
    return {
        "kind": "eval",
        "step": step,
        "seconds": round(step * 0.42, 3),
        "bits_per_byte": round(loss / 0.6931 / 2.05 + 0.07 + random.normal(0, 0.004), 5),
        "loss": round(loss + 0.1 + random.normal(0, 0.01), 5),
        "mtp_loss": [round(loss + 0.55 * (k + 1), 5) for k in range(depths)],
        "acceptance": [round(0.71 * (1 - float(np.exp(-part * 6))) / (1 + 0.45 * k), 4) for k in range(depths)],
    }


def _settings(folder: Path, planned: int) -> None:
    text = f'[model]\npreset = "pocket"\n\n[run]\nname = "{folder.name}"\nsteps = {planned}\nseed = 1\n'
    (folder / "config.toml").write_text(text, encoding="utf-8")


def _model(folder: Path, *, gates: int, experts: int, depths: int) -> None:
    """A published `config.json` with this many gates; one dense layer when there are experts."""
    layers = max(gates - depths, 0) + 1 if gates else 4
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 704,
        "moe_intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_nextn_predict_layers": depths,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 128,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "n_routed_experts": experts if gates else None,
        "n_shared_experts": 1 if gates else None,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")


def make_trace_of(
    text: str = STAGES[-1], *, gates: int = 5, experts: int = 16, chosen: int = 4, depths: int = 2, seed: int = 0
) -> Trace:
    """A trace over words and spaces of `text`, the first three tokens being the prompt."""
    random = np.random.default_rng(seed)
    pieces = [text[start : start + 3] for start in range(0, len(text), 3)]
    tokens, depth = [], 0
    for position, piece in enumerate(pieces):
        depth = (depth + 1) % (depths + 1) if position >= 3 and random.random() < 0.8 else 0
        logprob = None if position == 0 else float(-random.exponential(0.5))
        tokens.append(TraceToken(int(random.integers(0, 4096)), piece, logprob, depth, position < 3))
    chosen = min(chosen, experts)
    choices = [[tuple(random.permutation(experts)[:chosen].tolist()) for _ in tokens] for _ in range(gates)]
    weights = [
        [tuple((random.dirichlet(np.ones(chosen)) * 2.5).round(4).tolist()) for _ in tokens] for _ in range(gates)
    ]
    if gates:  # the last gate is an MTP module's, which never sees the first token
        choices[-1][0], weights[-1][0] = (), ()
    names = tuple(f"layer {index + 1}" for index in range(gates - 1)) + ("mtp 1",) * bool(gates)
    accepted = tuple(sum(token.drafted == k for token in tokens) for k in range(1, depths + 1))
    passes = sum(not token.drafted and not token.prompt for token in tokens) - 1
    kept = tuple(map(tuple, choices)), tuple(map(tuple, weights))
    return Trace(tuple(tokens), names, *kept, proposed=(passes,) * depths, accepted=accepted, passes=passes)
