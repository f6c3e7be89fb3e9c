"""Models and engines by path: a directory in the published format, or the name of one on the Hugging Face hub."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from cueva import engine
from cueva.checkpoint import load_model, resolve, save_model
from cueva.checkpoint.save import SavesItself
from cueva.engine import Codec
from cueva.engine.native import WEIGHT_FORMATS, NativeModel, open_native
from cueva.errors import CheckpointError, RequestError
from cueva.kernels.native import default_threads
from cueva.model import CausalLM
from cueva.text import Tokenizer

WEIGHTS: Final = {"f32": "float32", "bf16": "bfloat16"}
"""What an engine calls a dtype, and what a model does."""


def load(
    path: str | os.PathLike[str], dtype: str | torch.dtype = "bfloat16", device: str | torch.device = "auto"
) -> CausalLM:
    """Open a model.

    Args:
        path: a model directory, or `org/name` on the hub.
        dtype: of the weights in memory: "float32", "bfloat16", "float16" or "auto", as they are stored. Routers stay
            float32.
        device: "auto" is a CUDA device where there is one, else the CPU.

    Returns:
        A `torch.nn.Module` in evaluation mode. `model(ids_BT)` gives `logits` (float32, (B, T, vocabulary)) and
        `mtp_logits`.

    Raises:
        ConfigError, CheckpointError: there is no such model, or what is there is not one; the message says what is
            wrong.
    """
    return load_model(resolve(path), dtype=dtype, device=_device(device)).eval()


def save(model: CausalLM, path: str | os.PathLike[str], tokenizer: SavesItself | None = None) -> None:
    """Write a model directory in the published format, whole or not at all.

    Args:
        model: as `load` gives it, or your own.
        path: a directory that is new, empty, or holds a model, which is replaced. Its tokenizer is kept when none is
            given.
        tokenizer: saved beside the weights.

    Raises:
        CheckpointError: no room, no permission, or a directory that holds something else; nothing was changed then.
    """
    save_model(model, path, tokenizer=tokenizer)


class Engine(engine.Engine):
    """Generates text with one model, given as such or by its path.

    With a path, the tokenizer and the defaults of `generation_config.json` come from there.
    """

    def __init__(
        self,
        path_or_model: str | os.PathLike[str] | CausalLM,
        tokenizer: Codec | None = None,
        *,
        weights: str | None = None,
        device: str = "auto",
        generation: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        """Load what has to be loaded, and get ready.

        Args:
            path_or_model: a model directory, a name on the hub, or a model.
            tokenizer: None: the one beside the weights; an engine without any works on token ids.
            weights: "f32", "bf16", "fp8", "q8_0", "q4_0" or "q4_k": how to hold the weights. None: as they are stored.
            device: "auto": where the model lies; for a path, a CUDA device where there is one, else the CPU.
            generation: sampling defaults; None: those of the directory.
            **options: `backend`, `threads`, `cache_tokens`, `prefill_chunk`, `rows`, ...; see `cueva.engine.Engine`.

        Raises:
            CheckpointError, ConfigError: there is no usable model at that path.
            RequestError: an option that means nothing.
        """
        if not isinstance(path_or_model, str | os.PathLike):
            super().__init__(path_or_model, tokenizer, weights=weights, device=device, generation=generation, **options)
            return
        folder = resolve(path_or_model)
        if tokenizer is None and (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.load(folder)
        if generation is None:
            generation = read_generation(folder)
        native = _native(folder, weights, device, **options)
        if native is not None:
            super().__init__(native, tokenizer, generation=generation, **options)
            return
        # A name that is none of ours is for the engine to refuse.
        model = load(folder, WEIGHTS.get(weights or "", "auto"), device)
        super().__init__(model, tokenizer, weights=weights, generation=generation, **options)


def _native(
    folder: Path, weights: str | None, device: str, backend: str = "auto", threads: int | None = None, **_: Any
) -> NativeModel | None:
    """A directory's model, read tensor by tensor for the native engine; None where PyTorch is to serve or refuse."""
    if backend == "torch" or _device(device).type != "cpu":
        return None
    if weights is not None and weights not in WEIGHT_FORMATS:
        return None
    return open_native(folder, weights, threads=threads or default_threads())


def read_generation(folder: Path) -> dict[str, Any]:
    """Read `generation_config.json`; empty when there is none.

    Raises:
        CheckpointError: it is there and is no JSON object.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__} instead of a JSON object")
    return values


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise RequestError(f"there is no device {device!r}; 'auto', 'cpu' or 'cuda' fit") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(
            f"device {str(device)!r} was asked for, but PyTorch finds no CUDA device", way_out="try device='cpu'"
        )
    return place
