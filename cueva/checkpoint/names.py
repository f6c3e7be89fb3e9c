"""Which tensors a model has on disk, with their shapes, and where each lies in memory.

The names are the published ones. Disk and memory differ in two places only: the experts of a layer are stacked in
memory and separate on disk, and every MTP module's file copies of the embedding and of the head are the main model's
own in memory.

Letters as everywhere: A vocabulary, D width, I dense inner width, F expert inner width, E experts, H heads, X = N + R
query head width, P value head width, Q and C latent widths, R rotary width, L main layers.

Source: the inventory of the released DeepSeek-V3 files (91,991 tensors, 688,574,839,360 bytes in FP8), which this one
equals.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cueva.config import ModelConfig

SCALE_SUFFIX: Final = "_scale_inv"
"""`X.weight` in FP8 has its block scales in `X.weight_scale_inv`. Despite the name they multiply."""

EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor on disk."""

    name: str
    shape: tuple[int, ...]
    parameter: str
    """The parameter or buffer in memory that holds it."""
    expert: int | None = None
    """Its place in a stacked parameter; None: it is the whole parameter."""
    rows: tuple[int, int] | None = None
    """Rows [start, stop) of that place; None: all of them."""
    fp8: bool = False
    """Whether the FP8 files hold it in blocks of float8 with a scale each."""
    copy_of: str | None = None
    """What an MTP module's copy repeats. The copy may be absent; its own `parameter` exists only if it differs."""

    @property
    def is_router_bias(self) -> bool:
        """Kept in float32 whatever the model's dtype."""
        return self.name.endswith(".e_score_correction_bias")

    @property
    def is_router_weight(self) -> bool:
        """float32 in memory; on disk in the model's dtype where that loses nothing."""
        return self.name.endswith(".mlp.gate.weight")


def inventory(config: ModelConfig) -> dict[str, TensorEntry]:
    """Every tensor a model directory holds, by name, in the order of the layers. FP8 scales are not listed.

    With tied embeddings there is no `lm_head.weight`; the MTP copies are listed all the same.
    """
    entries = [TensorEntry(EMBEDDING, (config.vocab_size, config.hidden_size), EMBEDDING)]
    for layer in range(config.num_hidden_layers + config.num_nextn_predict_layers):
        entries += _layer(config, layer)
    entries.append(_plain("model.norm.weight", config.hidden_size))
    if not config.tie_word_embeddings:
        entries.append(_plain(HEAD, config.vocab_size, config.hidden_size))
    return {entry.name: entry for entry in entries}


def mtp_prefix(config: ModelConfig, depth: int) -> str:
    """What the names of MTP module `depth` (1, 2, ..) begin with: the layers right behind the main ones."""
    return f"model.layers.{config.num_hidden_layers + depth - 1}."


def scale_name(name: str) -> str:
    """The name of an FP8 tensor's block scales."""
    return name + SCALE_SUFFIX


def scale_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of blocks; the last ones may be ragged, so both round up."""
    rows, columns = shape
    return -(-rows // block[0]), -(-columns // block[1])


# --- private ----------------------------------------------------------------------------------------------------------


def _plain(name: str, *shape: int, fp8: bool = False) -> TensorEntry:
    return TensorEntry(name, shape, name, fp8=fp8)


def _layer(config: ModelConfig, layer: int) -> Iterator[TensorEntry]:
    prefix, width = f"model.layers.{layer}.", config.hidden_size
    yield _plain(f"{prefix}input_layernorm.weight", width)
    yield _plain(f"{prefix}post_attention_layernorm.weight", width)
    yield from _attention(config, f"{prefix}self_attn.")
    if config.is_expert_layer(layer):
        yield from _experts(config, f"{prefix}mlp.")
    else:
        yield from _feed_forward(f"{prefix}mlp.", width, config.intermediate_size)
    if layer >= config.num_hidden_layers:
        vocabulary = (config.vocab_size, width)
        yield _plain(f"{prefix}enorm.weight", width)
        yield _plain(f"{prefix}hnorm.weight", width)
        yield _plain(f"{prefix}eh_proj.weight", width, 2 * width)
        yield _plain(f"{prefix}shared_head.norm.weight", width)
        head, embedding = f"{prefix}shared_head.head.weight", f"{prefix}embed_tokens.weight"
        original = EMBEDDING if config.tie_word_embeddings else HEAD
        yield TensorEntry(head, vocabulary, head, copy_of=original)
        yield TensorEntry(embedding, vocabulary, embedding, copy_of=EMBEDDING)


def _attention(config: ModelConfig, prefix: str) -> Iterator[TensorEntry]:
    width, heads, query = config.hidden_size, config.num_attention_heads, config.q_lora_rank
    latent, key_value = config.kv_lora_rank, config.qk_nope_head_dim + config.v_head_dim
    biased = {"kv_a_proj_with_mqa": latent + config.qk_rope_head_dim, "o_proj": width}
    if query is None:
        yield _plain(f"{prefix}q_proj.weight", heads * config.qk_head_dim, width, fp8=True)
    else:
        biased["q_a_proj"] = query
        yield _plain(f"{prefix}q_a_proj.weight", query, width, fp8=True)
        yield _plain(f"{prefix}q_a_layernorm.weight", query)
        yield _plain(f"{prefix}q_b_proj.weight", heads * config.qk_head_dim, query, fp8=True)
    yield _plain(f"{prefix}kv_a_proj_with_mqa.weight", latent + config.qk_rope_head_dim, width, fp8=True)
    yield _plain(f"{prefix}kv_a_layernorm.weight", latent)
    yield _plain(f"{prefix}kv_b_proj.weight", heads * key_value, latent, fp8=True)
    yield _plain(f"{prefix}o_proj.weight", width, heads * config.v_head_dim, fp8=True)
    if config.attention_bias:
        for projection, length in biased.items():
            yield _plain(f"{prefix}{projection}.bias", length)


def _feed_forward(prefix: str, width: int, inner: int) -> Iterator[TensorEntry]:
    yield _plain(f"{prefix}gate_proj.weight", inner, width, fp8=True)
    yield _plain(f"{prefix}up_proj.weight", inner, width, fp8=True)
    yield _plain(f"{prefix}down_proj.weight", width, inner, fp8=True)


def _experts(config: ModelConfig, prefix: str) -> Iterator[TensorEntry]:
    assert config.n_routed_experts is not None
    experts, width, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
    yield _plain(f"{prefix}gate.weight", experts, width)
    if config.has_router_bias:
        yield _plain(f"{prefix}gate.e_score_correction_bias", experts)
    # In memory (E, 2F, D), the rows of gate_proj before those of up_proj, and (E, D, F).
    stacked, down = f"{prefix}experts.gate_up_proj", f"{prefix}experts.down_proj"
    for e in range(experts):
        own = f"{prefix}experts.{e}."
        yield TensorEntry(f"{own}gate_proj.weight", (inner, width), stacked, e, (0, inner), fp8=True)
        yield TensorEntry(f"{own}up_proj.weight", (inner, width), stacked, e, (inner, 2 * inner), fp8=True)
        yield TensorEntry(f"{own}down_proj.weight", (width, inner), down, e, fp8=True)
    if config.n_shared_experts:
        yield from _feed_forward(f"{prefix}shared_experts.", width, config.n_shared_experts * inner)
