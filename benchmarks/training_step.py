"""Tokens per second of one training step, cueva beside `transformers`, in turn, with the share of the machine's peak.

    python -m benchmarks.training_step [--rounds 5] [--shape 12m|108m]

Both train a DeepSeek-V3 of the same shape, main loss only (transformers has no MTP loss), float32, AdamW fused,
without recomputation. A second line for cueva has its MTP module on. Needs the `dev` extra.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.machine import in_turn, matrix_peak, median_ratio
from cueva.config import ModelConfig, model_config
from cueva.model import CausalLM
from cueva.train.batches import Batch
from cueva.train.flops import training_flops_per_token
from cueva.train.optimizer import build_optimizer
from cueva.train.schedule import dials
from cueva.train.settings import TrainConfig
from cueva.train.step import training_step

SHAPES: dict[str, tuple[ModelConfig, int, int]] = {
    # name: shape, rows, tokens of a row
    "12m": (
        model_config(
            "pocket", vocab_size=4096, hidden_size=256, intermediate_size=704, moe_intermediate_size=128,
            num_hidden_layers=6, num_attention_heads=4, q_lora_rank=128, kv_lora_rank=128, qk_nope_head_dim=64,
            qk_rope_head_dim=32, v_head_dim=64, n_routed_experts=16, n_shared_experts=1, num_experts_per_tok=4,
            n_group=1, topk_group=1, first_k_dense_replace=1,
        ),
        8,
        256,
    ),
    "108m": (model_config("small", n_group=1, topk_group=1), 4, 512),
}  # fmt: skip


def ours(config: ModelConfig, ids_BU: torch.Tensor) -> Callable[[], None]:
    """One step of cueva's own training."""
    model = CausalLM(config)
    model.init_weights(torch.Generator().manual_seed(0), 0.02)
    settings = TrainConfig.model_validate({"run": {"steps": 1000}, "balance": {"sequence_loss": 0.0}})
    optimizer = build_optimizer(model, settings.optimizer)
    batches = [Batch(ids_BU, torch.zeros_like(ids_BU))]
    knobs = dials(settings, 0.5)

    def step() -> None:
        training_step(model, optimizer, batches, knobs)

    return step


def theirs(config: ModelConfig, ids_BU: torch.Tensor) -> Callable[[], None]:
    """One step of transformers' model with torch's own fused AdamW."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    skipped = {"model_type", "scoring_func", "topk_method", "rope_scaling", "rope_interleave", "other"}
    names = [field.name for field in dataclasses.fields(config) if field.name not in skipped]
    published = DeepseekV3Config(
        **{name: getattr(config, name) for name in names}, num_key_value_heads=config.num_attention_heads
    )
    model = DeepseekV3ForCausalLM(published).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        logits = model(ids_BU[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), ids_BU[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="12m")
    asked = parser.parse_args()
    config, rows, length = SHAPES[asked.shape]
    without = without_mtp(config)
    ids_BU = torch.randint(0, config.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    peak = matrix_peak()
    seconds = in_turn(
        {
            "cueva": ours(without, ids_BU),
            "transformers": theirs(without, ids_BU),
            "cueva with MTP": ours(config, ids_BU),
        },
        asked.rounds,
    )
    print(f"{torch.get_num_threads()} threads, matrix peak {peak / 1e9:.0f} GFLOP/s, {rows} x {length} tokens a step")
    for name, took in seconds.items():
        shape = config if name.endswith("MTP") else without
        rate = rows * length / statistics.median(took)
        share = rate * training_flops_per_token(shape, length) / peak
        ratio = median_ratio(seconds["transformers"], took)
        print(f"{name:>15}: {rate:7,.0f} tokens/s, {share:4.0%} of the peak, {ratio:.2f}x transformers")


def without_mtp(config: ModelConfig) -> ModelConfig:
    """The same shape without MTP modules."""
    return dataclasses.replace(config, num_nextn_predict_layers=0)


if __name__ == "__main__":
    main()
