"""The engine's native side: a model's weights in tiles, its cache in pages, its steps in one call each.

Read `weights.py` (where weights come from), `plan.py` (how they become a plan), `cache.py` and `runner.py`. What a step
does inside is C++: `cueva/kernels/native/step.hpp`.
"""

from cueva.engine.native.cache import PagedCache, PagedPool
from cueva.engine.native.opening import LiveModel, open_native, weights_of, why_not
from cueva.engine.native.plan import WEIGHT_FORMATS, NativeModel
from cueva.engine.native.runner import NativeRunner
from cueva.engine.native.weights import DirectoryWeights, ModuleWeights, Weights

__all__ = [
    "WEIGHT_FORMATS",
    "DirectoryWeights",
    "LiveModel",
    "ModuleWeights",
    "NativeModel",
    "NativeRunner",
    "PagedCache",
    "PagedPool",
    "Weights",
    "open_native",
    "weights_of",
    "why_not",
]
