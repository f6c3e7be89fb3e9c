"""What a run will be, before it begins (`cueva train --plan`): parameters, memory, tokens, time, bytes on the disk."""

from typing import Any, Final

from cueva.config import ModelConfig
from cueva.train.flops import training_flops_per_token
from cueva.train.loss import piece_rows
from cueva.train.schedule import step_rows
from cueva.train.settings import TrainConfig

FLOAT32: Final = 4


def plan_run(
    config: TrainConfig,
    shape: ModelConfig,
    *,
    tokens_per_second: float | None = None,
    peak_flops: float | None = None,
    share_of_peak: float = 0.4,
) -> dict[str, Any]:
    """Work out what a run needs.

    Args:
        config: the run.
        shape: of its model, from `config.shape(...)`.
        tokens_per_second: if known, for instance from an earlier run; otherwise estimated from the two below.
        peak_flops: what this machine can do (`measure_peak`).
        share_of_peak: how much of that training is assumed to reach.

    Returns:
        Counts, bytes and seconds; None where nothing can be said. Memory is an estimate, not a bound: what the
        allocator and the matrix libraries take comes on top.
    """
    length, depths = config.data.sequence_length, shape.num_nextn_predict_layers
    main, module = shape.parameters(), shape.mtp_parameters() if depths else 0
    trained = main + depths * module
    flops = training_flops_per_token(shape, length)
    if tokens_per_second is None and peak_flops is not None:
        tokens_per_second = peak_flops * share_of_peak / flops

    # 1. How long, how much text.
    steps, tokens, seconds = config.run.steps, None, None
    per_step = config.batch.full * length
    if steps is not None:
        tokens = length * sum(step_rows(config.batch, (step + 1) / steps) for step in range(steps))
        if tokens_per_second is not None:
            seconds = tokens / tokens_per_second
    if config.run.minutes is not None:
        limit = 60 * config.run.minutes
        if seconds is None or seconds > limit:
            seconds = limit if steps is None or tokens_per_second is not None else None
            tokens = None if tokens_per_second is None else int(limit * tokens_per_second)

    # 2. What lies in memory, and what is written at each save.
    bias = shape.n_routed_experts * shape.gate_count if shape.has_router_bias and shape.n_routed_experts else 0
    memory = {
        "weights": FLOAT32 * (trained + bias),
        "gradients": FLOAT32 * trained,
        "moments": 2 * FLOAT32 * trained,
        "activations": activation_bytes(shape, config.batch.rows, length, recompute=config.run.recompute),
        "logits": 2 * FLOAT32 * shape.vocab_size * min(piece_rows(shape.vocab_size), config.batch.rows * length),
    }
    copies = 2 * depths * shape.vocab_size * shape.hidden_size
    return {
        "preset": config.model.preset,
        "parameters": main,
        "parameters_active": shape.parameters(active=True),
        "parameters_mtp": depths * module,
        "parameters_trained": trained,
        "flops_per_token": flops,
        "rows_per_step": config.batch.full,
        "tokens_per_step": per_step,
        "steps": steps,
        "tokens": tokens,
        "tokens_per_second": tokens_per_second,
        "seconds": seconds,
        "memory_bytes": {**memory, "total": sum(memory.values())},
        "state_bytes": FLOAT32 * (3 * trained + bias),
        "model_bytes": FLOAT32 * (trained + bias + copies),
        "states_kept": config.run.keep_last + 1,
        "directory": str(config.directory),
    }


def activation_bytes(shape: ModelConfig, rows: int, length: int, *, recompute: bool) -> int:
    """What one micro-batch keeps for its backward pass, float32.

    Counted on PyTorch's own operators and held against them by a test: per token and layer, norms and residual stream
    6 D, latents 3 (Q + C), heads H (2 (N + R + P) + T), the mask 2 T, a feed-forward 4 times its width, a routed
    expert 2 D more. With recomputation one D per layer, and one whole layer at a time.
    """
    width, inner = shape.hidden_size, shape.moe_intermediate_size
    per_head = 2 * (shape.qk_head_dim + shape.v_head_dim) + length
    attention = 3 * ((shape.q_lora_rank or 0) + shape.kv_lora_rank) + shape.num_attention_heads * per_head + 2 * length

    def layer(number: int) -> int:
        if not shape.is_expert_layer(number):
            return 6 * width + attention + 4 * shape.intermediate_size
        experts = shape.num_experts_per_tok * (4 * inner + 2 * width) + 4 * inner * (shape.n_shared_experts or 0)
        return 6 * width + attention + experts + 3 * (shape.n_routed_experts or 0)

    main, depths = shape.num_hidden_layers, shape.num_nextn_predict_layers
    layers = [layer(number) for number in range(main + depths)]
    kept = len(layers) * width + max(layers) if recompute else sum(layers)
    return FLOAT32 * rows * length * (kept + 2 * width + depths * 8 * width)
