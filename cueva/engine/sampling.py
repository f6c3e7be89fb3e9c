"""From one row of logits to the distribution that a token is drawn from, and to log-probabilities.

`process` serves the main model and drafts alike: drafting is exact only if both are processed in one way.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cueva.engine.settings import Settings
from cueva.errors import RunError

Probabilities = NDArray[np.float64]
"""One probability per token of the vocabulary (A); they add up to 1."""


class Among(NamedTuple):
    """Some ids of a vocabulary (V of A): those that logits are of."""

    ids_V: NDArray[np.int64]
    """Ascending, without repeats."""
    vocab_size: int

    def places(self, token_ids: Sequence[int]) -> list[int]:
        """Where those of `token_ids` that are among ours are, in order and with repeats."""
        ids = np.asarray(token_ids, np.int64)
        places = np.searchsorted(self.ids_V, ids).clip(max=len(self.ids_V) - 1)
        return places[self.ids_V[places] == ids].tolist()


def process(
    logits_A: NDArray[np.float32],
    prompt: Sequence[int],
    answer: Sequence[int],
    settings: Settings,
    *,
    usable: int | None = None,
) -> Probabilities:
    """Turn one row of logits into the distribution the next token is drawn from.

    The order is that of `transformers`: repetition penalty, presence and frequency penalty, logit bias, temperature,
    top-k, top-p, min-p; each filter sees the distribution that the one before it left. Computed in float64, one row by
    itself, so that nothing depends on neighbours.

    Args:
        logits_A: the model's, or an MTP module's.
        prompt: token ids of the prompt; only the repetition penalty looks at them.
        answer: token ids after the prompt, drafts under consideration included.
        settings: of the request.
        usable: ids from here on are never chosen: a vocabulary may have more rows than the tokenizer has tokens.

    Returns:
        Float64; greedy gives one 1 and zeros.

    Raises:
        RunError: the logits are not numbers, so the weights are damaged.
    """
    score_A = logits_A.astype(np.float64)
    if not np.isfinite(score_A).all():
        raise RunError("the model's logits are not finite numbers, so nothing can be chosen: its weights are damaged")

    # 1. Penalties and bias move logits.
    if settings.repetition_penalty != 1 and (prompt or answer):
        seen = np.unique(np.array([*prompt, *answer]))
        some = score_A[seen]
        score_A[seen] = np.where(some < 0, some * settings.repetition_penalty, some / settings.repetition_penalty)
    if (settings.presence_penalty or settings.frequency_penalty) and answer:
        seen, times = np.unique(np.array(answer), return_counts=True)
        score_A[seen] -= settings.presence_penalty + settings.frequency_penalty * times
    for token_id, bias in settings.logit_bias.items():
        score_A[token_id] += bias
    if usable is not None:
        score_A[usable:] = -np.inf

    # 2. Greedy: numpy's argmax takes the first of equals.
    probability_A = np.zeros_like(score_A)
    if settings.greedy:
        probability_A[score_A.argmax()] = 1.0
        return probability_A

    # 3. Filters keep ids; what they drop gets probability 0. The maximum goes first, so that a tiny temperature cannot
    # overflow.
    score_A = (score_A - score_A.max()) / settings.temperature
    kept = np.arange(len(score_A) if usable is None else min(usable, len(score_A)))
    if 0 < settings.top_k < len(kept):
        kept = _likeliest(score_A[: len(kept)], settings.top_k)
    if settings.top_p < 1:
        kept = kept[np.argsort(-score_A[kept], kind="stable")]
        chance = _softmax(score_A[kept])
        before = np.cumsum(chance) - chance
        kept = kept[(before < settings.top_p) | (np.arange(len(kept)) == 0)]
    if settings.min_p > 0:
        kept = kept[score_A[kept] >= math.log(settings.min_p)]  # the likeliest has score 0
    probability_A[kept] = _softmax(score_A[kept])
    return probability_A


def choose_greedily(
    logits_A: NDArray[np.float32],
    prompt: Sequence[int],
    answer: Sequence[int],
    settings: Settings,
    *,
    usable: int | None = None,
) -> int:
    """The one token that `process` gives with greedy settings; without penalties and bias, straight from the logits."""
    if not settings.moves_logits:
        score_A = logits_A[:usable]
        token_id = int(score_A.argmax())  # a NaN wins
        if np.isfinite(score_A[token_id]) and np.isfinite(score_A.min()):
            return token_id
    return int(process(logits_A, prompt, answer, settings, usable=usable).argmax())


def process_among(
    logits_V: NDArray[np.float32], prompt: Sequence[int], answer: Sequence[int], settings: Settings, among: Among
) -> Probabilities:
    """Do the same with the logits of some ids only: all others get probability 0, as if their logits were -infinity.

    Returns:
        Float64 (A), for the whole vocabulary.
    """
    if settings.repetition_penalty != 1:
        prompt = among.places(prompt)
    if settings.repetition_penalty != 1 or settings.presence_penalty or settings.frequency_penalty:
        answer = among.places(answer)
    else:
        prompt = answer = ()
    if settings.logit_bias:
        bias = {places[0]: bias for i, bias in settings.logit_bias.items() if (places := among.places([i]))}
        settings = dataclasses.replace(settings, logit_bias=bias)
    probability_A = np.zeros(among.vocab_size)
    probability_A[among.ids_V] = process(logits_V, prompt, answer, settings)
    return probability_A


def _likeliest(score_A: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Ids of the `count` highest scores, ascending; of equals at the border, the lowest ids."""
    border = np.partition(score_A, -count)[-count]
    above = np.flatnonzero(score_A > border)
    level = np.flatnonzero(score_A == border)[: count - len(above)]
    return np.sort(np.concatenate([above, level]))


def _softmax(score: NDArray[np.float64]) -> NDArray[np.float64]:
    weight = np.exp(score - score.max())
    return weight / weight.sum()


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model found a token, before any penalty, temperature or filter."""

    token_id: int
    logprob: float
    """Natural logarithm."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their log-probabilities, best first, ties to the lowest id."""


def log_probability(logits_A: NDArray[np.float32], token_id: int, alternatives: int) -> TokenLogprob:
    """Log-softmax of one row of raw logits at `token_id`, with the `alternatives` likeliest beside it."""
    score_A = logits_A.astype(np.float64)
    score_A -= score_A.max()
    score_A -= math.log(np.exp(score_A).sum())
    best = _likeliest(score_A, alternatives) if 0 < alternatives < len(score_A) else np.arange(len(score_A))
    best = best[np.argsort(-score_A[best], kind="stable")][:alternatives]
    return TokenLogprob(token_id, float(score_A[token_id]), tuple((int(i), float(score_A[i])) for i in best))
