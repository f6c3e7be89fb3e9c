"""Small models with random weights, for tests of every folder."""

from typing import Any

import torch

from cueva.config import ModelConfig, model_config
from cueva.model import CausalLM


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
