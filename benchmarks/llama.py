"""llama.cpp and ik_llama.cpp through the ctypes bindings of their Python packages, down at `llama_decode`.

Both have the same calls with small differences, so one class serves both and `_Api` holds what differs. No sampler, no
high-level class: a batch goes in, logits come out, numpy finds the largest.

Settings are those that their users take for speed on a CPU: as many threads for single rows as for batches, the model
mapped, logical and physical batches of their defaults (2048 and 512), a cache in f16, their default. What is better
differs from machine to machine, so some choices are variants, which the benchmark tries first (`VARIANTS`).
"""

import ctypes
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestant import tokens_of

BATCH: Final = 2048
"""Tokens of a prompt that are handed over at once, the default of both."""
MANY_POSITIONS: Final = 256
"""Room of each of several sequences."""

VARIANTS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "llama": {
        "flash attention": {"flash": True},
        "no flash attention": {"flash": False},
    },
    "ik": {
        "mla 3, fmoe, flash attention": {"mla": 3, "flash": True},
        "mla 3, fmoe, flash attention, rtr": {"mla": 3, "flash": True, "repack": True},
        "mla 1, fmoe": {"mla": 1, "flash": False},
    },
}
"""Ways to run a peer. ik_llama.cpp's own words: -mla, -fmoe, -fa, -rtr (weights repacked into rows when they are
loaded, which gives up mapping)."""


class LlamaCpp:
    """A GGUF file open in one of them."""

    def __init__(self, name: str, path: str, *, threads: int, positions: int, variant: str):
        """Load.

        Args:
            name: "llama" or "ik".
            path: of the GGUF file.
            threads: of everything.
            positions: the longest sequence, what is decoded included.
            variant: a key of `VARIANTS[name]`.
        """
        self._api = _Api(name)
        self._how = VARIANTS[name][variant]
        self._threads = threads
        self._model = self._api.load(path, self._how)
        bindings = self._api.bindings
        self.vocabulary: int = bindings.llama_vocab_n_tokens(bindings.llama_model_get_vocab(self._model))
        self._positions = -(-positions // 256) * 256
        self._one = self._api.context(self._model, self._how, threads, self._positions, 1)
        self._many: Any = None
        self._held, self._many_held = 0, 0
        self._batch = _Batch(bindings, BATCH)
        self.settings = {
            "package": f"{self._api.package} {importlib.metadata.version(self._api.package)}",
            "variant": variant,
            "threads": threads,
            "batch": BATCH,
            "compiled for": self._api.compiled_for(),
        }

    # --- one sequence -------------------------------------------------------------------------------------------------

    def fill(self, cached: int) -> None:
        """Go on from the length before, or take back what is too much."""
        if cached < self._held:
            self._api.remove(self._one, 0, cached)
        else:
            self._prompt(self._one, tokens_of(self.vocabulary, cached)[self._held :], self._held)
        self._held = cached

    def step(self, token: int) -> int:
        """Decode one token; returns the likeliest next."""
        self._batch.set([token], self._held, last_only=True)
        return self._run(self._one, 1)[0]

    def back(self) -> None:
        """Take the token back."""
        self._api.remove(self._one, 0, self._held)

    def prefill(self, tokens: Sequence[int]) -> int:
        """Run a prompt in an emptied cache."""
        self._api.remove(self._one, 0, 0)
        self._held = 0
        found = self._prompt(self._one, tokens, 0)
        self._api.remove(self._one, 0, 0)  # microseconds, and `fill` goes on from its own tokens
        return found

    def _prompt(self, context: Any, tokens: Sequence[int], start: int) -> int:
        found = 0
        for first in range(0, len(tokens), BATCH):
            some = tokens[first : first + BATCH]
            self._batch.set(some, start + first, last_only=True)
            found = self._run(context, len(some), row=len(some) - 1)[0]
        return found

    # --- several ------------------------------------------------------------------------------------------------------

    def fill_many(self, sequences: int, cached: int) -> None:
        """Fill each with its own tokens, in one batch after another."""
        if self._many is not None:  # its room was for others
            self._api.bindings.llama_free(self._many)
        room = -(-(cached + 8) // MANY_POSITIONS) * MANY_POSITIONS
        self._many = self._api.context(self._model, self._how, self._threads, room * sequences, sequences)
        for number in range(sequences):
            self._batch.set(tokens_of(self.vocabulary, cached, 1 + number), 0, last_only=True, sequence=number)
            self._run(self._many, cached, row=cached - 1)
        self._many_held = cached

    def step_many(self, tokens: Sequence[int]) -> list[int]:
        """Decode one token of each."""
        self._batch.set_each(tokens, self._many_held)
        return self._run(self._many, len(tokens))

    def back_many(self) -> None:
        """Take the tokens back."""
        for number in range(self._batch.count):
            self._api.remove(self._many, number, self._many_held)

    def about(self) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def _run(self, context: Any, rows: int, row: int | None = None) -> list[int]:
        bindings = self._api.bindings
        status = bindings.llama_decode(context, self._batch.native)
        if status != 0:
            raise RuntimeError(f"llama_decode answered {status} to {self._batch.count} tokens")
        wanted = range(rows) if row is None else [row]
        return [
            int(np.ctypeslib.as_array(bindings.llama_get_logits_ith(context, i), (self.vocabulary,)).argmax())
            for i in wanted
        ]


class _Batch:
    """A `llama_batch` that is written to through numpy, so that Python's part is small."""

    def __init__(self, bindings: Any, room: int):
        self.native = bindings.llama_batch_init(room, 0, 1)
        self.count = 0
        self._token = np.ctypeslib.as_array(self.native.token, (room,))
        self._position = np.ctypeslib.as_array(self.native.pos, (room,))
        self._wanted = np.ctypeslib.as_array(self.native.logits, (room,))
        np.ctypeslib.as_array(self.native.n_seq_id, (room,))[:] = 1
        self._sequence = [self.native.seq_id[row] for row in range(room)]
        self._labels: Any = None

    def set(self, tokens: Sequence[int], start: int, *, last_only: bool, sequence: int = 0) -> None:
        """Rows of one sequence from position `start` on."""
        count = self._set(tokens, np.arange(start, start + len(tokens), dtype=np.int32))
        self._wanted[:count] = not last_only
        self._wanted[count - 1] = 1
        self._label([sequence] * count)

    def set_each(self, tokens: Sequence[int], position: int) -> None:
        """One row for each of sequences 0, 1, ..."""
        count = self._set(tokens, position)
        self._wanted[:count] = 1
        self._label(range(count))

    def _set(self, tokens: Sequence[int], positions: NDArray[np.int32] | int) -> int:
        self.count = self.native.n_tokens = len(tokens)
        self._token[: self.count] = tokens
        self._position[: self.count] = positions
        return self.count

    def _label(self, sequences: Sequence[int]) -> None:
        if self._labels != (kept := tuple(sequences)):
            for row, sequence in enumerate(sequences):
                self._sequence[row][0] = sequence
            self._labels = kept


class _Api:
    """What differs between the two packages."""

    def __init__(self, name: str):
        if name == "llama":
            import llama_cpp  # pyright: ignore[reportMissingImports]

            self.bindings: Any = llama_cpp
            self.package = "llama-cpp-python"
            self._ik = False
        else:
            from ik_llama_cpp import _ctypes_api as ik  # pyright: ignore[reportMissingImports]

            self.bindings = ik
            self.package = "ik-llama-cpp-python"
            self._ik = True
            # Calls that the package's own file does not name.
            self._remove = ik._lib.llama_kv_cache_seq_rm
            self._remove.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
            self._remove.restype = ctypes.c_bool
        self.bindings.llama_backend_init()

    def compiled_for(self) -> str:
        """The instruction sets that the library says it was compiled for."""
        if self._ik:
            told = self.bindings._lib.llama_print_system_info
            told.restype = ctypes.c_char_p
        else:
            told = self.bindings.llama_print_system_info
        found = told().decode().replace("CPU :", "").split("|")
        return " ".join(part.split("=")[0].strip() for part in found if part.strip().endswith("= 1"))

    def load(self, path: str, how: Mapping[str, Any]) -> Any:
        params = self.bindings.llama_model_default_params()
        params.n_gpu_layers = 0
        if self._ik:
            # The model prepares what this attention needs; without it the context crashes.
            params.mla, params.flash_attn = how["mla"], how["flash"]
            if how.get("repack"):
                params.repack_tensors, params.use_mmap = True, False
        model = self.bindings.llama_model_load_from_file(path.encode(), params)
        if not model:
            raise RuntimeError(f"{self.package} does not open {path}")
        return model

    def context(self, model: Any, how: Mapping[str, Any], threads: int, positions: int, sequences: int) -> Any:
        params = self.bindings.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = positions, BATCH, sequences
        params.n_threads = params.n_threads_batch = threads
        if self._ik:
            params.flash_attn, params.mla_attn = how["flash"], how["mla"]
        else:
            params.flash_attn_type = int(how["flash"])
        context = self.bindings.llama_init_from_model(model, params)
        if not context:
            raise RuntimeError(f"{self.package} makes no context of {positions} positions")
        return context

    def remove(self, context: Any, sequence: int, start: int) -> None:
        """Take positions from `start` on out of a sequence."""
        if self._ik:
            self._remove(context, sequence, start, -1)
        else:
            self.bindings.llama_memory_seq_rm(self.bindings.llama_get_memory(context), sequence, start, -1)
