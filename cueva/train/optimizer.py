"""AdamW as the report has it, and the length of the gradient.

Weights are kept in float32 (masters and working copy in one: bfloat16 arithmetic casts at use). Everything with two or
more dimensions decays, embeddings and stacked experts included; norms and attention biases do not. The report gives a
decay of 0.1 without saying to what; this is the field's habit. Balance biases are buffers and never come here.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cueva.errors import RunError
from cueva.train.settings import OptimizerSettings


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Make the optimizer for all trainable parameters. One fused kernel per step; the same bits for the same gradients.

    Raises:
        RunError: a weight is not float32.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name, parameter in named:
        if parameter.dtype != torch.float32:
            raise RunError(
                f"`{name}` is {parameter.dtype}, but training keeps weights in float32",
                way_out="try loading the model with dtype='float32'; run.precision = 'bfloat16' is about arithmetic",
            )
    groups = [
        {
            "params": [parameter for _, parameter in named if parameter.dim() >= 2],
            "weight_decay": settings.weight_decay,
        },
        {"params": [parameter for _, parameter in named if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True
    )


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Length of all gradients together: each tensor's in float32, their squares added in float64."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([torch.linalg.vector_norm(gradient).double() for gradient in gradients]).norm()


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], norm: float, longest: float) -> None:
    """Scale all gradients so that together they are no longer than `longest`; their direction stays."""
    if norm > longest:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(longest / norm)
