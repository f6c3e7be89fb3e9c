"""How much arithmetic a token costs, and how much this machine can do.

The formula, per token of a row of T positions (letters as in `ModelConfig`; looking up an embedding costs nothing):

    attention weights   D Q + Q H (N + R)  (or D H (N + R)),  D (C + R),  C H (N + P),  H P D
    feed-forward        3 D I in a dense layer;  3 D F (K + shared) + E D in an expert layer
    forward             2 * (weights of all layers + A D of the head) + layers * 2 H (N + R + P) (T + 1) / 2
    each MTP depth      one expert layer as above, 2 * 2 D D for `eh_proj`, and the head once more
    training            3 * forward: the backward pass computes twice as many products

Attention counts the (T + 1) / 2 positions a token sees on average; document borders, which make it fewer, are not
taken into account, and neither is recomputation, which is repeated work rather than useful work.
"""

import statistics
import time
from typing import Final, Literal

import torch

from cueva.config import ModelConfig

PROBE: Final = 1024
"""Rows and columns of the product that `measure_peak` times: large enough for full speed, 30 to 100 ms on one core."""


def forward_flops_per_token(config: ModelConfig, length: int) -> float:
    """Floating-point operations of one token's forward pass, in a row of `length` positions, MTP modules included."""
    width, heads, depths = config.hidden_size, config.num_attention_heads, config.num_nextn_predict_layers
    per_layer_attention = 2 * heads * (config.qk_head_dim + config.v_head_dim) * (length + 1) / 2
    layers = sum(_layer_weights(config, layer) for layer in range(config.num_hidden_layers))
    module = _layer_weights(config, config.num_hidden_layers) + 2 * width * width
    head = config.vocab_size * width
    main = 2 * (layers + head) + config.num_hidden_layers * per_layer_attention
    return main + depths * (2 * (module + head) + per_layer_attention)


def training_flops_per_token(config: ModelConfig, length: int) -> float:
    """Operations of one token's forward and backward pass."""
    return 3 * forward_flops_per_token(config, length)


def measure_peak(precision: Literal["float32", "bfloat16"], *, seconds: float = 0.3) -> float:
    """Return the median speed of square matrix products on the CPU threads torch now uses, in operations per second."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(PROBE, PROBE, generator=generator).to(dtype)
    other = torch.randn(PROBE, PROBE, generator=generator).to(dtype)
    torch.mm(one, other)  # the first call sets the library up
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(one, other)
        times.append(time.perf_counter() - began)
    return 2 * PROBE**3 / statistics.median(times)


def _layer_weights(config: ModelConfig, layer: int) -> int:
    """Weights of the matrices that a token meets in one layer: norms and biases are no products."""
    weights = config.layer_parameters(layer, active=True) - 2 * config.hidden_size - config.kv_lora_rank
    if config.q_lora_rank is not None:
        weights -= config.q_lora_rank
    if config.attention_bias:
        latent = config.kv_lora_rank + config.qk_rope_head_dim
        weights -= (config.q_lora_rank or 0) + latent + config.hidden_size
    return weights
