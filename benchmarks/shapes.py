"""The models that the engine's benchmark runs: their shapes, random weights, and the files that every engine opens.

Weights are drawn once, from a fixed seed, and written as a model directory; GGUF files hold the same weights in the
formats of the peers. All lie in a folder that git ignores and are found again by the next run.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from benchmarks.ik_file import write_ik_file
from cueva.checkpoint import CheckpointWarning, load_model, read_config, save_model
from cueva.checkpoint.gguf import write_gguf
from cueva.config import ModelConfig, model_config
from cueva.model import CausalLM

log = logging.getLogger("benchmarks")

BENCH: Final = ModelConfig(
    vocab_size=32_000,
    hidden_size=1024,
    intermediate_size=2816,
    moe_intermediate_size=512,
    num_hidden_layers=12,
    num_nextn_predict_layers=1,
    num_attention_heads=16,
    q_lora_rank=512,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=32,
    n_shared_experts=1,
    num_experts_per_tok=4,
    routed_scaling_factor=2.5,
    first_k_dense_replace=1,
    max_position_embeddings=16_384,
)
"""728M parameters, of which a token meets 211M: the widths of the 671B model's attention, an eighth of its heads. One
group of experts, because ik_llama.cpp computes another model with more than one."""

QUICK: Final = ModelConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=256,
    moe_intermediate_size=256,
    num_hidden_layers=2,
    num_nextn_predict_layers=1,
    num_attention_heads=2,
    q_lora_rank=256,
    kv_lora_rank=256,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=32,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    first_k_dense_replace=1,
    max_position_embeddings=1024,
)
"""Whole blocks of every format and little else: shows that everything works, and says nothing about speed."""

SHAPES: Final[Mapping[str, ModelConfig]] = {"bench": BENCH, "quick": QUICK, "pocket": model_config("pocket")}

GGUF_TYPE: Final = {"fp8": "q8_0"}
"""What peers run beside a format that GGUF has not."""


@dataclass(frozen=True)
class Files:
    """A model as files."""

    name: str
    config: ModelConfig
    directory: Path
    folder: Path
    """Where GGUF files and logs go."""

    def gguf(self, weights: str, *, for_ik: bool = False) -> Path:
        """The GGUF file of these weights, written if it is not there yet; `for_ik`: see `ik_file.py`."""
        type = GGUF_TYPE.get(weights, weights)
        path, own = self.folder / f"model-{type}.gguf", self.folder / f"ik-{type}.gguf"
        # A model directory that was replaced since makes the files another model's.
        source = max(file.stat().st_mtime for file in self.directory.glob("*.safetensors"))
        missing = [file for file in (path, own) if not file.is_file() or file.stat().st_mtime < source]
        if (own if for_ik else path) in missing:
            model = load_model(self.directory, dtype="auto")
            if path in missing:
                log.info("writing %s", path)
                with warnings.catch_warnings():
                    # The drafter stays out of these files, on purpose.
                    warnings.simplefilter("ignore", CheckpointWarning)
                    write_gguf(model, path, type)
            if for_ik:
                log.info("writing %s", own)
                write_ik_file(model, path, own)
        return own if for_ik else path


def prepare(shape: str, folder: Path) -> Files:
    """Find the model of a shape, or draw and write it.

    Args:
        shape: a key of `SHAPES`, or the path of a model directory.
        folder: a cache; made if it is not there.
    """
    if shape not in SHAPES:
        directory = Path(shape)
        config = read_config(directory)
        place = folder / directory.resolve().name
        place.mkdir(parents=True, exist_ok=True)
        return Files(shape, config, directory, place)
    config = SHAPES[shape]
    place = folder / shape
    place.mkdir(parents=True, exist_ok=True)
    directory = place / "model"
    # A shape that was changed since makes the files another model's.
    if not (directory / "config.json").is_file() or read_config(directory).parameters() != config.parameters():
        log.info("drawing %s parameters into %s", f"{config.parameters():,}", directory)
        save_model(drawn(config), directory)
    return Files(shape, config, directory, place)


def drawn(config: ModelConfig, seed: int = 0) -> CausalLM:
    """A model with random weights in bf16, drawn in that format so that no wider copy is ever in memory."""
    with torch.device("meta"):
        model = CausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()


def stored_bytes(directory: Path) -> int:
    """Bytes of a model directory's weights."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def describe(files: Files) -> dict[str, object]:
    """What a result has to say about the model."""
    published = json.loads((files.directory / "config.json").read_text(encoding="utf-8"))
    config = files.config
    return {
        "name": files.name,
        "parameters": config.parameters(),
        "read_per_token": config.parameters(active=True) - config.vocab_size * config.hidden_size,
        "config": published,
    }
