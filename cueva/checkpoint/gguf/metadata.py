"""What a GGUF file says about a model, in the keys of llama.cpp's architecture `deepseek2`.

llama.cpp reads one family of shapes and has its own opinion about some of them. Each fact below was read in its source
(`src/models/deepseek2.cpp`, `src/llama-model.cpp`, `src/llama-context.cpp` and `src/llama-graph.cpp`, as bundled with
llama-cpp-python 0.3.36) and, where a test can show it, is held by `tests/checkpoint/test_gguf.py`:

* Attention is always absorbed: one key head of width C + R, whose first C values are the value. `key_length` and
  `value_length` are those widths, `key_length_mla` (N + R) and `value_length_mla` (P) the ones of a head.
* `attention.q_lora_rank` 0 means queries without a latent. With 26 or 27 layers (or 48 and 128,256 tokens) the key is
  not read and there is never a latent: such a model with one cannot be written.
* There is one epsilon for all norms, those of the latents included.
* There are no biases on projections.
* A shared expert is always added; a model without one needs one of zeros.
* Groups of experts count by their two best choices, biased or not, and a group count asserts that fewer are kept than
  there are. The sum of weights is held above 6e-5 before dividing.
* YaRN's frequencies are those of the published code (borders rounded outwards). Scores are multiplied by
  (0.1 m ln s + 1) ** 2 with m = 10 * `yarn_log_multiplier`, and cosines and sines end up unscaled if m is given; if it
  is not, `rope.scaling.attn_factor` has to undo a factor of 0.1 ln s + 1. A factor of our own on cosines and sines goes
  into the rotary key's rows (see `tensors.py`).
* The rotary layout is neighbouring pairs.

ik_llama.cpp (ik-llama-cpp-python 0.1.5) opens the same files only for the published widths (C 512, R 64, heads a
multiple of 4; otherwise it stops the process), needs a query latent unless there are 26 or 27 layers, needs an
`output.weight`, and knows no groups of experts.
"""

import math
from typing import Final

from cueva.config import LATENT_NORM_EPS, ModelConfig
from cueva.errors import CheckpointError

ARCHITECTURE: Final = "deepseek2"
_NEVER_WITH_QUERY_LATENT: Final = (26, 27)

Value = str | int | float | bool | list[str] | list[int]
"""What a key may hold; written as a string, uint32, float32, bool or an array of the first two (int32 in arrays)."""


def refuse_what_llama_cpp_computes_differently(config: ModelConfig, *, mtp: bool) -> None:
    """Raise for a model that would load and answer something else, or stop the process that loads it.

    Args:
        config: the model's shape.
        mtp: whether the drafter is to be in the file.

    Raises:
        CheckpointError: names the key and why.
    """
    layers, groups = config.num_hidden_layers, config.n_group
    why = None
    if config.attention_bias:
        why = "`attention_bias` is true, but llama.cpp has no biases on these projections"
    elif config.q_lora_rank is not None and (
        layers in _NEVER_WITH_QUERY_LATENT or (layers == 48 and config.vocab_size == 128_256)
    ):
        why = f"llama.cpp reads no `q_lora_rank` from a model of {layers} layers, but here it is {config.q_lora_rank}"
    elif _groups_matter(config) and config.topk_method == "group_limited_greedy":
        why = f"{groups} groups count by their best expert (`group_limited_greedy`), but in llama.cpp by their two best"
    elif config.rope_scaling is not None and not config.rope_scaling.truncate:
        why = "`rope_scaling.truncate` is false, but llama.cpp always rounds the borders to whole pairs"
    elif mtp and config.num_nextn_predict_layers != 1:
        why = f"llama.cpp drafts with exactly one MTP module, but the model has {config.num_nextn_predict_layers}"
    elif mtp and (config.q_lora_rank is None or config.n_routed_experts is None):
        why = "llama.cpp drafts only with modules that have experts and a query latent (`q_lora_rank`)"
    if why is not None:
        raise CheckpointError(
            f"this model cannot be written as GGUF: {why}",
            way_out="try mtp=False" if why.startswith("llama.cpp d") else None,
        )


def departures(config: ModelConfig) -> tuple[str, ...]:
    """Say where llama.cpp will compute something slightly different; a sentence each."""
    found = []
    if config.rms_norm_eps != LATENT_NORM_EPS:
        found.append(
            f"llama.cpp uses the epsilon {config.rms_norm_eps:g} in the norms of the latents too, where the model has "
            f"{LATENT_NORM_EPS:g}"
        )
    return tuple(found)


def metadata(config: ModelConfig, *, mtp: bool) -> dict[str, Value]:
    """The keys of the architecture, in the order they are written; without `general.` and `tokenizer.`."""
    latent, rope, nope = config.kv_lora_rank, config.qk_rope_head_dim, config.qk_nope_head_dim
    modules = config.num_nextn_predict_layers if mtp else 0
    has_experts = config.n_routed_experts is not None
    keys: dict[str, Value] = {
        "block_count": config.num_hidden_layers + modules,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.q_lora_rank": config.q_lora_rank or 0,
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rope,
        "attention.value_length": latent,
        "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": rope,
        "rope.freq_base": float(config.rope_theta),
        "leading_dense_block_count": config.first_k_dense_replace if has_experts else config.num_hidden_layers,
        # Both are read even if every layer is dense.
        "expert_feed_forward_length": config.moe_intermediate_size or config.intermediate_size,
        "expert_shared_count": (config.n_shared_experts or 1) if has_experts else 0,
    }
    if modules:
        keys["nextn_predict_layers"] = modules
    if config.n_routed_experts is not None:
        keys["expert_count"] = config.n_routed_experts
        keys["expert_used_count"] = config.num_experts_per_tok
        keys["expert_weights_scale"] = float(config.routed_scaling_factor)
        keys["expert_weights_norm"] = config.norm_topk_prob
        keys["expert_gating_func"] = {"softmax": 1, "sigmoid": 2}[config.scoring_func]
        if _groups_matter(config):
            keys["expert_group_count"] = config.n_group
            keys["expert_group_used_count"] = config.topk_group
    keys.update(_yarn(config))
    return {f"{ARCHITECTURE}.{key}": value for key, value in keys.items()}


def _groups_matter(config: ModelConfig) -> bool:
    """Whether some expert is out of reach of some token; if all groups are kept, there might as well be none."""
    if config.n_routed_experts is None or config.topk_method == "greedy":
        return False
    return config.topk_group < config.n_group


def _yarn(config: ModelConfig) -> dict[str, Value]:
    yarn = config.rope_scaling
    if yarn is None:
        return {}
    keys: dict[str, Value] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(yarn.factor),
        "rope.scaling.original_context_length": yarn.original_max_position_embeddings,
        "rope.scaling.yarn_beta_fast": float(yarn.beta_fast),
        "rope.scaling.yarn_beta_slow": float(yarn.beta_slow),
    }
    if yarn.mscale_all_dim:
        keys["rope.scaling.yarn_log_multiplier"] = 0.1 * yarn.mscale_all_dim
    else:
        keys["rope.scaling.attn_factor"] = 1 / (0.1 * math.log(yarn.factor) + 1)
    return keys
