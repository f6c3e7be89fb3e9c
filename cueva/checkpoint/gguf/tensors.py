"""Which tensors a GGUF file of architecture `deepseek2` holds, and how each is made from the model's.

llama.cpp's names are short (`blk.3.attn_q_a.weight`), its experts are stacked as ours are, `kv_b_proj` is split into
the key's part, transposed, and the value's, and rotary pairs are neighbours. Its own converter does the same.

Letters as everywhere: H heads, N and R head widths without and with rotary, P value width, C latent, D width, F expert
width, E experts. Shapes are given as PyTorch has them; GGUF lists them the other way round.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cueva.config import ModelConfig
from cueva.model import CausalLM
from cueva.model.attention import Attention
from cueva.model.block import Block
from cueva.model.experts import FeedForward, MixtureOfExperts
from cueva.model.mtp import MTPModule
from cueva.model.rotary import attention_factor


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    """Gives the values, in the model's dtype; called once, when they are written."""
    float32: bool = False
    """Norms, routers and their biases: kept in float32 whatever the file's type."""


def gguf_tensors(model: CausalLM, *, mtp: bool) -> Iterator[GGUFTensor]:
    """List the tensors of the main model, and of its MTP module if it is asked for, in the order of the layers."""
    config = model.config
    yield _matrix("token_embd.weight", model.model.embed_tokens.weight)
    for layer, block in enumerate(model.model.layers):
        if layer >= config.num_hidden_layers and not mtp:
            break
        assert isinstance(block, Block)
        prefix = f"blk.{layer}."
        yield _exact(f"{prefix}attn_norm.weight", block.input_layernorm.weight)
        yield from _attention(prefix, block.self_attn, config)
        yield _exact(f"{prefix}ffn_norm.weight", block.post_attention_layernorm.weight)
        if isinstance(block.mlp, FeedForward):
            yield from _feed_forward(prefix, "", block.mlp)
        else:
            assert isinstance(block.mlp, MixtureOfExperts)
            yield from _experts(prefix, block.mlp, config)
        if isinstance(block, MTPModule):
            yield from _module(prefix, block)
    yield _exact("output_norm.weight", model.model.norm.weight)
    if not config.tie_word_embeddings:
        yield _matrix("output.weight", model.lm_head.weight)


# --- private ----------------------------------------------------------------------------------------------------------


def _matrix(name: str, weight: Tensor) -> GGUFTensor:
    return GGUFTensor(name, tuple(weight.shape), lambda: weight.detach())


def _exact(name: str, weight: Tensor) -> GGUFTensor:
    return GGUFTensor(name, tuple(weight.shape), lambda: weight.detach(), float32=True)


def _attention(prefix: str, attention: Attention, config: ModelConfig) -> Iterator[GGUFTensor]:
    heads, nope, rope = attention.heads, attention.nope, attention.rope
    latent, value = attention.latent_width, attention.value

    def queries(weight: Tensor) -> Callable[[], Tensor]:
        def make() -> Tensor:
            qn_HND, qr_HRD = weight.detach().unflatten(0, (heads, -1)).split([nope, rope], dim=1)
            return torch.cat([qn_HND, _neighbours(qr_HRD, config)], dim=1).flatten(0, 1)

        return make

    def latents() -> Tensor:
        latent_CD, key_RD = attention.kv_a_proj_with_mqa.weight.detach().split([latent, rope])
        # Scores hold the factor of cosines and sines twice, once from each side; the rotary key takes both.
        factor = attention_factor(config) ** 2
        key_RD = key_RD if factor == 1 else (key_RD.float() * factor).to(key_RD.dtype)
        return torch.cat([latent_CD, _neighbours(key_RD, config)])

    def up() -> tuple[Tensor, Tensor]:
        k_HNC, v_HPC = attention.kv_b_proj.weight.detach().unflatten(0, (heads, -1)).split([nope, value], dim=1)
        return k_HNC, v_HPC

    if attention.has_query_latent:
        yield _matrix(f"{prefix}attn_q_a.weight", attention.q_a_proj.weight)
        yield _exact(f"{prefix}attn_q_a_norm.weight", attention.q_a_layernorm.weight)
        q_b = attention.q_b_proj.weight
        yield GGUFTensor(f"{prefix}attn_q_b.weight", tuple(q_b.shape), queries(q_b))
    else:
        q = attention.q_proj.weight
        yield GGUFTensor(f"{prefix}attn_q.weight", tuple(q.shape), queries(q))
    kv_a = attention.kv_a_proj_with_mqa.weight
    yield GGUFTensor(f"{prefix}attn_kv_a_mqa.weight", tuple(kv_a.shape), latents)
    yield _exact(f"{prefix}attn_kv_a_norm.weight", attention.kv_a_layernorm.weight)
    yield GGUFTensor(f"{prefix}attn_k_b.weight", (heads, latent, nope), lambda: up()[0].transpose(1, 2))
    yield GGUFTensor(f"{prefix}attn_v_b.weight", (heads, value, latent), lambda: up()[1])
    yield _matrix(f"{prefix}attn_output.weight", attention.o_proj.weight)


def _neighbours(rows_XRD: Tensor, config: ModelConfig) -> Tensor:
    """Put the rows of each rotary pair beside each other, if they lie half a width apart; the scores are the same."""
    if config.rope_interleave:
        return rows_XRD
    return rows_XRD.unflatten(-2, (2, -1)).transpose(-3, -2).flatten(-3, -2)


def _feed_forward(prefix: str, suffix: str, ffn: FeedForward) -> Iterator[GGUFTensor]:
    yield _matrix(f"{prefix}ffn_gate{suffix}.weight", ffn.gate_proj.weight)
    yield _matrix(f"{prefix}ffn_up{suffix}.weight", ffn.up_proj.weight)
    yield _matrix(f"{prefix}ffn_down{suffix}.weight", ffn.down_proj.weight)


def _experts(prefix: str, mixture: MixtureOfExperts, config: ModelConfig) -> Iterator[GGUFTensor]:
    gate_up_EGD, down_EDF = mixture.experts.gate_up_proj.detach(), mixture.experts.down_proj.detach()
    inner, width = config.moe_intermediate_size, config.hidden_size
    yield _exact(f"{prefix}ffn_gate_inp.weight", mixture.gate.weight)
    if mixture.gate.e_score_correction_bias is not None:
        yield _exact(f"{prefix}exp_probs_b.bias", mixture.gate.e_score_correction_bias)
    gate_EFD, up_EFD = gate_up_EGD[:, :inner], gate_up_EGD[:, inner:]
    yield _matrix(f"{prefix}ffn_gate_exps.weight", gate_EFD)
    yield _matrix(f"{prefix}ffn_up_exps.weight", up_EFD)
    yield _matrix(f"{prefix}ffn_down_exps.weight", down_EDF)
    if mixture.shared_experts is not None:
        yield from _feed_forward(prefix, "_shexp", mixture.shared_experts)
    else:
        # llama.cpp always adds a shared expert.
        for name, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
            zeros = _zeros(*shape)
            yield GGUFTensor(f"{prefix}ffn_{name}_shexp.weight", shape, zeros)


def _zeros(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.zeros(shape)


def _module(prefix: str, module: MTPModule) -> Iterator[GGUFTensor]:
    yield _matrix(f"{prefix}nextn.eh_proj.weight", module.eh_proj.weight)
    yield _exact(f"{prefix}nextn.enorm.weight", module.enorm.weight)
    yield _exact(f"{prefix}nextn.hnorm.weight", module.hnorm.weight)
    yield _exact(f"{prefix}nextn.shared_head_norm.weight", module.shared_head.norm.weight)
    if module.embed_tokens is not None:
        yield _matrix(f"{prefix}nextn.embed_tokens.weight", module.embed_tokens.weight)
    if module.shared_head.head is not None:
        yield _matrix(f"{prefix}nextn.shared_head_head.weight", module.shared_head.head.weight)
