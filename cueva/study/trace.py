"""One text, token by token: who proposed each token, how sure the model was, and which experts it went to.

The text is generated with drafting by the engine; then one full pass over the final ids collects what every gate
chose. The gates of that pass see the same tokens as the engine's own steps did, so the choices are those of the
generation, up to router scores that tie within rounding.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from cueva.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from cueva.engine import Codec, Engine, Sampling
    from cueva.model import CausalLM, States

ROWS_AT_ONCE: Final = 64
"""Rows whose logits are held at once: a vocabulary of 129,280 makes half a megabyte of each."""

Choices = tuple[tuple[tuple[int, ...], ...], ...]
Weights = tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True)
class TraceToken:
    """One token of a traced text."""

    id: int
    text: str
    """Its bytes as text; bytes that are no whole characters alone are written as `\xe2`."""
    logprob: float | None
    """Natural logarithm of the probability the model gave it, before any filter; None for the first."""
    drafted: int
    """The place in its draft (1, 2, ...) at which an MTP module proposed it; 0 when the model chose it itself."""
    prompt: bool


@dataclass(frozen=True)
class Trace:
    """A text with the choices of every gate. JSON-serialisable by `to_json`."""

    tokens: tuple[TraceToken, ...]
    gates: tuple[str, ...]
    """A name for each gate: `layer 1`, ..., `mtp 1`."""
    experts: Choices
    """[gate][token]: the experts it went to. Empty where a gate did not see a token: MTP module k never sees the first
    k.
    """
    weights: Weights
    """[gate][token]: how much each of those answers counted."""
    proposed: tuple[int, ...] = ()
    """How many first, second, ... drafts were made, rejected ones included."""
    accepted: tuple[int, ...] = ()
    """How many of them stayed."""
    passes: int = 0
    """Passes of the model after the first token."""

    def to_json(self) -> str:
        """The trace as one JSON object; `from_json` reads it back."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Trace":
        """Read what `to_json` wrote.

        Raises:
            RequestError: the text is not a trace.
        """
        try:
            read = json.loads(text)
            return cls(
                tokens=tuple(TraceToken(**token) for token in read["tokens"]),
                gates=tuple(read["gates"]),
                experts=tuple(tuple(tuple(map(int, choice)) for choice in rows) for rows in read["experts"]),
                weights=tuple(tuple(tuple(map(float, choice)) for choice in rows) for rows in read["weights"]),
                proposed=tuple(map(int, read["proposed"])),
                accepted=tuple(map(int, read["accepted"])),
                passes=int(read["passes"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise RequestError(f"this is not a trace as `Trace.to_json` writes it: {error}") from error


def make_trace(
    engine: "Engine", prompt: str | Sequence[int], sampling: "Sampling", *, draft: int | None = None
) -> Trace:
    """Generate with drafting and collect, for every token, its probability, its proposer and its experts.

    Args:
        engine: decides everything about the text; without a tokenizer, tokens are shown as numbers.
        prompt: text or token ids, as for `Engine.stream`.
        sampling: as for `Engine.stream`; `max_new_tokens` bounds the length of the trace.
        draft: tokens drafted in each round; None: one for each MTP module, so that every module shows what it can.

    Raises:
        RequestError: the prompt or the request does not fit.
    """
    import torch

    from cueva.model import CausalLM

    model, tokenizer = engine.model, engine.tokenizer
    if not isinstance(model, CausalLM):
        raise RequestError(
            "a trace looks into a model in memory, and this engine keeps only its native copy",
            way_out="try cueva.Engine(cueva.load(path), tokenizer)",
        )
    if isinstance(prompt, str) and tokenizer is not None:
        prompt = tokenizer.encode(prompt, bos=tokenizer.adds_bos)
        if not prompt and tokenizer.bos_id is not None:
            prompt = [tokenizer.bos_id]
    draft = model.config.num_nextn_predict_layers if draft is None else draft
    pieces = engine.stream(prompt, sampling, draft)
    assert not isinstance(prompt, str), "an engine without a tokenizer has refused a text by now"
    ids, drafted, stats = list(prompt), [0] * len(prompt), None
    for piece in pieces:
        ids += piece.token_ids
        drafted += piece.drafted
        stats = stats if piece.answer is None else piece.answer.stats
    assert stats is not None, "the last piece carries the answer"
    with torch.inference_mode():
        states = model.states(torch.tensor([ids], device=model.lm_head.weight.device))
        logprobs = _logprobs(model, states.hidden_BTD[0], ids)
    gates, experts, weights = _choices(model, states, len(ids))
    tokens = tuple(
        TraceToken(token, token_text(tokenizer, token), logprobs[i], drafted[i], i < len(prompt))
        for i, token in enumerate(ids)
    )
    return Trace(tokens, gates, experts, weights, tuple(stats.drafted), tuple(stats.accepted), stats.passes)


def token_text(tokenizer: "Codec | None", token: int) -> str:
    r"""The bytes of one token as text; bytes that are no whole characters become `\xe2` and the like."""
    token_bytes = getattr(tokenizer, "token_bytes", None)
    return f"<{token}>" if token_bytes is None else token_bytes(token).decode("utf-8", errors="backslashreplace")


def _logprobs(model: "CausalLM", hidden_TD: "Tensor", ids: Sequence[int]) -> list[float | None]:
    """What the model gave each token, from the row before it; a few rows at a time, because logits are large."""
    import torch

    found: list[float | None] = [None]
    for start in range(0, len(ids) - 1, ROWS_AT_ONCE):
        target_T = torch.tensor(ids[start + 1 : start + 1 + ROWS_AT_ONCE], device=hidden_TD.device)
        logits_TA = model.logits(hidden_TD[start : start + len(target_T)])
        found += logits_TA.log_softmax(-1).gather(-1, target_T[:, None])[:, 0].tolist()
    return found


def _choices(model: "CausalLM", states: "States", length: int) -> tuple[tuple[str, ...], Choices, Weights]:
    """Each gate's name, and its choices by the token that a row was fed.

    Row i of a main layer is fed token i. Row i of MTP module k is fed token i + k beside the state of row i, so its
    choice belongs to token i + k, and the first k tokens have none.
    """
    config = model.config
    layers = [layer for layer in range(config.num_hidden_layers) if config.is_expert_layer(layer)]
    places = [(f"layer {layer}", 0) for layer in layers]
    if config.n_routed_experts is not None:
        places += [(f"mtp {depth}", depth) for depth in range(1, config.num_nextn_predict_layers + 1)]
    names, experts, weights = [], [], []
    for (name, late), routing in zip(places, states.routings, strict=True):
        unseen = [()] * min(late, length)
        names.append(name)
        experts.append((*unseen, *map(tuple, routing.expert_TK.tolist())))
        weights.append((*unseen, *(tuple(round(w, 5) for w in row) for row in routing.weight_TK.tolist())))
    return tuple(names), tuple(experts), tuple(weights)
