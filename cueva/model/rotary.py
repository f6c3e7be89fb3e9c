"""Rotary positions, in both layouts, and YaRN's stretching of them.

Only the R rotary values of a query head and the one shared rotary key are turned; the latent never is. Angles,
cosines and sines are float32 whatever the model's dtype: a bfloat16 position is wrong above 256.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cueva.config import ModelConfig


class Rotation(NamedTuple):
    """The turns of T positions: R/2 pairs each."""

    cos_TJ: Tensor
    sin_TJ: Tensor


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each pair: float32, (R/2).

    Without scaling theta ** (-2j/R). With YaRN, pairs that turn often within the original context keep their
    frequency, slow ones are stretched by `factor`, those in between are blended.

    Source: YaRN (arXiv:2309.00071), section 3.2; DeepSeek-V3 report, section 4.3. Both borders are clamped as the
        published code
    does, the upper one with R - 1 although it is compared with pair indices.
    """
    width, theta = config.qk_rope_head_dim, config.rope_theta
    pair_J = torch.arange(0, width, 2, dtype=torch.float32, device="cpu")
    free_J = 1.0 / theta ** (pair_J / width)
    yarn = config.rope_scaling
    if yarn is None:
        return free_J

    def pair_turning(turns: float) -> float:
        """The (fractional) pair that makes this many turns within the original context."""
        return width * math.log(yarn.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_turning(yarn.beta_fast), pair_turning(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    stretched_J = ((torch.arange(width // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return free_J / yarn.factor * stretched_J + free_J * (1 - stretched_J)


def yarn_temperature(factor: float, mscale: float) -> float:
    """m(s, x) = 0.1 x ln s + 1 for a stretched context (V3 report, section 4.3), 1 otherwise."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def attention_factor(config: ModelConfig) -> float:
    """What cosines and sines are multiplied with: 1.0 for every published model.

    When only one of `mscale` and `mscale_all_dim` is given, published codes disagree; we read it as `transformers`
    does.
    """
    yarn = config.rope_scaling
    if yarn is None:
        return 1.0
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    if yarn.mscale and yarn.mscale_all_dim:
        return yarn_temperature(yarn.factor, yarn.mscale) / yarn_temperature(yarn.factor, yarn.mscale_all_dim)
    return yarn_temperature(yarn.factor, 1.0)


def softmax_scale(config: ModelConfig) -> float:
    """What scores are multiplied with: (N + R) ** -0.5, times the squared YaRN temperature if there is one."""
    scale = config.qk_head_dim**-0.5
    yarn = config.rope_scaling
    if yarn is not None and yarn.mscale_all_dim:
        scale *= yarn_temperature(yarn.factor, yarn.mscale_all_dim) ** 2
    return scale


class Rotary:
    """Turns positions into rotations; one for the whole model, holding no state that training could touch."""

    def __init__(self, config: ModelConfig):
        # Explicitly on the CPU: a model may be built on the meta device, where numbers have no values.
        with torch.device("cpu"):
            self._inv_freq_J = inverse_frequencies(config)
        self._factor = attention_factor(config)

    def at(self, position_T: Tensor) -> Rotation:
        """Return the rotation of each position (0-based, any integer dtype), float32."""
        angle_TJ = position_T.float()[:, None] * self._inv_freq_J.to(position_T.device)
        return Rotation(angle_TJ.cos() * self._factor, angle_TJ.sin() * self._factor)


def rotate(x_THR: Tensor, rotation: Rotation, *, interleave: bool) -> Tensor:
    """Turn each pair (a, b) of the last dimension to (a cos - b sin, b cos + a sin).

    Args:
        x_THR: (..., T, H, R).
        rotation: of the T positions.
        interleave: pairs are neighbours (x[2j], x[2j+1]), as in published weights; otherwise halves (x[j], x[j + R/2]).

    Returns:
        Same shape, layout and dtype; computed in float32.
    """
    cos_T1J, sin_T1J = rotation.cos_TJ[:, None], rotation.sin_TJ[:, None]
    if interleave:
        a, b = x_THR.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([a * cos_T1J - b * sin_T1J, b * cos_T1J + a * sin_T1J], dim=-1).flatten(-2)
    else:
        a, b = x_THR.float().chunk(2, dim=-1)
        turned = torch.cat([a * cos_T1J - b * sin_T1J, b * cos_T1J + a * sin_T1J], dim=-1)
    return turned.to(x_THR.dtype)
