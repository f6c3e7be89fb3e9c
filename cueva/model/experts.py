"""The feed-forward half of a block: dense, or a mixture of routed and shared experts (DeepSeekMoE)."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cueva.config import ModelConfig
from cueva.kernels import experts as experts_kernel
from cueva.kernels.route import Routing, route


class FeedForward(nn.Module):
    """SwiGLU: `down_proj(silu(gate_proj x) * up_proj x)`; a dense layer, or all shared experts as one."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Width in, width out."""
        return self.down_proj(F.silu(self.gate_proj(x_TD)) * self.up_proj(x_TD))


class Gate(nn.Module):
    """The router of one layer: a centroid per expert, and the bias that balances them.

    Both stay float32 whatever the model is cast to: in bfloat16 a bias of 5 could not move by steps of 0.001. The
    bias is a buffer: saved, never seen by an optimizer, moved in place once per step by `cueva.train.balance`.
    """

    e_score_correction_bias: Tensor | None

    def __init__(self, config: ModelConfig):
        super().__init__()
        assert config.n_routed_experts is not None
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size, dtype=torch.float32))
        bias_E = torch.zeros(config.n_routed_experts, dtype=torch.float32) if config.has_router_bias else None
        self.register_buffer("e_score_correction_bias", bias_E)
        self.how: dict[str, Any] = {
            "chosen": config.num_experts_per_tok,
            "groups": 1 if config.topk_method == "greedy" else config.n_group,
            "groups_kept": config.topk_group,
            "group_score": "top2" if config.topk_method == "noaux_tc" else "max",
            "scoring": config.scoring_func,
            "normalise": config.norm_topk_prob,
            "scale": config.routed_scaling_factor,
        }

    def forward(self, x_TD: Tensor, counted_T: Tensor | None) -> Routing:
        """Choose experts for each token. The product is taken in float32, not cast to it afterwards."""
        with torch.autocast(x_TD.device.type, enabled=False):
            logit_TE = F.linear(x_TD.float(), self.weight)
        return route(logit_TE, self.e_score_correction_bias, counted_T=counted_T, **self.how)

    def _apply(self, fn: Any, recurse: bool = True) -> "Gate":
        """Move with the model, but keep float32: a cast would round what steps of 0.001 must add up in."""

        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == torch.float32 else tensor.to(moved.device)

        return super()._apply(keep_float32, recurse)


class Experts(nn.Module):
    """The weights of a layer's routed experts, stacked; on disk each expert has its own three tensors."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        assert config.n_routed_experts is not None
        count, width, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * inner, width))
        """(E, 2F, D): the rows of `gate_proj`, then those of `up_proj`."""
        self.down_proj = nn.Parameter(torch.empty(count, width, inner))
        """(E, D, F)."""

    def forward(self, x_TD: Tensor, routing: Routing, *, active_T: Tensor | None, tile: int | None) -> Tensor:
        """Add up each token's weighted answers (eq. 12)."""
        gate_up_EGD, down_EDF = self.gate_up_proj, self.down_proj
        if torch.is_autocast_enabled(x_TD.device.type):
            dtype = torch.get_autocast_dtype(x_TD.device.type)
            x_TD, gate_up_EGD, down_EDF = x_TD.to(dtype), gate_up_EGD.to(dtype), down_EDF.to(dtype)
        return experts_kernel.experts(
            x_TD, routing.expert_TK, routing.weight_TK, gate_up_EGD, down_EDF, active_T=active_T, tile=tile
        )


class MixtureOfExperts(nn.Module):
    """Routed experts chosen token by token, and shared experts that see every token. No token is ever dropped."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        shared = config.n_shared_experts or 0
        self.shared_experts = FeedForward(config.hidden_size, shared * config.moe_intermediate_size) if shared else None

    def forward(
        self,
        x_TD: Tensor,
        *,
        counted_T: Tensor | None = None,
        active_T: Tensor | None = None,
        tile: int | None = None,
    ) -> tuple[Tensor, Routing]:
        """Answer each token.

        Args:
            x_TD: flat tokens.
            counted_T: which count towards the load (None: all).
            active_T: which are routed at all (None: all); filler rows of a padded step are not.
            tile: rows of one expert product, fixed, for bits that do not depend on neighbours; None: whatever is
                fastest.

        Returns:
            (T, D), and where the gate sent the tokens.
        """
        routing = self.gate(x_TD, counted_T)
        y_TD = self.experts(x_TD, routing, active_T=active_T, tile=tile)
        if self.shared_experts is not None:
            y_TD = y_TD + self.shared_experts(x_TD)
        return y_TD, routing
