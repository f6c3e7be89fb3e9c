"""What the tests of the native engine share: small shapes, runs in pieces, the model that packed weights stand for."""

import copy
import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from cueva.checkpoint import fp8
from cueva.config import PRESETS, ModelConfig, RopeScaling, model_config
from cueva.engine.native import ModuleWeights, NativeModel, NativeRunner, PagedCache
from cueva.engine.native.plan import chosen_format
from cueva.engine.passes import Work
from cueva.kernels import native
from cueva.kernels.linear import PackedMatrix
from cueva.model import CausalLM
from tests.builders import random_ids, tiny_model

ISAS = native.runnable() or ["none"]
FORMATS = ("f32", "bf16", "fp8", "q8_0", "q4_0", "q4_k")
CLEAR = 1e-5
"""Scores of experts that lie so far apart are not swapped by float32 rounding, which moves them by 1e-6."""
YARN = RopeScaling(factor=40, original_max_position_embeddings=8, mscale=1.0, mscale_all_dim=0.7)
PIECE = tuple[bool, int]
"""Whether rows are of a prompt, and how many."""

# --- shapes -----------------------------------------------------------------------------------------------------------


def in_small(name: str) -> ModelConfig:
    """A preset with every switch as it is and every width small; MTP modules to go with it, however many it has."""
    full = PRESETS[name]
    experts = full.n_routed_experts and min(full.n_routed_experts, 16)
    scaling = full.rope_scaling and replace(full.rope_scaling, original_max_position_embeddings=16)
    return replace(
        full,
        vocab_size=211,
        hidden_size=40,
        intermediate_size=56,
        moe_intermediate_size=24,
        num_hidden_layers=min(full.num_hidden_layers, 3),
        first_k_dense_replace=min(full.first_k_dense_replace, 2),
        num_nextn_predict_layers=max(full.num_nextn_predict_layers, 1),
        num_attention_heads=min(full.num_attention_heads, 3),
        q_lora_rank=full.q_lora_rank and 24,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=experts,
        max_position_embeddings=4096,
        rope_scaling=scaling,
        bos_token_id=0,
        eos_token_id=1,
    )


@st.composite
def native_shapes(draw: st.DrawFn) -> ModelConfig:
    """Draw any small shape: every switch, widths that divide by nothing, and the latents of well-known models."""
    latent, rope = draw(
        st.one_of(
            st.sampled_from([(512, 64), (256, 64), (256, 32), (128, 32)]),
            st.tuples(st.integers(1, 40), st.integers(1, 9).map(lambda pairs: 2 * pairs)),
        )
    )
    groups = draw(st.sampled_from([1, 2, 4]))
    kept = draw(st.integers(1, groups))
    per_group = draw(st.integers(2, 5))
    layers = draw(st.integers(1, 3))
    method, scoring = draw(
        st.sampled_from([("noaux_tc", "sigmoid"), ("noaux_tc", "softmax"), ("greedy", "softmax"),
                         ("group_limited_greedy", "softmax"), ("group_limited_greedy", "sigmoid")])
    )  # fmt: skip
    return model_config(
        "tiny",
        vocab_size=draw(st.integers(1, 70)),
        hidden_size=draw(st.integers(1, 70)),
        intermediate_size=draw(st.integers(1, 50)),
        moe_intermediate_size=draw(st.integers(1, 40)),
        num_hidden_layers=layers,
        first_k_dense_replace=draw(st.integers(0, layers)),
        num_nextn_predict_layers=draw(st.integers(0, 3)),
        num_attention_heads=draw(st.integers(1, 5)),
        q_lora_rank=draw(st.one_of(st.none(), st.integers(1, 40))),
        kv_lora_rank=latent,
        qk_rope_head_dim=rope,
        qk_nope_head_dim=draw(st.integers(1, 40)),
        v_head_dim=draw(st.integers(1, 40)),
        n_routed_experts=draw(st.sampled_from([groups * per_group, None])),
        n_group=groups,
        topk_group=kept,
        num_experts_per_tok=draw(st.integers(1, kept * per_group)),
        n_shared_experts=draw(st.sampled_from([None, 0, 1, 2])),
        topk_method=method,
        scoring_func=scoring,
        norm_topk_prob=draw(st.booleans()),
        rope_interleave=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        rope_scaling=draw(st.sampled_from([None, YARN])),
    )


def clear_model(config: ModelConfig, *, seed: int = 0, std: float = 0.3) -> CausalLM:
    """A model whose biases alone decide which experts are chosen, so that rounding cannot swap two."""
    model = tiny_model(config, seed=seed, std=std)
    generator = torch.Generator().manual_seed(seed)
    for _, gate in model.gates():
        bias_E = gate.e_score_correction_bias
        assert bias_E is not None
        # Powers of two: the sums of a group's best differ as clearly as single ones do.
        bias_E.copy_(3.0 * 2.0 ** torch.randperm(len(bias_E), generator=generator))
    return model


def clear_ids(model: CausalLM, *counts: int, gap: float = CLEAR) -> list[Tensor]:
    """Token ids of some sequences whose choices of experts are clear: the first seed that gives such."""
    for seed in range(100):
        ids = [random_ids(model.config, count, seed=seed + 1000 * i) for i, count in enumerate(counts)]
        if choices_are_clear(model, ids, gap=gap):
            return ids
    raise AssertionError("no seed of a hundred gives clear choices")


def choices_are_clear(model: CausalLM, ids: Sequence[Tensor], *, gap: float = CLEAR) -> bool:
    """Whether no router, of any row of these sequences, had to decide between experts or groups nearly alike."""
    config = model.config
    if config.n_routed_experts is None:
        return True
    gates = model.gates()
    with torch.inference_mode():
        for ids_T in ids:
            for (_, gate), routing in zip(gates, model.states(ids_T[None]).routings, strict=True):
                choice_NE = routing.score_TE
                if gate.e_score_correction_bias is not None:
                    choice_NE = choice_NE + gate.e_score_correction_bias
                if config.topk_method != "greedy" and config.n_group > 1:
                    group_NGY = choice_NE.unflatten(-1, (config.n_group, -1))
                    best = 2 if config.topk_method == "noaux_tc" else 1
                    group_NG = group_NGY.topk(best, -1).values.sum(-1)
                    if _gap(group_NG, config.topk_group) < gap:
                        return False
                    kept_NG = torch.zeros_like(group_NG).scatter(-1, group_NG.topk(config.topk_group, -1).indices, 1.0)
                    choice_NE = torch.where(kept_NG[..., None] > 0, group_NGY, -torch.inf).flatten(-2)
                if _gap(choice_NE, config.num_experts_per_tok) < gap:
                    return False
    return True


def _gap(value_NE: Tensor, chosen: int) -> float:
    if chosen == value_NE.shape[-1]:
        return float("inf")
    best_NY = value_NE.topk(chosen + 1, -1).values
    return float((best_NY[:, -2] - best_NY[:, -1]).min())


# --- runs -------------------------------------------------------------------------------------------------------------


def runner_of(
    model: CausalLM, weights: str = "f32", *, isa: str | None = None, threads: int = 1, **options: Any
) -> NativeRunner:
    """A runner of a model in memory."""
    return settled(NativeModel(ModuleWeights(model), weights, threads=1, isa=isa, **options), threads=threads)


def settled(model: NativeModel, *, threads: int = 1) -> NativeRunner:
    """A runner whose prompts take the form of attention that costs fewer operations, whatever was measured here."""
    runner = NativeRunner(model, threads=threads, prefill_chunk=16)
    model.plan.set_expand_factor(1.0)
    return runner


def poisoned_cache(runner: NativeRunner, positions: int) -> PagedCache:
    """A cache whose pages are there and hold NaN in every cell."""
    cache = runner.new_cache(positions)
    for depth in range(1 + runner.depths):
        cache.reserve(depth, positions)
    for page in range(cache.pages.positions // 64):
        ctypes.memset(cache.pages.address(page), 0xFF, runner.model.plan.page_bytes)
    return cache


def rows_for(cache: PagedCache, ids: Sequence[int] | Tensor, state_ND: Tensor | None = None) -> Work:
    """Rows that continue a sequence in pages."""
    listed = ids.tolist() if isinstance(ids, Tensor) else ids
    return Work(cache, listed, state_ND)  # pyright: ignore[reportArgumentType]


def run(
    runner: NativeRunner, cache: PagedCache, ids: Tensor, pieces: Iterable[PIECE], *, depth: int = 0,
    state_TD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run a sequence in pieces; states (T, D) and logits (T, A) of every row."""
    states, logits, start = [], [], 0
    for prompt, count in pieces:
        count = min(count, len(ids) - start)
        if not count:
            break
        own_ND = None if state_TD is None else state_TD[start : start + count]
        work = rows_for(cache, ids[start : start + count], own_ND)
        runner.model.plan.poison()
        h_TD, logits_TA = runner.step(depth, [work], np.arange(count, dtype=np.int32), prefill=prompt)
        states.append(h_TD)
        logits.append(torch.from_numpy(logits_TA))
        start += count
    assert start == len(ids), "the pieces end before the sequence"
    return torch.cat(states), torch.cat(logits)


def run_all(runner: NativeRunner, cache: PagedCache, ids: Tensor, pieces: Sequence[PIECE]) -> list[Tensor]:
    """Logits of the main model and of every MTP module, in the places where `CausalLM.forward` has them."""
    state_TD, logits_TA = run(runner, cache, ids, pieces)
    found = [logits_TA]
    for depth in range(1, 1 + runner.depths):
        rows = len(ids) - depth
        state_TD, logits_TA = run(runner, cache, ids[depth:], pieces, depth=depth, state_TD=state_TD[:rows])
        found.append(logits_TA)
    return found


def forward(model: CausalLM, ids: Tensor) -> list[Tensor]:
    """The definition: logits of the main model and of every MTP module from one pass."""
    with torch.inference_mode():
        out = model(ids[None])
    return [out.logits[0], *(logits[0] for logits in out.mtp_logits)]


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))


def wobble(model: CausalLM, ids: Tensor) -> float:
    """How far logits move, relatively, when every weight moves by about its last bit: what no float32 engine is below.

    A narrow norm (of one value, it is hardly more than a sign) or a steep softmax makes much of little.
    """
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in moved.parameters():
        parameter.data.mul_(1 + 2.0**-23 * torch.randn(parameter.shape, generator=generator))
    return max(relative_error(a, b) for a, b in zip(forward(moved, ids), forward(model, ids), strict=True))


def ids_for(config: ModelConfig, count: int, seed: int = 0) -> Tensor:
    return random_ids(config, count, seed=seed)


# --- what packed weights stand for ------------------------------------------------------------------------------------


def stored_model(model: CausalLM, weights: str) -> CausalLM:
    """A float32 model with the very numbers that `weights` stores, so that a difference to it is arithmetic alone.

    The numbers come from packed matrices, which tests of the kernels hold to the definition of each format.
    """
    config = model.config
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            if parameter.dim() == 1 or name.endswith("gate.weight"):
                continue
            if parameter.dim() == 3:
                for matrix in parameter:
                    parts = matrix.chunk(2) if "gate_up" in name else [matrix]
                    for part in parts:
                        part.copy_(_numbers(part, weights))
            elif name.endswith("kv_b_proj.weight"):
                parameter.copy_(_raising_numbers(parameter, weights, config))
            else:
                part = "matrix"
                if "embed_tokens" in name:
                    part = "embedding"
                elif "head" in name:
                    part = "head"
                elif "eh_proj" in name:
                    part = "eh_proj"
                parameter.copy_(_numbers(parameter, weights, part))
    return copied


def _numbers(weight_OI: Tensor, weights: str, part: str = "matrix") -> Tensor:
    format = chosen_format(weights, weight_OI.shape[1], part=part)
    packed = PackedMatrix(format, *weight_OI.shape, threads=1)
    if format == "fp8":
        packed.fill_fp8(*fp8.quantise(weight_OI.detach(), block=(128, 128)))
    else:
        packed.fill(weight_OI.detach())
    return packed.unpack()


def _raising_numbers(weight_YC: Tensor, weights: str, config: ModelConfig) -> Tensor:
    """Keys and values of each head are stored apart, keys the other way round; FP8 is one matrix, as in files."""
    if weights == "fp8":
        return _numbers(weight_YC, weights)
    nope = config.qk_nope_head_dim
    out_YC = torch.empty_like(weight_YC)
    for head in range(config.num_attention_heads):
        first = head * (nope + config.v_head_dim)
        keys, values = slice(first, first + nope), slice(first + nope, first + nope + config.v_head_dim)
        out_YC[keys] = _numbers(weight_YC[keys].T, weights).T
        out_YC[values] = _numbers(weight_YC[values], weights)
    return out_YC
