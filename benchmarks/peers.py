"""The engines that are compared, by name, and the child process that runs one of them.

    python -m benchmarks.peers NAME PATH --weights bf16 --threads 2 --positions 8256 [--variant V]

`contestant.py` says how it is talked to. `cueva` is the native engine, `torch` cueva's own engine in plain PyTorch,
`transformers` its `DeepseekV3ForCausalLM`; these open a model directory. `llama` and `ik` open a GGUF file
(`llama.py`).
"""

import argparse
import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

from benchmarks.contestant import Contestant, serve, tokens_of

PACKAGES: Final[Mapping[str, tuple[str, str]]] = {
    "llama": ("llama_cpp", "llama-cpp-python"),
    "ik": ("ik_llama_cpp", "ik-llama-cpp-python"),
    "transformers": ("transformers", "transformers"),
}
"""The module and the distribution of every peer that has to be installed."""
PEERS: Final = ("llama", "ik", "transformers", "torch")
GGUF_PEERS: Final = ("llama", "ik")
PREFILL_CHUNK: Final = 512
"""Rows of a prompt that the native engine runs at once here."""


def absent(name: str) -> str | None:
    """Why a peer cannot run here, or None."""
    if name not in PACKAGES:
        return None
    module, package = PACKAGES[name]
    if importlib.util.find_spec(module) is None:
        return f"not installed (pip install {package})"
    return None


class _Own:
    """One of cueva's runners: passes of the native engine and of the PyTorch one are asked for in the same way."""

    settings: dict[str, Any]

    def __init__(self, runner: Any, config: Any):
        self._runner, self._config = runner, config
        self.vocabulary: int = config.vocab_size
        self._cache: Any = None
        self._many: list[Any] = []
        self._held, self._many_held = 0, 0

    def fill(self, cached: int) -> None:
        self._cache = self._filled(cached, 0)
        self._held = cached

    def _filled(self, cached: int, seed: int) -> Any:
        cache = self._runner.new_cache(cached + 1)
        self._prompt(cache, tokens_of(self.vocabulary, cached, seed))
        return cache

    def _prompt(self, cache: Any, tokens: Sequence[int]) -> Any:
        state_TD = None
        for first in range(0, len(tokens), self._runner.prefill_chunk):
            state_TD = self._runner.prefill(cache, tokens[first : first + self._runner.prefill_chunk])
        return state_TD

    def step(self, token: int) -> int:
        from cueva.engine.passes import Work

        return int(self._runner.decode([Work(self._cache, [token])])[0].logits_NA[0].argmax())

    def back(self) -> None:
        self._taken_back(self._cache, self._held)

    def _taken_back(self, cache: Any, length: int) -> None:
        for layer in range(self._config.num_hidden_layers):
            cache.truncate(layer, length)

    def fill_many(self, sequences: int, cached: int) -> None:
        self._many = [self._filled(cached, 1 + number) for number in range(sequences)]
        self._many_held = cached

    def step_many(self, tokens: Sequence[int]) -> list[int]:
        from cueva.engine.passes import Work

        done = self._runner.decode([Work(cache, [token]) for cache, token in zip(self._many, tokens, strict=True)])
        return [int(one.logits_NA[0].argmax()) for one in done]

    def back_many(self) -> None:
        for cache in self._many:
            self._taken_back(cache, self._many_held)

    def prefill(self, tokens: Sequence[int]) -> int:
        state_TD = self._prompt(self._runner.new_cache(len(tokens)), tokens)
        return int(self._runner.logits(state_TD[-1]).argmax())

    def about(self) -> dict[str, Any]:
        return {}


class Cueva(_Own):
    """The native engine."""

    def __init__(self, path: str, weights: str, threads: int):
        """Pack the weights of a model directory."""
        from cueva import __version__
        from cueva.checkpoint import open_directory
        from cueva.engine.native import DirectoryWeights, NativeModel, NativeRunner

        torch.set_num_threads(threads)
        model = NativeModel(DirectoryWeights(open_directory(path)), weights, threads=threads)
        super().__init__(NativeRunner(model, threads=threads, prefill_chunk=PREFILL_CHUNK), model.config)
        self.settings = {
            "package": f"cueva {__version__}",
            "weights": weights,
            "instruction set": model.isa,
            "threads": threads,
            "prefill chunk": PREFILL_CHUNK,
            "weight bytes": model.bytes,
        }

    def about(self) -> dict[str, Any]:
        """Experts of a layer that one more step of the several sequences touches, on average."""
        from cueva.engine.passes import Work

        config = self._config
        layers = sum(config.is_expert_layer(layer) for layer in range(config.num_hidden_layers))
        if not self._many or not layers:
            return {}
        tokens = tokens_of(self.vocabulary, len(self._many), seed=2)
        work = [Work(cache, [token]) for cache, token in zip(self._many, tokens, strict=True)]
        routes_LTK = np.zeros((layers, len(work), config.num_experts_per_tok), np.int32)
        self._runner.step(0, work, np.empty(0, np.int32), routes=routes_LTK)
        self.back_many()
        return {"touched": float(np.mean([len(np.unique(layer)) for layer in routes_LTK]))}


class Torch(_Own):
    """cueva's engine in plain PyTorch, as `Engine` sets it up."""

    def __init__(self, path: str, weights: str, threads: int):
        """Load a model directory in "f32" or "bf16"."""
        from cueva.checkpoint import load_model
        from cueva.engine.runner import Runner

        torch.set_num_threads(threads)
        model = load_model(path, dtype={"f32": "float32", "bf16": "bfloat16"}[weights]).eval()
        runner = Runner(model, rows=8, prefill_chunk=128)
        super().__init__(runner, model.config)
        self.settings = {"package": f"torch {torch.__version__}", "threads": threads, "rows": runner.rows}

    def fill(self, cached: int) -> None:
        """Fill the cache with made-up rows: what a step costs does not depend on what they hold."""
        config = self._config
        self._cache = self._runner.new_cache(cached + 1)
        generator = torch.Generator().manual_seed(0)
        row_SX = torch.randn(cached, config.kv_lora_rank + config.qk_rope_head_dim, generator=generator)
        row_SX = row_SX.to(self._runner.dtype)
        for layer in range(config.num_hidden_layers):
            self._cache.append(layer, row_SX[:, : config.kv_lora_rank], row_SX[:, config.kv_lora_rank :])
        self._held = cached


class Transformers:
    """`DeepseekV3ForCausalLM` with its dynamic cache."""

    def __init__(self, path: str, weights: str, threads: int):
        """Load a model directory in "f32" or "bf16"; nothing is fetched."""
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[weights]
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
        self._model = model.eval()
        self.vocabulary: int = self._model.config.vocab_size
        self._cache: Any = None
        self._many: Any = None
        self._held, self._many_held = 0, 0
        self.settings = {
            "package": f"transformers {importlib.metadata.version('transformers')}",
            "threads": threads,
            "attention": self._model.config._attn_implementation,
            "experts": getattr(self._model.config, "_experts_implementation", None),
        }

    def fill(self, cached: int) -> None:
        """Fill the cache with made-up rows: what a step costs does not depend on what they hold."""
        self._cache, self._held = self._made_up(1, cached), cached

    def _made_up(self, sequences: int, cached: int) -> Any:
        """A cache of random rows in the shapes that a real one takes; versions differ in what they keep."""
        from transformers import DynamicCache

        real, cache = DynamicCache(), DynamicCache()
        self._run([[0]], real)
        generator = torch.Generator().manual_seed(0)
        layers: list[Any] = list(real.layers)
        for number, layer in enumerate(layers):
            parts = []
            for part in (layer.keys, layer.values):
                _, heads, _, width = part.shape
                parts.append(torch.randn(sequences, heads, cached, width, generator=generator).to(part.dtype))
            cache.update(*parts, number)
        return cache

    def step(self, token: int) -> int:
        """Decode one token."""
        return self._run([[token]], self._cache)[0]

    def back(self) -> None:
        """Take it back."""
        self._cache.crop(-1)

    def fill_many(self, sequences: int, cached: int) -> None:
        """Fill as one batch."""
        self._many, self._many_held = self._made_up(sequences, cached), cached

    def step_many(self, tokens: Sequence[int]) -> list[int]:
        """Decode one token of each."""
        return self._run([[token] for token in tokens], self._many)

    def back_many(self) -> None:
        """Take them back."""
        self._many.crop(-1)

    def prefill(self, tokens: Sequence[int]) -> int:
        """Run a prompt in a new cache."""
        from transformers import DynamicCache

        return self._run([list(tokens)], DynamicCache())[0]

    def about(self) -> dict[str, Any]:
        """Nothing more."""
        return {}

    @torch.inference_mode()
    def _run(self, ids: list[list[int]], cache: Any) -> list[int]:
        out = self._model(input_ids=torch.tensor(ids), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1).tolist()


def make(name: str, path: str, *, weights: str, threads: int, positions: int, variant: str | None) -> Contestant:
    """Open an engine by name."""
    if name in GGUF_PEERS:
        from benchmarks.llama import VARIANTS, LlamaCpp

        variant = variant or next(iter(VARIANTS[name]))
        return LlamaCpp(name, path, threads=threads, positions=positions, variant=variant)
    return {"cueva": Cueva, "torch": Torch, "transformers": Transformers}[name](path, weights, threads)


def main() -> None:
    """Run one engine until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("cueva", *PEERS))
    parser.add_argument("path")
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--positions", type=int, default=2112)
    parser.add_argument("--variant")
    asked = vars(parser.parse_args())
    serve(lambda: make(asked.pop("name"), asked.pop("path"), **asked))


if __name__ == "__main__":
    main()
