"""The norm of every block: divide by the root mean square, multiply by a learned weight."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv:1910.07467), rounded as the published code rounds.

    The quotient is computed in float32 and cast to the dtype of the input before it meets the weight; DeepSeek's
    remote code and `transformers` do the same, so bfloat16 models agree to the bit.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        """Normalise the last dimension of `x_TD`; shape and dtype stay."""
        x32_TD = x_TD.float()
        unit_TD = x32_TD * torch.rsqrt(x32_TD.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * unit_TD.to(x_TD.dtype)

    def extra_repr(self) -> str:
        """Width and epsilon, for `print(model)`."""
        return f"{self.weight.numel()}, eps={self.eps}"
