"""Keys of published configs that `ModelConfig` has no field for: harmless ones, and ones that name a mechanism we lack.

What is in neither table is unknown: it is kept, written back and reported by name.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final


def words(*lines: str) -> frozenset[str]:
    """A set of names, from lines that are pleasant to read."""
    return frozenset(word for line in lines for word in line.split())


HARMLESS: Final = words(
    # Training keys of the remote code, and hints for engines; none touches a forward pass.
    "aux_loss_alpha seq_aux ep_size pretraining_tp use_cache transformers_version router_aux_loss_coef",
    "router_jitter_noise output_router_logits embedding_initializer_range init_method_std unsloth_version "
    "unsloth_fixed",
    # What every configuration of `transformers` may carry.
    "_name_or_path name_or_path _attn_implementation _attn_implementation_autoset attn_implementation",
    "experts_implementation return_dict output_hidden_states output_attentions torchscript id2label label2id "
    "num_labels",
    "problem_type task_specific_params chunk_size_feed_forward finetuning_task prefix tokenizer_class sep_token_id",
    "decoder_start_token_id bad_words_ids use_return_dict keys_to_ignore_at_inference _commit_hash license",
    # Generation settings that older files keep in config.json.
    "do_sample temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size min_length",
    "max_length num_beams num_beam_groups diversity_penalty early_stopping num_return_sequences",
    "exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens",
    "remove_invalid_values encoder_no_repeat_ngram_size return_dict_in_generate output_scores",
)

# `auto_map` names code to run, which is never run; the two widths follow from others, and writers only repeat them.
DROPPED: Final = words("auto_map head_dim qk_head_dim")

_Off = Callable[[Any], bool]


def _empty(value: Any) -> bool:
    return value in (None, False, 0) or (isinstance(value, list | tuple | dict | str) and not value)


def _one(value: Any) -> bool:
    return value is None or value == 1


def _absent(value: Any) -> bool:
    return value is None


MECHANISMS: Final[Mapping[str, tuple[str, _Off]]] = {
    # key: the mechanism it names, and which values mean that it is off.
    "sliding_window": ("sliding-window attention", _empty),
    "use_sliding_window": ("sliding-window attention", _empty),
    "attention_chunk_size": ("chunked attention", _empty),
    "index_topk": ("sparse attention with an indexer (DSA)", _empty),
    "index_n_heads": ("sparse attention with an indexer (DSA)", _empty),
    "index_head_dim": ("sparse attention with an indexer (DSA)", _empty),
    "indexer_types": ("sparse attention with an indexer (DSA)", _empty),
    "compress_rates": ("compressed attention", _empty),
    "compress_ratios": ("compressed attention", _empty),
    "compress_rope_theta": ("compressed attention", _empty),
    "linear_attn_config": ("linear attention", _empty),
    "linear_num_heads": ("linear attention", _empty),
    "linear_head_dim": ("linear attention", _empty),
    "linear_conv_kernel_dim": ("linear attention", _empty),
    "full_attention_interval": ("linear attention", _empty),
    "layer_group_size": ("linear attention", _empty),
    "attn_type_list": ("linear attention", _empty),
    "hybrid_override_pattern": ("a hybrid of attention and state-space layers", _empty),
    "ssm_cfg": ("state-space layers", _empty),
    "mamba_d_state": ("state-space layers", _empty),
    "attention_sink": ("attention sinks", _empty),
    "add_full_attention_sink_bias": ("attention sinks", _empty),
    "attn_output_gate": ("gated attention", _empty),
    "use_gated_attention": ("gated attention", _empty),
    "o_lora_rank": ("a low-rank output projection", _empty),
    "o_groups": ("a low-rank output projection", _empty),
    "use_qk_norm": ("norms on queries and keys", _empty),
    "qk_layernorm": ("norms on queries and keys", _empty),
    "clip_qkv": ("clipped queries, keys and values", _empty),
    "attn_logit_softcapping": ("capped attention scores", _empty),
    "final_logit_softcapping": ("capped logits", _empty),
    "partial_rotary_factor": ("rotary positions on a part of the rotary width", _one),
    "alibi": ("ALiBi positions", _empty),
    "hc_mult": ("hyper-connections", _one),
    "num_hyper_connections": ("hyper-connections", _one),
    "hyper_connection_rate": ("hyper-connections", _one),
    "mhc_expansion_rate": ("hyper-connections", _one),
    "parallel_attn": ("attention and feed-forward in parallel", _empty),
    "swiglu_limit": ("a clamped SwiGLU", _empty),
    "mlp_bias": ("biases in the feed-forward", _empty),
    "zero_expert_num": ("experts that do nothing (zero experts)", _empty),
    "mlp_only_layers": ("dense layers between expert layers", _empty),
    "decoder_sparse_step": ("expert layers at intervals", _one),
    "interleave_moe_layer_step": ("expert layers at intervals", _one),
    "num_hash_layers": ("routing by hash", _empty),
    "moe_latent_size": ("experts in a latent space", _empty),
    "use_shared_expert_gate": ("gated shared experts", _empty),
    "n_gram_vocab_size": ("n-gram embeddings", _empty),
    "ngram_vocab_size_ratio": ("n-gram embeddings", _empty),
    "engram_config": ("n-gram embeddings", _empty),
    "scale_emb": ("a factor on the embeddings", _one),
    "embedding_multiplier": ("a factor on the embeddings", _one),
    "scale_depth": ("a factor on the residual stream", _absent),
    "residual_multiplier": ("a factor on the residual stream", _one),
    "dim_model_base": ("a factor on the logits", _absent),
    "logit_scale": ("a factor on the logits", _one),
    "logits_scaling": ("a factor on the logits", _one),
    "logits_mup_width_multiplier": ("a factor on the logits", _one),
    "attention_multiplier": ("a softmax scale of its own", _absent),
    "mla_scale_q_lora": ("a factor on the latents", _empty),
    "mla_scale_kv_lora": ("a factor on the latents", _empty),
    "mtp_hidden_states_first": ("an MTP projection that reads the state's columns first", _empty),
    "chain_hidden_post_norm": ("MTP modules chained without their own final norms", _absent),
    "is_causal": ("attention to later positions", lambda value: value in (None, True)),
    "use_bidirectional_attention": ("attention to later positions", _empty),
    "is_encoder_decoder": ("an encoder and a decoder", _empty),
    "is_decoder": ("an encoder", lambda value: value in (None, True, False)),
    "add_cross_attention": ("cross attention", _empty),
    "cross_attention_hidden_size": ("cross attention", _empty),
    "tie_encoder_decoder": ("an encoder and a decoder", _empty),
    "pruned_heads": ("removed attention heads", _empty),
    "per_layer_config": ("layers of different shapes", _empty),
    "text_config": ("a model of several modalities", _empty),
    "vision_config": ("images", _empty),
    "audio_config": ("sound", _empty),
    "compression_config": ("compressed-tensors weights", _empty),
}


def mechanism_we_lack(key: str, value: Any, *, main_layers: int, dense_layers: int) -> str | None:
    """Name the mechanism that a key with this value asks for, if it is one cueva does not have."""
    if key == "layer_types":
        odd = (
            sorted({str(kind) for kind in value or () if kind != "full_attention"})
            if isinstance(value, list)
            else [value]
        )
        return f"layers of kind {', '.join(map(repr, odd))}" if value is not None and odd else None
    if key == "mlp_layer_types":
        # Says again what `first_k_dense_replace` says, or something that we lack.
        kinds = ["dense"] * dense_layers + ["sparse"] * (main_layers - dense_layers)
        return None if value is None or value == kinds else "dense and expert layers in another order"
    if key not in MECHANISMS:
        return None
    mechanism, is_off = MECHANISMS[key]
    return None if is_off(value) else mechanism


KNOWN_OFF: Final = frozenset(MECHANISMS) | {"layer_types", "mlp_layer_types"}
"""Keys that may stand in a file with their mechanism off: kept like the harmless ones."""
