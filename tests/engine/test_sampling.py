from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cueva.engine import Sampling
from cueva.engine.draws import Purpose, SeededDraws
from cueva.engine.sampling import log_probability, process
from cueva.engine.settings import Settings, defaults_from, settle
from cueva.errors import RequestError, RunError


def some_logits(seed: int = 0, size: int = 40) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * 3).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    weight = np.exp(x - x.max())
    return weight / weight.sum()


# --- the order and meaning of filters ---------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"repetition_penalty": 1.3},
        {"temperature": 1.7, "top_k": 12, "top_p": 0.7, "min_p": 0.08, "repetition_penalty": 0.8},
    ],
    ids=str,
)
def test_the_distribution_is_that_of_transformers(how: dict[str, Any], seed: int) -> None:
    import torch
    from transformers.generation import logits_process as hf

    logits_A, prompt, answer = some_logits(seed), [3, 4, 3], [7, 9]
    score = torch.from_numpy(logits_A).double()[None]
    ids = torch.tensor([prompt + answer])
    chain = [
        ("repetition_penalty", hf.RepetitionPenaltyLogitsProcessor),
        ("temperature", hf.TemperatureLogitsWarper),
        ("top_k", hf.TopKLogitsWarper),
        ("top_p", hf.TopPLogitsWarper),
        ("min_p", hf.MinPLogitsWarper),
    ]
    for name, kind in chain:
        if name in how:
            score = kind(how[name])(ids, score)
    wanted = score.softmax(-1)[0].numpy()
    assert np.abs(process(logits_A, prompt, answer, Settings(**how)) - wanted).max() < 1e-12


def test_presence_and_frequency_count_the_answer_and_not_the_prompt() -> None:
    logits_A = some_logits()
    moved = logits_A.astype(np.float64)
    moved[7] -= 0.5 + 2 * 0.25
    moved[9] -= 0.5 + 0.25
    got = process(logits_A, [3, 3, 3], [7, 9, 7], Settings(presence_penalty=0.5, frequency_penalty=0.25))
    assert np.allclose(got, softmax(moved), atol=1e-15)


def test_bias_comes_before_temperature() -> None:
    logits_A = some_logits()
    moved = logits_A.astype(np.float64)
    moved[2] += 4.0
    got = process(logits_A, [], [], Settings(logit_bias={2: 4.0}, temperature=2.0))
    assert np.allclose(got, softmax(moved / 2.0), atol=1e-15)


def test_greedy_is_the_likeliest_after_penalties_and_ties_go_to_the_lowest_id() -> None:
    logits_A = np.array([0.0, 5.0, 5.0, 1.0], np.float32)
    assert process(logits_A, [], [], Settings(temperature=0)).tolist() == [0, 1, 0, 0]
    assert process(logits_A, [], [1], Settings(temperature=0, presence_penalty=1.0)).tolist() == [0, 0, 1, 0]
    assert process(logits_A, [], [], Settings(temperature=0, logit_bias={3: 9.0})).tolist() == [0, 0, 0, 1]


def test_ties_at_the_border_of_top_k_go_to_the_lowest_ids() -> None:
    logits_A = np.array([1.0, 2.0, 2.0, 2.0, 0.0], np.float32)
    assert np.flatnonzero(process(logits_A, [], [], Settings(top_k=2))).tolist() == [1, 2]


def test_top_p_keeps_at_least_the_likeliest() -> None:
    assert np.count_nonzero(process(some_logits(), [], [], Settings(top_p=1e-9))) == 1


@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([1e-9, 0.01, 0.7, 1.0, 50.0]),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    usable=st.integers(1, 40),
)
def test_any_settings_give_a_distribution_over_usable_tokens(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, usable: int
) -> None:
    settings = Settings(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    got = process(some_logits(seed), [1], [2], settings, usable=usable)
    assert abs(got.sum() - 1) < 1e-12
    assert (got >= 0).all()
    assert not got[usable:].any()
    if top_k:
        assert np.count_nonzero(got) <= top_k


def test_logits_that_are_not_numbers_are_an_error_and_not_a_token() -> None:
    logits_A = some_logits()
    logits_A[3] = np.nan
    with pytest.raises(RunError, match="not finite"):
        process(logits_A, [], [], Settings(temperature=0))


# --- log-probabilities ------------------------------------------------------------------------------------------------


def test_logprobs_are_of_the_raw_logits_with_the_best_alternatives_first() -> None:
    logits_A = some_logits()
    wanted = np.log(softmax(logits_A.astype(np.float64)))
    got = log_probability(logits_A, 11, 3)
    assert got.token_id == 11
    assert abs(got.logprob - wanted[11]) < 1e-12
    assert [i for i, _ in got.top] == np.argsort(-wanted)[:3].tolist()
    assert log_probability(logits_A, 11, 0).top == ()
    assert len(log_probability(logits_A, 11, 40).top) == 40


# --- randomness -------------------------------------------------------------------------------------------------------


def test_a_draw_depends_on_seed_position_and_purpose_alone() -> None:
    draws = SeededDraws(7)
    forward = [draws.uniform(p, Purpose.TOKEN) for p in range(5)]
    again = SeededDraws(7)
    again.uniform(99, Purpose.DRAFT)
    assert [again.uniform(p, Purpose.TOKEN) for p in reversed(range(5))] == forward[::-1]
    everything = [SeededDraws(s).uniform(p, purpose) for s in (7, 8) for p in range(5) for purpose in Purpose]
    assert len(set(everything)) == len(everything)


def test_draws_leave_the_global_generators_alone() -> None:
    import random

    import torch

    before = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes())  # type: ignore[union-attr]
    SeededDraws(1).pick(3, Purpose.TOKEN, np.full(8, 1 / 8))
    assert before == (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes())  # type: ignore[union-attr]


def test_draws_are_uniform() -> None:
    values = np.array([SeededDraws(s).uniform(p, Purpose.ACCEPT) for s in range(40) for p in range(50)])
    counts = np.histogram(values, bins=10, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 33.7  # 9 degrees of freedom, one in ten thousand


def test_a_token_without_probability_is_never_drawn() -> None:
    probability_A = np.array([0.0, 0.3, 0.0, 0.7, 0.0])
    drawn = {SeededDraws(s).pick(0, Purpose.TOKEN, probability_A) for s in range(200)}
    assert drawn == {1, 3}


# --- what may be asked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_new_tokens", 0, "max_new_tokens is 0, but it must be a whole number, at least 1"),
        ("temperature", -0.1, "temperature is -0.1, but it must be a number from 0"),
        ("temperature", float("nan"), "temperature is nan"),
        ("top_k", 2.5, "top_k is 2.5, but it must be a whole number, at least 0"),
        ("top_p", 0.0, "top_p is 0.0, but it must be a number above 0 to 1"),
        ("top_p", 1.5, "top_p is 1.5"),
        ("min_p", 2, "min_p is 2, but it must be a number from 0 to 1"),
        ("repetition_penalty", 0, "repetition_penalty is 0, but it must be a number above 0"),
        ("presence_penalty", 3, "presence_penalty is 3, but it must be a number from -2 to 2"),
        ("frequency_penalty", "1", "frequency_penalty is '1'"),
        ("logit_bias", {3: float("inf")}, "logit_bias has 3: inf, but it maps token ids to finite numbers"),
        ("seed", -1, "seed is -1, but it must be a whole number, from 0 to"),
        ("stop", ["a", ""], "stop holds '', but a stop string is a text of at least one character"),
        ("stop", 7, "stop is 7, but it must be a list"),
        ("stop_token_ids", 7, "stop_token_ids is 7, but it must be a list"),
        ("stop_token_ids", ["7"], "stop_token_ids holds '7', but a token id is a whole number"),
        ("logit_bias", [3], "logit_bias is [3], but it maps token ids to numbers"),
        ("logit_bias", {"3": 1.0}, "logit_bias has '3': 1.0, but it maps token ids to finite numbers"),
        ("ignore_eos", "no", "ignore_eos is 'no', but it is True or False"),
        ("logprobs", True, "logprobs is True, but it must be a whole number"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_by_name(field: str, value: Any, words: str) -> None:
    with pytest.raises(RequestError) as refused:
        Sampling(**{field: value})
    assert words in str(refused.value)


def test_a_request_overrides_the_models_defaults_and_those_override_neutral() -> None:
    defaults, unread = defaults_from({"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 2]})
    assert unread == []
    settings = settle(Sampling(top_p=0.5, stop="x"), defaults, seed=9)
    assert (settings.temperature, settings.top_p, settings.top_k, settings.seed) == (0.6, 0.5, 0, 9)
    assert settings.stop == ("x",)
    assert settle(Sampling(seed=4), Settings(), seed=9).seed == 4
    assert settle(Sampling(temperature=0), defaults, seed=9).greedy


def test_generation_defaults_say_what_is_not_supported() -> None:
    defaults, unread = defaults_from(
        {"do_sample": False, "num_beams": 4, "typical_p": 1.0, "transformers_version": "5"}
    )
    assert defaults.greedy
    assert unread == ["num_beams"]
    with pytest.raises(RequestError, match="temperature is -1"):
        defaults_from({"temperature": -1})
