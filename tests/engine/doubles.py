"""Stand-ins: a tokenizer small enough to reason about, and a drafter that is right as often as a test wants."""

import codecs
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import cueva.engine.running as running
from cueva.engine import Engine, Sampling
from cueva.engine.acceptance import Draft
from cueva.engine.runner import Runner

GREEDY = Sampling(temperature=0, ignore_eos=True)


class PieceDecoder:
    def __init__(self, pieces: Sequence[bytes], hidden: set[int]):
        self._pieces, self._hidden = pieces, hidden
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int, /) -> str:
        return "" if token_id in self._hidden else self._utf8.decode(self._pieces[token_id])

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class PieceTokenizer:
    """0 begins, 1 ends, then one token per byte, then some longer pieces. `size` may be less than a model's rows."""

    def __init__(self, longer: Sequence[str] = ("ab", "bc", "abc", " the", "é!"), *, bos: bool = True):
        self.pieces = [b"", b"", *(bytes([i]) for i in range(256)), *(text.encode() for text in longer)]
        self.size = len(self.pieces)
        self.bos_id = 0 if bos else None
        self.adds_bos = bos
        self.eos_ids = (1,)

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return [0] * bos + [byte + 2 for byte in text.encode()]

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        assert not variables
        return self.encode("".join(f"{m['role']}:{m['content']}\n" for m in messages), bos=True)

    def stream(self, *, after: Iterable[int] = ()) -> PieceDecoder:
        decoder = PieceDecoder(self.pieces, {0, 1})
        for token_id in after:
            decoder.push(token_id)
        return decoder


def force_drafts(
    monkeypatch: pytest.MonkeyPatch, truth: Sequence[Sequence[int]], share: float, *, seed: int = 0
) -> None:
    """Let drafts of greedy requests be right with probability `share`: a seeded coin in place of an MTP module's skill.

    `truth` holds, per prompt, its tokens and those of its plain answer; a draft that is not right is another token.
    """
    coin = np.random.default_rng(seed)

    def coin_draft(logits_A: Any, prompt: Any, answer: Any, *rest: Any) -> Draft:
        so_far = [*prompt, *answer]
        following = [
            line[len(so_far)] for line in truth if list(line[: len(so_far)]) == so_far and len(line) > len(so_far)
        ]
        token_id = following[0] if following else 0
        if coin.random() >= share:
            token_id = (token_id + 1) % len(logits_A)
        probability_A = np.zeros(len(logits_A))
        probability_A[token_id] = 1.0
        return Draft(token_id, probability_A)

    monkeypatch.setattr(running, "draw_draft", coin_draft)


def remember_prefill(engine: Engine) -> None:
    """Run each prompt chunk once and copy its rows afterwards: many samples of one prompt cost one prefill."""
    runner, kept = engine.runner, {}

    def remembered(name: str, layers: range, cache: Any, key: Any, run: Any) -> torch.Tensor:
        before = {layer: cache.length(layer) for layer in layers}
        full = (name, layers, tuple(before.values()), key)
        if full in kept:
            state_ND, rows = kept[full]
            for layer, rows_TX in rows.items():
                cache.append(layer, rows_TX[:, :-1], rows_TX[:, -1:])
            return state_ND
        state_ND = run()
        rows = {layer: cache.rows(layer, cache.length(layer))[n:].clone() for layer, n in before.items()}
        kept[full] = (state_ND, rows)
        return state_ND

    main = engine.config.num_hidden_layers

    def prefill(cache: Any, ids: Sequence[int]) -> torch.Tensor:
        run = lambda: Runner.prefill(runner, cache, ids)  # noqa: E731
        return remembered("main", range(main), cache, tuple(ids), run)

    def mtp_prefill(depth: int, cache: Any, ids: Sequence[int], state_ND: torch.Tensor) -> torch.Tensor:
        run = lambda: Runner.mtp_prefill(runner, depth, cache, ids, state_ND)  # noqa: E731
        return remembered("mtp", range(main + depth - 1, main + depth), cache, tuple(ids), run)

    runner.prefill, runner.mtp_prefill = prefill, mtp_prefill  # type: ignore[method-assign]
