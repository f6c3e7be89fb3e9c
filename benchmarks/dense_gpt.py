"""The baseline of `benchmarks.quality`: a dense GPT, plain and modern, trained by the same step.

Pre-norm blocks of ordinary multi-head attention with rotary positions and a SwiGLU feed-forward, untied embedding and
head. It shares no module with cueva's model beyond the norm and the rotation; it only answers to the same calls
(`states`, `logits`), so that `cueva.train.step` trains both alike.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cueva.config import ModelConfig, model_config
from cueva.kernels.attend import document_mask
from cueva.kernels.route import Routing
from cueva.model import States
from cueva.model.norm import RMSNorm
from cueva.model.rotary import Rotary, Rotation, rotate


@dataclass(frozen=True, kw_only=True)
class DenseShape:
    """The sizes of a dense GPT."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int

    @property
    def inner(self) -> int:
        """Width of the feed-forward: 8/3 of the model's, in whole eights, as Llama has it."""
        return -(-self.hidden_size * 8 // 3 // 8) * 8


class DenseBlock(nn.Module):
    """Attention with a key and a value per head, then SwiGLU."""

    def __init__(self, shape: DenseShape):
        super().__init__()
        width = shape.hidden_size
        self.heads = shape.heads
        self.norm_1, self.norm_2 = RMSNorm(width, 1e-6), RMSNorm(width, 1e-6)
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.gate_up_proj = nn.Linear(width, 2 * shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, width, bias=False)

    def forward(self, x_BTD: Tensor, rotation: Rotation, mask: Tensor | None) -> Tensor:
        """Width in, width out."""
        q, k, v = self.qkv_proj(self.norm_1(x_BTD)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = rotate(q, rotation, interleave=False), rotate(k, rotation, interleave=False)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=mask is None
        )
        x_BTD = x_BTD + self.o_proj(mixed.transpose(1, 2).flatten(-2))
        gate, up = self.gate_up_proj(self.norm_2(x_BTD)).chunk(2, -1)
        return x_BTD + self.down_proj(F.silu(gate) * up)


class DenseGPT(nn.Module):
    """A dense language model that `cueva.train.step.training_step` can train."""

    def __init__(self, shape: DenseShape):
        super().__init__()
        self.shape = shape
        # What the training step asks a config: no gates, no MTP; the rotary width of a whole head.
        self.config: ModelConfig = model_config(
            "tiny",
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            qk_rope_head_dim=shape.hidden_size // shape.heads,
            num_nextn_predict_layers=0,
            n_routed_experts=None,
        )
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(DenseBlock(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden_size, 1e-6)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        self.rotary = Rotary(self.config)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, std: float) -> None:
        """Normal weights, norms of 1."""
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, std, generator=generator)

    def gates(self) -> list[tuple[str, nn.Module]]:
        """None."""
        return []

    def states(self, ids_BT: Tensor, document_BT: Tensor | None = None, **_: object) -> States:
        """What the head reads, in the form `CausalLM.states` gives it."""
        x_BTD = self.embed_tokens(ids_BT)
        rotation = self.rotary.at(torch.arange(ids_BT.shape[1], device=ids_BT.device))
        mask = None if document_BT is None else document_mask(document_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rotation, mask)
        routings: tuple[Routing, ...] = ()
        return States(self.norm(x_BTD), [], [], routings)

    def logits(self, hidden: Tensor, depth: int = 0) -> Tensor:
        """Float32 logits; there is no depth but 0."""
        assert depth == 0, depth
        return self.lm_head(hidden).float()
