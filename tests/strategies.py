"""Hypothesis strategies that speak the domain: routing cases, model shapes."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from cueva.config import ModelConfig, model_config


@dataclass(frozen=True)
class RouteCase:
    """Arguments of `route`, drawn so that rounding cannot swap two experts."""

    logit_TE: Tensor
    bias_E: Tensor | None
    how: dict[str, Any]


@st.composite
def routings(draw: st.DrawFn, *, with_bias: bool = True, sigmoid: bool | None = None) -> RouteCase:
    """Draw a routing: any groups that fit, choices clearly apart, biases down to minus two."""
    groups = draw(st.sampled_from([1, 2, 4]))
    per_group = draw(st.sampled_from([2, 3, 8]))
    experts = groups * per_group
    kept = draw(st.integers(1, groups))
    chosen = draw(st.integers(1, min(kept * per_group, 6)))
    tokens = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    # Scores on a grid, shuffled per token; each bias sits at its own fraction of a grid step. So no two choices,
    # and no two sums of a group's best, come closer than step / 2E, a hundred times what float32 rounds.
    use_sigmoid = draw(st.booleans()) if sigmoid is None else sigmoid
    grid_E = torch.linspace(0.05, 0.95, experts, dtype=torch.float64)
    if not use_sigmoid:
        grid_E = grid_E / grid_E.sum()
    score_TE = torch.stack([grid_E[torch.randperm(experts, generator=generator)] for _ in range(tokens)])
    bias_E = None
    if with_bias:
        whole_E = torch.randint(-40, 5, (experts,), generator=generator).double()
        bias_E = ((whole_E + torch.arange(experts) / (2 * experts)) * (grid_E[1] - grid_E[0])).float()
    logit_TE = (score_TE.logit() if use_sigmoid else score_TE.log()).float()
    how = {
        "chosen": chosen,
        "groups": groups,
        "groups_kept": kept,
        "group_score": draw(st.sampled_from(["top2", "max"])),
        "scoring": "sigmoid" if use_sigmoid else "softmax",
        "normalise": draw(st.booleans()),
        "scale": draw(st.sampled_from([1.0, 2.5, 16.0])),
    }
    return RouteCase(logit_TE, bias_E, how)


@st.composite
def model_shapes(draw: st.DrawFn, **fixed: Any) -> ModelConfig:
    """Draw a small model shape: every switch of the family, widths that share no divisor by accident."""
    changes: dict[str, Any] = {
        "q_lora_rank": draw(st.sampled_from([None, 12, 24])),
        "kv_lora_rank": draw(st.sampled_from([8, 20])),
        "num_attention_heads": draw(st.sampled_from([1, 3])),
        "qk_nope_head_dim": draw(st.sampled_from([4, 16])),
        "qk_rope_head_dim": draw(st.sampled_from([2, 8])),
        "v_head_dim": draw(st.sampled_from([4, 12])),
        "rope_interleave": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "n_shared_experts": draw(st.sampled_from([None, 1, 2])),
        "first_k_dense_replace": draw(st.integers(0, 2)),
        "num_hidden_layers": 2,
        "num_nextn_predict_layers": draw(st.integers(0, 3)),
        "norm_topk_prob": draw(st.booleans()),
    }
    if draw(st.booleans()):
        changes["rope_scaling"] = {
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        }
    changes.update(fixed)
    return model_config("tiny", **changes)
