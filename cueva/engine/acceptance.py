"""Which drafts stay: the rules that make drafting change nothing but speed.

For a draft d drawn from the drafter's distribution q, at a place where the model's own is p (both after the same
penalties, temperature and filters): d stays with probability min(1, p(d) / q(d)); otherwise a token is drawn from
what p has in excess of q, and the rest of the drafts fall. The chance to get token x is then
min(p(x), q(x)) + (1 - sum min(p, q)) max(p(x) - q(x), 0) / sum max(p - q, 0) = p(x): exactly the model's own. With
greedy settings p and q are each one token, and the rule says: a draft stays if and only if it is the model's choice.

Source: Leviathan et al. 2022 (arXiv:2211.17192), theorem in appendix A.1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cueva.engine.draws import Draws, Purpose
from cueva.engine.sampling import Among, Probabilities, choose_greedily, process, process_among
from cueva.engine.settings import Settings


class Draft(NamedTuple):
    """A proposed token and the distribution it was drawn from."""

    token_id: int
    probability_A: Probabilities | None
    """None if the token was certain: greedy settings look at nothing else."""


class Verdict(NamedTuple):
    """What one verification decided."""

    token_ids: list[int]
    """The drafts that stay, then one token more: the correction, or after all of them a bonus."""
    accepted: int
    """How many drafts stay."""


def accept_probability(p: float, q: float) -> float:
    """The chance that a draft stays, whose probability is `p` for the model and `q` > 0 for the drafter."""
    return min(1.0, p / q)


def residual(target_A: Probabilities, draft_A: Probabilities) -> Probabilities | None:
    """What a rejected draft is replaced from: the model's excess over the drafter; None where there is none."""
    excess_A = np.maximum(target_A - draft_A, 0.0)
    total = excess_A.sum()
    return excess_A / total if total > 0 else None


def draw_draft(
    logits: NDArray[np.float32],
    prompt: Sequence[int],
    answer: Sequence[int],
    settings: Settings,
    draws: Draws,
    usable: int | None = None,
    among: Among | None = None,
) -> Draft:
    """Draw a draft from an MTP module's logits, processed as the model's are.

    The draft is drawn from q and is not its likeliest token: the rule above divides by the probability with which it
    really was proposed. Any q will do, so the logits may be those of some ids only (`among`): the others have q = 0.
    """
    if settings.greedy and not settings.moves_logits:
        # Which token is all that counts; among some ids, it is the likeliest of those.
        place = choose_greedily(logits, (), (), settings, usable=None if among is not None else usable)
        return Draft(place if among is None else int(among.ids_V[place]), None)
    if among is None:
        probability_A = process(logits, prompt, answer, settings, usable=usable)
    else:
        probability_A = process_among(logits, prompt, answer, settings, among)
    if settings.greedy:
        return Draft(int(probability_A.argmax()), probability_A)
    position = len(prompt) + len(answer)
    return Draft(draws.pick(position, Purpose.DRAFT, probability_A), probability_A)


def draw_token(
    logits_A: NDArray[np.float32],
    prompt: Sequence[int],
    answer: Sequence[int],
    settings: Settings,
    draws: Draws,
    usable: int | None = None,
) -> int:
    """Draw a token from the model's own distribution."""
    if settings.greedy:
        return choose_greedily(logits_A, prompt, answer, settings, usable=usable)
    probability_A = process(logits_A, prompt, answer, settings, usable=usable)
    return draws.pick(len(prompt) + len(answer), Purpose.TOKEN, probability_A)


def verify(
    logits_TA: NDArray[np.float32],
    drafts: Sequence[Draft],
    prompt: Sequence[int],
    answer: Sequence[int],
    settings: Settings,
    draws: Draws,
    usable: int | None = None,
) -> Verdict:
    """Decide which drafts stay, and the token after them.

    Args:
        logits_TA: the model's, one row per draft and one more: row j follows the answer and the first j drafts.
        drafts: in order; may be none, and then this is plain decoding.
        prompt: token ids of the prompt.
        answer: token ids decided so far.
        settings: of the request.
        draws: of the request.
        usable: see `process`.
    """
    decided: list[int] = []
    if settings.greedy:  # one token is certain: a draft stays if it is that token
        for row, logits_A in enumerate(logits_TA[: len(drafts) + 1]):
            so_far = [*answer, *decided] if settings.moves_logits else ()
            token_id = choose_greedily(logits_A, prompt, so_far, settings, usable=usable)
            decided.append(token_id)
            if row == len(drafts) or token_id != drafts[row].token_id:
                return Verdict(decided, row)
    for row, draft in enumerate(drafts):
        so_far = [*answer, *decided]
        assert draft.probability_A is not None
        position = len(prompt) + len(so_far)
        target_A = process(logits_TA[row], prompt, so_far, settings, usable=usable)
        chance = accept_probability(target_A[draft.token_id], draft.probability_A[draft.token_id])
        if not draws.happens(position, Purpose.ACCEPT, chance):
            excess_A = residual(target_A, draft.probability_A)
            # No excess means p = q up to rounding: the draft is as good a draw from p as any.
            if excess_A is not None:
                return Verdict([*decided, draws.pick(position, Purpose.RESIDUAL, excess_A)], row)
        decided.append(draft.token_id)
    bonus = draw_token(logits_TA[len(drafts)], prompt, [*answer, *decided], settings, draws, usable)
    return Verdict([*decided, bonus], len(drafts))
