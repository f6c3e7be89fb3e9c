"""What a pass has to read and to compute, counted from the config alone: the fair bound that a measurement is held to.

A decoding step reads every weight that a token meets once. Attention over the cached rows is arithmetic (each row
serves all heads, so it is bound by the matrix units and its reading hides behind them). So the least time of a step is

    bytes of weights / read bandwidth + attention FLOP / matrix peak

with bandwidth and peak from the same minute. The cached rows' own bytes are left out, which makes the bound a little
lower (6% at 2048 cached positions of the benchmark shape in bf16) and the share that is printed a little smaller.
For several sequences at once the experts that any of them chose count, and attention once per sequence.

A prefill is bound by arithmetic: all products of the prompt's tokens with the weights they meet (the head only for the
last), and causal attention in its expanded form.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cueva.config import ModelConfig
from cueva.engine.native.plan import chosen_format
from cueva.kernels.quant import BLOCK_FORMATS

FP8_TILE = 128 * 128
"""Weights that share one float32 scale."""


@dataclass(frozen=True)
class Matrices:
    """Equal matrices that a token, or several, are multiplied with."""

    part: str
    """What they are: "attention", "dense", "experts", "shared", "router" or "head"."""
    rows: int
    columns: int
    count: float = 1
    """How many; a fraction where it is an average."""

    @property
    def weights(self) -> float:
        """Numbers in them."""
        return self.rows * self.columns * self.count


def touched_experts(config: ModelConfig, tokens: int) -> float:
    """Experts of a layer that at least one of `tokens` tokens chose, on average if they choose at random."""
    if config.n_routed_experts is None:
        return 0.0
    experts, chosen = config.n_routed_experts, config.num_experts_per_tok
    return experts * (1 - (1 - chosen / experts) ** tokens)


def matrices(config: ModelConfig, *, touched: float | None = None, head: bool = True) -> Iterator[Matrices]:
    """List what a decoding step of the main model multiplies with; the embedding is looked up, not multiplied.

    Args:
        config: the model's shape.
        touched: routed experts of a layer that are read; None: those that one token chooses.
        head: whether logits are wanted.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    nope, rope, value, latent = (
        config.qk_nope_head_dim,
        config.qk_rope_head_dim,
        config.v_head_dim,
        config.kv_lora_rank,
    )
    for layer in range(config.num_hidden_layers):
        if config.q_lora_rank is None:
            yield Matrices("attention", heads * (nope + rope), width)
        else:
            yield Matrices("attention", config.q_lora_rank, width)
            yield Matrices("attention", heads * (nope + rope), config.q_lora_rank)
        yield Matrices("attention", latent + rope, width)
        yield Matrices("attention", latent, nope, heads)
        yield Matrices("attention", value, latent, heads)
        yield Matrices("attention", width, heads * value)
        if not config.is_expert_layer(layer):
            yield from _feed_forward("dense", width, config.intermediate_size, 1)
            continue
        assert config.n_routed_experts is not None
        inner = config.moe_intermediate_size
        yield Matrices("router", config.n_routed_experts, width)
        yield from _feed_forward("experts", width, inner, config.num_experts_per_tok if touched is None else touched)
        if config.n_shared_experts:
            yield from _feed_forward("shared", width, config.n_shared_experts * inner, 1)
    if head:
        yield Matrices("head", config.vocab_size, width)


def _feed_forward(part: str, width: int, inner: int, count: float) -> Iterator[Matrices]:
    yield Matrices(part, inner, width, 2 * count)
    yield Matrices(part, width, inner, count)


def matrix_bytes(some: Matrices, weights: str) -> float:
    """Memory of matrices in a format of the native engine ("bf16", "q4_0", ...), its scales included."""
    if some.part == "router":
        return 4 * some.weights
    format = chosen_format(weights, some.columns, part="head" if some.part == "head" else "matrix")
    if format in BLOCK_FORMATS:
        return some.count * some.rows * BLOCK_FORMATS[format].row_bytes(some.columns)
    if format == "fp8":
        return some.weights * (1 + 4 / FP8_TILE)
    return some.weights * {"f32": 4, "bf16": 2}[format]


def step_bytes(config: ModelConfig, weights: str, *, touched: float | None = None) -> float:
    """Bytes of weights that a decoding step reads; norms and biases, below a thousandth, are not counted.

    Examples:
        >>> from benchmarks.shapes import BENCH
        >>> f"{step_bytes(BENCH, 'bf16') / 1e6:.0f} MB"
        '422 MB'
    """
    return sum(matrix_bytes(some, weights) for some in matrices(config, touched=touched))


def cache_bytes(config: ModelConfig, weights: str, cached: int) -> int:
    """Bytes of the cached rows that a step of one sequence reads: float32 beside float32 weights, else bf16."""
    return cached * config.cache_values_per_token * (4 if weights == "f32" else 2)


def attention_flop(config: ModelConfig, cached: int, tokens: int = 1) -> float:
    """Operations of absorbed attention for `tokens` rows, each over `cached` rows and itself, all layers together.

    A score is a product of width C + R, a mixture one of width C: 2 H (2 C + R) for each row attended to.
    """
    row = 2 * config.num_attention_heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    return config.num_hidden_layers * row * (cached + 1) * tokens


def prefill_flop(config: ModelConfig, tokens: int) -> float:
    """Operations of one prompt: projections and experts for every token, the head for one, expanded attention."""
    products = sum(2 * some.weights for some in matrices(config, head=False)) * tokens
    seen = tokens * (tokens + 1) / 2
    width = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    attention = 2 * config.num_attention_heads * width * seen * config.num_hidden_layers
    return products + attention + 2 * config.vocab_size * config.hidden_size


def step_bound(bytes_read: float, flop: float, bandwidth: float, peak: float) -> float:
    """Least seconds of a step: reading the weights, then attending (see the top of this file)."""
    return bytes_read / bandwidth + flop / peak
