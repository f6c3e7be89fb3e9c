"""One layer: attention, then a feed-forward, each behind a norm and added to the residual stream."""

from collections.abc import Sequence

from torch import Tensor, nn

from cueva.config import ModelConfig
from cueva.kernels.route import Routing
from cueva.model.attention import Attention, Segment
from cueva.model.experts import FeedForward, MixtureOfExperts
from cueva.model.norm import RMSNorm
from cueva.model.rotary import Rotation


class Block(nn.Module):
    """Pre-norm residual block: x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.self_attn = Attention(config)
        if config.is_expert_layer(layer):
            self.mlp = MixtureOfExperts(config)
        else:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x_BTD: Tensor, rotation: Rotation, mask: Tensor | None, counted_BT: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        """Whole rows at once. Returns the stream and, for an expert layer, where its gate sent the tokens."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotation, mask)
        h_BTD = self.post_attention_layernorm(x_BTD)
        if isinstance(self.mlp, FeedForward):
            return x_BTD + self.mlp(h_BTD), None
        counted_T = None if counted_BT is None else counted_BT.flatten()
        y_TD, routing = self.mlp(h_BTD.flatten(0, 1), counted_T=counted_T)
        return x_BTD + y_TD.view_as(x_BTD), routing

    def cached(
        self, x_TD: Tensor, segments: Sequence[Segment], rotation: Rotation, active_T: Tensor, *, rowwise: bool
    ) -> tuple[Tensor, Routing | None]:
        """Run the rows of one step over their caches (`Attention.cached`); `active_T`: rows that are not filler."""
        x_TD = x_TD + self.self_attn.cached(self.input_layernorm(x_TD), self.layer, segments, rotation, rowwise=rowwise)
        h_TD = self.post_attention_layernorm(x_TD)
        if isinstance(self.mlp, FeedForward):
            return x_TD + self.mlp(h_TD), None
        y_TD, routing = self.mlp(h_TD, counted_T=active_T, active_T=active_T, tile=len(x_TD) if rowwise else None)
        return x_TD + y_TD, routing
