"""The law of drafted text: by enumerating every outcome on a stub, and by counting answers of the real engine.

Both tests are held against the usual mistakes, which they must reject.
"""

import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cueva.engine import Engine, Sampling, acceptance, running
from cueva.engine.acceptance import Draft, draw_draft, verify
from cueva.engine.draws import Purpose
from cueva.engine.sampling import Probabilities, process
from cueva.engine.settings import Settings, settle
from cueva.model import CausalLM
from tests.builders import tiny_model
from tests.engine.doubles import remember_prefill

# --- every outcome, on three tokens -----------------------------------------------------------------------------------

ALPHABET = 3
LENGTH = 3
PROMPT = (0, 2)


class Branch:
    """Chance, one branch at a time: follows a script, then first options, and notes what else could have happened."""

    def __init__(self, script: Sequence[int]):
        self.taken: list[int] = list(script)
        self.place = 0
        self.weight = 1.0
        self.others: list[list[int]] = []

    def _choose(self, options: list[int], weights: list[float]) -> int:
        if self.place == len(self.taken):
            self.others += [[*self.taken, i] for i in range(1, len(options))]
            self.taken.append(0)
        i = self.taken[self.place]
        self.place += 1
        self.weight *= weights[i]
        return options[i]

    def pick(self, position: int, purpose: Purpose, probability_A: Probabilities) -> int:
        options = np.flatnonzero(probability_A).tolist()
        return self._choose(options, [float(probability_A[i]) for i in options])

    def happens(self, position: int, purpose: Purpose, probability: float) -> bool:
        options = [yes for yes in (1, 0) if (probability if yes else 1 - probability) > 0]
        return bool(self._choose(options, [probability if yes else 1 - probability for yes in options]))


def every_branch(run: Callable[[Branch], Any]) -> Iterator[tuple[Any, float]]:
    waiting: list[list[int]] = [[]]
    while waiting:
        branch = Branch(waiting.pop())
        outcome = run(branch)
        waiting += branch.others
        yield outcome, branch.weight


@functools.cache
def stub_logits(history: tuple[int, ...], model: int) -> np.ndarray:
    """A model of three tokens whose logits depend on everything before."""
    return (np.random.default_rng([model, *history]).standard_normal(ALPHABET) * 1.5).astype(np.float32)


def drafted_answer(draws: Branch, settings: Settings, drafts: Callable[[Sequence[int]], int]) -> tuple[int, ...]:
    answer: list[int] = []
    while len(answer) < LENGTH:
        proposed: list[Draft] = []
        for _ in range(min(drafts(answer), LENGTH - len(answer) - 1)):
            so_far = [*answer, *(d.token_id for d in proposed)]
            logits_A = stub_logits((*PROMPT, *so_far), 2)
            proposed.append(acceptance.draw_draft(logits_A, PROMPT, so_far, settings, draws))
        lines = [(*PROMPT, *answer, *(d.token_id for d in proposed[:n])) for n in range(len(proposed) + 1)]
        logits_TA = np.stack([stub_logits(line, 1) for line in lines])
        answer += verify(logits_TA, proposed, PROMPT, answer, settings, draws).token_ids
    return tuple(answer)


def law_of(settings: Settings, drafts: Callable[[Sequence[int]], int]) -> dict[tuple[int, ...], float]:
    law: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for outcome, weight in every_branch(lambda draws: drafted_answer(draws, settings, drafts)):
        law[outcome] += weight
    return law


def own_law(settings: Settings) -> dict[tuple[int, ...], float]:
    law = {}
    for tokens in itertools.product(range(ALPHABET), repeat=LENGTH):
        chance = 1.0
        for n, token_id in enumerate(tokens):
            logits_A = stub_logits((*PROMPT, *tokens[:n]), 1)
            chance *= process(logits_A, PROMPT, tokens[:n], settings)[token_id]
        law[tokens] = chance
    return law


def gap(law: dict[tuple[int, ...], float], wanted: dict[tuple[int, ...], float]) -> float:
    return max(abs(law.get(tokens, 0.0) - chance) for tokens, chance in wanted.items())


ALL_SETTINGS = [
    Settings(),
    Settings(temperature=0.6),
    Settings(temperature=1.4, top_p=0.8),
    Settings(top_k=2),
    Settings(min_p=0.3, temperature=0.9),
    Settings(repetition_penalty=1.5, presence_penalty=0.4, frequency_penalty=0.3, logit_bias={1: 0.7}),
]


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda s: s.describe())
@pytest.mark.parametrize(
    "drafts",
    [lambda answer: 2, lambda answer: 1, lambda answer: 2 - sum(answer) % 3],
    ids=["two", "one", "as it happens"],
)
def test_drafted_tokens_follow_the_models_own_distribution(
    settings: Settings, drafts: Callable[[Sequence[int]], int]
) -> None:
    """Every outcome of up to three rounds; how many tokens are drafted may depend on what came before."""
    law = law_of(settings, drafts)
    assert abs(sum(law.values()) - 1) < 1e-12
    assert gap(law, own_law(settings)) < 1e-12


def test_the_enumeration_rejects_the_usual_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(temperature=0.8)
    wanted = own_law(settings)
    for name, mistake in MISTAKES.items():
        with monkeypatch.context() as patch:
            mistake(patch)
            assert gap(law_of(settings, lambda answer: 2), wanted) > 0.01, name


def test_greedy_keeps_a_draft_if_and_only_if_it_is_the_models_choice() -> None:
    logits_TA = np.array([[0, 3, 1], [5, 0, 0], [0, 0, 2]], np.float32)
    greedy = Settings(temperature=0)

    class NoChance(Branch):
        def _choose(self, options: list[int], weights: list[float]) -> int:
            raise AssertionError("greedy draws nothing")

    def after(*drafts: int) -> tuple[list[int], int]:
        proposed = [Draft(d, np.eye(3)[d]) for d in drafts]
        verdict = verify(logits_TA[: len(drafts) + 1], proposed, [0], [], greedy, NoChance([]))
        return verdict.token_ids, verdict.accepted

    assert after(1, 0) == ([1, 0, 2], 2)
    assert after(1, 2) == ([1, 0], 1)
    assert after(0, 0) == ([1], 0)
    assert after() == ([1], 0)


def test_where_both_distributions_are_equal_every_draft_stays() -> None:
    logits_A = stub_logits((1,), 1)
    for settings in ALL_SETTINGS:
        for token_id in np.flatnonzero(process(logits_A, [], [], settings)):
            q_A = process(logits_A, [], [], settings)
            assert acceptance.accept_probability(q_A[token_id], q_A[token_id]) == 1.0
        assert acceptance.residual(q_A, q_A) is None


# --- the usual mistakes -----------------------------------------------------------------------------------------------


def accepts_by_the_drafts_own_probability(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(acceptance, "accept_probability", lambda p, q: min(1.0, q))


def forgets_the_residual(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(acceptance, "residual", lambda target_A, draft_A: target_A)


def drafts_the_likeliest_and_claims_to_have_drawn(patch: pytest.MonkeyPatch) -> None:
    def likeliest(*args: Any) -> Draft:
        honest = draw_draft(*args)
        return Draft(int(honest.probability_A.argmax()), honest.probability_A)

    patch.setattr(acceptance, "draw_draft", likeliest)
    patch.setattr(running, "draw_draft", likeliest)


MISTAKES = {
    f.__name__: f
    for f in (
        accepts_by_the_drafts_own_probability,
        forgets_the_residual,
        drafts_the_likeliest_and_claims_to_have_drawn,
    )
}

# --- the real engine, counted -----------------------------------------------------------------------------------------

SAMPLED = Sampling(max_new_tokens=4, temperature=0.5, ignore_eos=True)
START = [3, 1, 4, 1, 5]
SAMPLES = 800


@pytest.fixture(scope="module")
def small() -> CausalLM:
    shape = {"vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 1, "n_routed_experts": None}
    return tiny_model(**shape, seed=2)


@pytest.fixture(scope="module")
def small_engine(small: CausalLM) -> Engine:
    engine = Engine(small, backend="torch", rows=64, prefill_chunk=8)
    remember_prefill(engine)
    return engine


@pytest.fixture(scope="module")
def small_law(small: CausalLM) -> dict[tuple[int, ...], float]:
    """The exact law of four tokens, from whole expanded passes and no engine."""
    settings = settle(SAMPLED, Settings(), 0)
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(4):
        longer = {}
        lines = torch.tensor([[*START, *tokens] for tokens in law])
        with torch.inference_mode():
            logits_BA = small(lines).logits[:, -1].numpy()
        for (tokens, chance), logits_A in zip(law.items(), logits_BA, strict=True):
            probability_A = process(logits_A, START, tokens, settings)
            longer.update({(*tokens, i): chance * p for i, p in enumerate(probability_A.tolist())})
        law = longer
    assert abs(sum(law.values()) - 1) < 1e-12
    return law


def chi_square_is_small(answers: list[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> bool:
    """Whether the counts fit the law, at one chance in ten thousand; cells expecting under 5 are counted together."""
    count = len(answers)
    if not set(answers) <= set(law):
        return False
    rare = [tokens for tokens, chance in law.items() if chance * count < 5]
    cells = [([tokens], chance * count) for tokens, chance in law.items() if chance * count >= 5]
    if rare:
        cells.append((rare, sum(law[tokens] for tokens in rare) * count))
    seen = Counter(answers)
    statistic = sum((sum(seen[tokens] for tokens in some) - expected) ** 2 / expected for some, expected in cells)
    freedom = len(cells) - 1
    assert freedom >= 5
    # Wilson and Hilferty's cube: the quantile at 1e-4, 3.719 standard deviations out.
    edge = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic < edge


def sampled(engine: Engine, draft: int, count: int) -> list[tuple[int, ...]]:
    samplings = [Sampling(**{**SAMPLED.__dict__, "seed": seed}) for seed in range(count)]
    return [answer.token_ids for answer in engine.generate([START] * count, samplings, draft)]


@pytest.mark.parametrize("draft", [0, 2])
def test_the_engines_answers_follow_the_models_own_distribution(
    small_engine: Engine, small_law: dict[tuple[int, ...], float], draft: int
) -> None:
    assert chi_square_is_small(sampled(small_engine, draft, SAMPLES), small_law)


@pytest.mark.parametrize(
    ("mistake", "samples"),
    [
        (accepts_by_the_drafts_own_probability, SAMPLES // 2),
        (forgets_the_residual, SAMPLES * 3 // 2),
        (drafts_the_likeliest_and_claims_to_have_drawn, SAMPLES // 2),
    ],
)
def test_the_count_rejects_the_usual_mistakes(
    small_engine: Engine,
    small_law: dict[tuple[int, ...], float],
    mistake: Callable[[pytest.MonkeyPatch], None],
    samples: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mistake(monkeypatch)
    assert not chi_square_is_small(sampled(small_engine, 2, samples), small_law)
