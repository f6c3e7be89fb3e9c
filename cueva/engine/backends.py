"""Who computes: the native kernels where they can serve, PyTorch otherwise; and models as PyTorch shall run them."""

import copy
from typing import Final, Literal

import torch

from cueva.engine.native import WEIGHT_FORMATS, weights_of, why_not
from cueva.errors import RequestError, nearest
from cueva.kernels.native import warn_if_missing
from cueva.model import CausalLM

Backend = Literal["auto", "native", "torch"]
DTYPES: Final = {"f32": torch.float32, "bf16": torch.bfloat16}
"""Weights that PyTorch computes with, by the name an engine gives them."""


def chosen_backend(model: CausalLM, backend: str, weights: str | None, device: str) -> Literal["native", "torch"]:
    """Decide who computes.

    Raises:
        RequestError: there is no such backend or format, or the one asked for cannot serve; the message says why.
    """
    if backend not in ("auto", "native", "torch"):
        raise RequestError(f"there is no backend={backend!r}; 'auto', 'native' or 'torch' fit")
    if weights is not None and weights not in WEIGHT_FORMATS:
        raise RequestError(
            f"there is no weights={weights!r}{nearest(weights, WEIGHT_FORMATS)}; {', '.join(WEIGHT_FORMATS)} fit"
        )
    own = model.lm_head.weight
    place = own.device.type if device == "auto" else torch.device(device).type if _is_device(device) else device
    reason = why_not(model.config)
    if place != "cpu":
        reason = f"the native kernels are for the CPU, and the model runs on {place}"
    elif weights is None and weights_of(own.dtype) is None:
        reason = f"the native kernels do not compute in {own.dtype}"
    needed = backend == "native" or (weights is not None and weights not in DTYPES)
    if reason is not None:
        if needed:
            what = "backend='native'" if backend == "native" else f"weights={weights!r}"
            raise RequestError(f"{what} was asked for, but {reason}")
        if backend == "auto" and place == "cpu":
            warn_if_missing()
        return "torch"
    if backend == "torch" and needed:
        raise RequestError(
            f"weights={weights!r} is computed by the native kernels only, and backend='torch' was asked for",
            way_out="try weights='bf16' or weights='f32'",
        )
    return "torch" if backend == "torch" else "native"


def converted(model: CausalLM, weights: str | None, device: str) -> CausalLM:
    """The model itself if it is as PyTorch shall run it, else a copy that is.

    Raises:
        RequestError: there is no such device.
    """
    own = model.lm_head.weight
    dtype = own.dtype if weights is None else DTYPES[weights]
    if not _is_device(device):
        raise RequestError(f"there is no device {device!r}; 'auto', 'cpu' or 'cuda' fit")
    place = own.device if device == "auto" else torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(
            f"device {device!r} was asked for, but PyTorch finds no CUDA device", way_out="try device='cpu'"
        )
    if dtype == own.dtype and place.type == own.device.type and place.index in (None, own.device.index):
        return model
    return copy.deepcopy(model).to(device=place, dtype=dtype)


def _is_device(device: str) -> bool:
    if device == "auto":
        return True
    try:
        torch.device(device)
    except RuntimeError:
        return False
    return True
