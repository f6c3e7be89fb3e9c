"""One multi-token-prediction module: a block of its own between the model's embedding and the model's head.

Module k combines the state of depth k - 1 at position i with the embedding of token i + k, and predicts token i + k +
1. The chain is sequential and stays causal at every depth. Embedding and head are the main model's own.
"""

import torch
from torch import Tensor, nn

from cueva.config import ModelConfig
from cueva.model.block import Block
from cueva.model.norm import RMSNorm


class SharedHead(nn.Module):
    """The norm before the head at one depth, and, only where a checkpoint's copy differs, a head of its own."""

    head: nn.Linear | None

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = None


class MTPModule(Block):
    """A block with two input norms, a projection and a final norm; it routes whenever the model has experts."""

    embed_tokens: nn.Embedding | None
    """Only where a checkpoint's copy of the embedding differs from the model's."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = SharedHead(config)
        self.embed_tokens = None

    def joined(self, embedding_TD: Tensor, state_TD: Tensor) -> Tensor:
        """Join a token's embedding and the previous depth's state (eq. 21).

        Eq. 21 writes the state first; the released weights hold the embedding's columns first, and we follow the
        weights. The state is the one the previous head read, after its norm: `model.norm` at depth 1,
        `shared_head.norm` beyond. The report does not say; vLLM, SGLang and `transformers` read it so, in drafting,
        and so do we in both training and drafting.
        """
        return self.eh_proj(torch.cat([self.enorm(embedding_TD), self.hnorm(state_TD)], dim=-1))
