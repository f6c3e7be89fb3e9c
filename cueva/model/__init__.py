"""Tokens in, logits out: the DeepSeek-V3 architecture.

Read `transformer.py` first, then `attention.py`, `experts.py` and `mtp.py`.
"""

from cueva.kernels.route import Routing
from cueva.model.attention import Attention, LatentCache, Segment
from cueva.model.block import Block
from cueva.model.experts import Experts, FeedForward, Gate, MixtureOfExperts
from cueva.model.mtp import MTPModule
from cueva.model.norm import RMSNorm
from cueva.model.rotary import Rotary, inverse_frequencies, softmax_scale
from cueva.model.transformer import CausalLM, Output, States

__all__ = [
    "Attention",
    "Block",
    "CausalLM",
    "Experts",
    "FeedForward",
    "Gate",
    "LatentCache",
    "MTPModule",
    "MixtureOfExperts",
    "Output",
    "RMSNorm",
    "Rotary",
    "Routing",
    "Segment",
    "States",
    "inverse_frequencies",
    "softmax_scale",
]
