"""Small models with random weights, for tests of every folder."""

from typing import Any

import torch

from cueva.config import ModelConfig, RopeScaling, model_config
from cueva.model import CausalLM

# The model of the known numbers: every mechanism of the family, weights by a formula, no download.
GOLDEN_CONFIG = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    num_nextn_predict_layers=1,
    num_attention_heads=4,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    n_routed_experts=16,
    n_shared_experts=1,
    num_experts_per_tok=4,
    n_group=4,
    topk_group=2,
    first_k_dense_replace=1,
    routed_scaling_factor=2.5,
    max_position_embeddings=64,
    rope_scaling=RopeScaling(
        factor=4.0, original_max_position_embeddings=16, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0
    ),
)


def tiny_model(config: ModelConfig | None = None, *, seed: int = 0, std: float = 0.3, **changes: Any) -> CausalLM:
    """Build a model whose logits are several units in size, with random norms and a bias that decides choices."""
    model = CausalLM(config or model_config("tiny", **changes))
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator, std)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
                assert name
        for _, gate in model.gates():
            if gate.e_score_correction_bias is not None:
                bias_E = gate.e_score_correction_bias
                bias_E.copy_(torch.randn(bias_E.shape, generator=generator) - 0.7)
    return model.eval()


def random_ids(config: ModelConfig, *shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform token ids."""
    return torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


class PlainCache:
    """The simplest thing that keeps `LatentCache`'s promises; tests of the model need no engine."""

    def __init__(self) -> None:
        self._rows: dict[int, torch.Tensor] = {}

    def length(self, layer: int) -> int:
        return len(self._rows[layer]) if layer in self._rows else 0

    def append(self, layer: int, latent_TC: torch.Tensor, rope_TR: torch.Tensor) -> None:
        new = torch.cat([latent_TC, rope_TR], dim=-1)
        self._rows[layer] = torch.cat([self._rows[layer], new]) if layer in self._rows else new

    def rows(self, layer: int, stop: int) -> torch.Tensor:
        return self._rows[layer][:stop]

    def truncate(self, layer: int, length: int) -> None:
        self._rows[layer] = self._rows[layer][:length]
