from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cueva.engine.heads as heads
from cueva.config import model_config
from cueva.engine import Engine, Sampling, frequent_ids
from cueva.engine.draft_vocabulary import AUTO_FROM, FIRST_LOOK, DraftVocabulary
from cueva.engine.passes import Work
from cueva.engine.plan import DraftPlan
from cueva.engine.runner import Runner
from cueva.engine.sampling import Among, process, process_among
from cueva.engine.settings import Settings
from cueva.errors import RequestError
from tests.builders import tiny_model
from tests.engine.simulation import MeasuringMachine, Shape, Simulated

BIG = model_config("tiny", vocab_size=32000)
GREEDY = Sampling(temperature=0, ignore_eos=True, max_new_tokens=24)


def ids_of(vocabulary: DraftVocabulary) -> list[int]:
    assert vocabulary.current_V is not None
    return vocabulary.current_V.tolist()


# --- which ids --------------------------------------------------------------------------------------------------------


def test_auto_keeps_small_vocabularies_whole_and_takes_the_lowest_ids_of_large_ones() -> None:
    small = model_config("tiny", vocab_size=AUTO_FROM - 1)
    assert DraftVocabulary("auto", small, small.vocab_size).fixed_V is None
    assert ids_of(DraftVocabulary("auto", BIG, 32000)) == list(range(8000))
    assert (
        DraftVocabulary("auto", model_config("tiny", vocab_size=32000, num_nextn_predict_layers=0), 9).fixed_V is None
    )


def test_nothing_asked_for_is_the_whole_vocabulary() -> None:
    for asked in (None, 0, 32000, 40):
        usable = 30 if asked == 40 else 32000
        assert DraftVocabulary(asked, BIG, usable).fixed_V is None


def test_given_ids_are_taken_sorted_without_repeats_and_stay_whatever_is_seen() -> None:
    vocabulary = DraftVocabulary([9, 3, 3, 31999], BIG, 31000)
    assert ids_of(vocabulary) == [3, 9]
    vocabulary.saw([100] * 3 * FIRST_LOOK)
    assert ids_of(vocabulary) == [3, 9]


def test_frequent_ids_are_those_that_occur_most_ties_to_the_lower() -> None:
    assert frequent_ids([5, 5, 1, 9, 9, 9, 2], 3, 10).tolist() == [1, 5, 9]
    assert frequent_ids([], 2, 10).tolist() == [0, 1]


def test_use_moves_the_choice_for_greedy_requests_and_not_the_first_one() -> None:
    vocabulary = DraftVocabulary(4, BIG, 32000)
    before = vocabulary.current_V
    vocabulary.saw([0, 1, 2, 500, 501] * FIRST_LOOK, prompt=True)
    assert ids_of(vocabulary) == [0, 1, 2, 500]
    assert vocabulary.fixed_V is before
    # Little to gain: the same object stays, so that nothing is packed again.
    current = vocabulary.current_V
    vocabulary.saw([0, 1, 2, 500] * 20 * FIRST_LOOK + [501], prompt=True)
    assert vocabulary.current_V is current


def test_the_hit_rate_is_that_of_the_latest_answers() -> None:
    vocabulary = DraftVocabulary([1, 2], BIG, 32000)
    assert vocabulary.hit_rate == 1
    vocabulary.saw([1, 2, 3, 4] * 200)
    assert vocabulary.hit_rate == pytest.approx(0.5, abs=0.02)
    assert vocabulary.coverage([1, 1, 1, 31999]) == 0.75


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("most", "draft_vocabulary is 'most'"),
        (-1, "draft_vocabulary is -1"),
        (32001, "draft_vocabulary is 32001"),
        ([], "a list of token ids that is not empty"),
        ([1.5], "a list of token ids"),
        ([7, 32000], "names token 32000, outside the vocabulary of 32000"),
        ([31999], "only tokens that this tokenizer does not know"),
        (True, "draft_vocabulary must be"),
    ],
)
def test_what_is_no_vocabulary_is_refused(asked: Any, words: str) -> None:
    with pytest.raises(RequestError, match=r".") as refused:
        DraftVocabulary(asked, BIG, 31999)
    assert words in str(refused.value)


# --- what is drawn from them ------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 99),
    settings=st.builds(
        Settings,
        temperature=st.sampled_from([0.0, 0.7, 1.5]),
        top_k=st.sampled_from([0, 3]),
        top_p=st.sampled_from([1.0, 0.8]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        presence_penalty=st.sampled_from([0.0, 0.5]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
        logit_bias=st.sampled_from([{}, {3: 2.0, 18: 9.0}]),
    ),
)
def test_some_logits_give_what_all_give_with_the_others_at_minus_infinity(seed: int, settings: Settings) -> None:
    random = np.random.default_rng(seed)
    ids_V = np.sort(random.choice(20, 8, replace=False))
    logits_A = random.normal(size=20).astype(np.float32)
    hidden_A = np.full(20, -1e30, np.float32)
    hidden_A[ids_V] = logits_A[ids_V]
    prompt, answer = random.integers(0, 20, 6).tolist(), random.integers(0, 20, 6).tolist()
    bias = {i: b for i, b in settings.logit_bias.items() if i in ids_V}
    wanted_A = process(hidden_A, prompt, answer, Settings(**{**vars(settings), "logit_bias": bias}))
    got_A = process_among(logits_A[ids_V], prompt, answer, settings, Among(ids_V, 20))
    np.testing.assert_allclose(got_A, wanted_A, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("asked", [40, list(range(0, 320, 7))])
def test_greedy_text_is_the_same_whatever_drafts_are_chosen_from(asked: Any, backend: Any) -> None:
    model = tiny_model(num_hidden_layers=2, num_nextn_predict_layers=2)
    prompts = [[1, 2, 3], [9] * 12]
    plain = Engine(model, backend=backend, prefill_chunk=8).generate(prompts, GREEDY, draft=0)
    engine = Engine(model, backend=backend, prefill_chunk=8, draft_vocabulary=asked)
    drafted = engine.generate(prompts, GREEDY, draft=3)
    assert [a.token_ids for a in drafted] == [a.token_ids for a in plain]
    report = engine.drafting()
    assert report.vocabulary == (40 if asked == 40 else 46)
    assert report.hit_rate is not None
    assert f"drafts from {report.vocabulary} ids" in str(report)


def test_sampled_text_with_a_seed_does_not_change_as_the_vocabulary_follows_use() -> None:
    model = tiny_model(num_hidden_layers=2)
    engine = Engine(model, backend="torch", prefill_chunk=8, draft_vocabulary=40)
    asked = Sampling(temperature=1.0, seed=3, max_new_tokens=20, ignore_eos=True)
    before = engine.generate([[1, 2, 3]], asked, draft=2)[0]
    vocabulary = engine._plan.vocabulary
    vocabulary.saw([300, 301] * FIRST_LOOK, prompt=True)
    assert vocabulary.current_V is not vocabulary.fixed_V
    assert engine.generate([[1, 2, 3]], asked, draft=2)[0].token_ids == before.token_ids
    # Greedy ones beside it draft from the other choice, in steps of their own.
    both = engine.generate([[1, 2, 3], [4]], [asked, GREEDY], draft=2)
    assert both[0].token_ids == before.token_ids


# --- the PyTorch runner's head ----------------------------------------------------------------------------------------


def test_logits_of_some_ids_are_those_of_all_and_the_copy_follows_the_weights() -> None:
    runner = Runner(tiny_model(), rows=4, prefill_chunk=8)
    ids_V = np.array([3, 77, 200], np.int64)
    state_ND = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))

    def both() -> tuple[Any, Any]:
        work = [[Work(runner.new_cache(9), [5, 6], state_ND)] for _ in range(2)]
        return runner.mtp(1, work[0])[0].logits_NA[:, ids_V], runner.mtp(1, work[1], ids=ids_V)[0].logits_NA

    all_NV, some_NV = both()
    np.testing.assert_allclose(some_NV, all_NV, atol=1e-5)
    with torch.no_grad():
        runner.model.lm_head.weight.mul_(2.0)
    again_NV = both()[1]
    np.testing.assert_allclose(again_NV, 2 * some_NV, rtol=1e-5)


def test_a_head_whose_rows_influence_each_other_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_rows_are_independent", lambda *given: False)
    runner = Runner(tiny_model(), rows=4, prefill_chunk=8)
    ids_V, state_ND = np.array([3, 77, 200], np.int64), torch.ones(1, 32)
    some = runner.mtp(1, [Work(runner.new_cache(9), [5], state_ND)], ids=ids_V)[0].logits_NA
    whole = runner.mtp(1, [Work(runner.new_cache(9), [5], state_ND)])[0].logits_NA
    assert (some == whole[:, ids_V]).all()


# --- where it pays ----------------------------------------------------------------------------------------------------


def plan_of(reduced: float, whole: float) -> DraftPlan:
    """A plan whose draft steps were measured with either head, in plain rounds."""
    machine = MeasuringMachine(lambda progress: Shape((1, 1.3, 1.6, 1.9, 2.2), 0.2))
    plan = DraftPlan(machine, DraftVocabulary("auto", BIG, 32000))  # type: ignore[arg-type]
    for _ in range(40):
        plan.learned.add("verify", 1, 64, 0.007)
        plan.learned.add("reduced", 1, 64, 0.007 * reduced)
        plan.learned.add("draft", 1, 64, 0.007 * whole)
    return plan


def test_auto_gives_the_reduced_vocabulary_up_when_it_misses_what_is_written() -> None:
    greedy = Simulated(64, 1000)
    for reduced, whole, hits, kept in ((0.12, 0.24, 1.0, True), (0.12, 0.24, 0.5, False), (0.2, 0.2, 0.9, False)):
        plan = plan_of(reduced, whole)
        for number in range(100):
            plan.shared.observe(1, int(number % 10 < 9 * hits), 64)
        plan.vocabulary.saw([5 if i < 100 * hits else 20000 for i in range(100)] * 10)
        plan.vocabulary.current_V = plan.vocabulary.fixed_V
        plan._compare_vocabularies([greedy])  # type: ignore[list-item]
        assert (plan.ids(greedy) is not None) == kept, (reduced, whole, hits)  # type: ignore[arg-type]


def test_a_sampled_request_decides_by_its_prompt_alone() -> None:
    plan = plan_of(0.1, 0.4)
    for prompt, reduces in (([5] * 100, True), ([20000] * 100, False), ([20000] * 3, True)):
        one = Simulated(len(prompt), 100, greedy=False)
        one.request.prompt = prompt
        for _ in range(2):
            plan.begin(one)  # type: ignore[arg-type]
            assert (plan.ids(one) is not None) == reduces  # type: ignore[arg-type]
            plan.vocabulary.saw([20000] * 5000)
