import logging
from typing import Any

import pytest
import torch

from cueva.engine import Engine, Sampling
from cueva.errors import RequestError
from tests.builders import tiny_model
from tests.engine.doubles import PieceTokenizer

POSITIONS = 64


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = tiny_model(num_hidden_layers=1, max_position_embeddings=POSITIONS)
    return Engine(model, PieceTokenizer(), prefill_chunk=16)


def refusal(engine: Engine, prompt: Any = "abc", draft: Any = 0, **asked: Any) -> str:
    with pytest.raises(RequestError) as refused:
        engine.generate([prompt], Sampling(**asked), draft)
    with pytest.raises(RequestError, match=r".") as at_once:
        engine.stream(prompt, Sampling(**asked), draft)  # at the call, not at the first piece
    assert str(at_once.value) == str(refused.value)
    assert engine.pool.free == engine.pool.tokens
    return str(refused.value)


def test_more_new_tokens_than_the_context_leaves_are_refused_with_both_numbers(engine: Engine) -> None:
    assert refusal(engine, max_new_tokens=61) == (
        "61 new tokens do not fit: the prompt uses 4 of this model's 64 positions and leaves 60\n"
        "  try --max-new-tokens 60, or a model trained with a longer context"
    )
    answer = engine.generate(["abc"], Sampling(max_new_tokens=60, ignore_eos=True))[0]
    assert len(answer.token_ids) == 60


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers_and_never_cut(engine: Engine) -> None:
    assert "the prompt has 64 tokens, but this model has 64 positions" in refusal(engine, [5] * 64)
    assert len(engine.generate([[5] * 63], Sampling(ignore_eos=True))[0].token_ids) == 1


def test_without_a_number_an_answer_may_use_what_is_left_up_to_256(engine: Engine) -> None:
    assert len(engine.generate([[5] * 10], Sampling(ignore_eos=True))[0].token_ids) == POSITIONS - 10
    roomy = Engine(tiny_model(num_hidden_layers=1, max_position_embeddings=999), rows=1, prefill_chunk=16)
    assert len(roomy.generate([[5]], Sampling(ignore_eos=True, temperature=0))[0].token_ids) == 256
    small = Engine(tiny_model(num_hidden_layers=1), prefill_chunk=16, cache_tokens=9)
    assert len(small.generate([[5]], Sampling(ignore_eos=True))[0].token_ids) == 8


def test_a_request_larger_than_the_cache_is_refused_with_both_numbers() -> None:
    engine = Engine(tiny_model(num_hidden_layers=1), prefill_chunk=16, cache_tokens=20)
    told = refusal(engine, [1, 2, 3], max_new_tokens=18)
    assert "needs 21 positions of cache (3 for the prompt, 18 for new tokens), but this engine holds 20" in told
    assert "cache_tokens=21" in told
    assert "needs 21 positions" in refusal(engine, [1] * 20)


def test_what_another_stream_holds_is_not_waited_for_in_vain() -> None:
    engine = Engine(tiny_model(num_hidden_layers=1), prefill_chunk=16, cache_tokens=20)
    holding = engine.stream([1, 2], Sampling(max_new_tokens=10, ignore_eos=True))
    next(holding)
    with pytest.raises(RequestError, match="needs 12 positions of cache, but other requests hold all but 8 of 20"):
        engine.generate([[1, 2]], Sampling(max_new_tokens=10))
    list(holding)
    assert engine.generate([[1, 2]], Sampling(max_new_tokens=10))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([3, 320], "token 320 (place 1 of the prompt) lies outside this model's vocabulary of 320"),
        ([-1], "token -1 (place 0 of the prompt) lies outside"),
        ([1.5], "a prompt is a text or a list of token ids, not list"),
        (7, "a prompt is a text or a list of token ids, not int"),
    ],
)
def test_prompts_that_are_none_are_refused(engine: Engine, prompt: Any, words: str) -> None:
    assert words in refusal(engine, prompt)


def test_one_text_in_place_of_a_list_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="generate takes a list"):
        engine.generate("abc")


def test_all_requests_are_checked_before_any_runs(engine: Engine) -> None:
    passes = engine.runner.passes
    with pytest.raises(RequestError, match="lies outside"):
        engine.generate([[1], [2], [999]])
    assert engine.runner.passes == passes


def test_as_many_settings_as_prompts_are_needed(engine: Engine) -> None:
    with pytest.raises(RequestError, match="there are 2 prompts but 3 samplings"):
        engine.generate([[1], [2]], [Sampling()] * 3)
    assert engine.generate([]) == []


def test_ids_outside_the_vocabulary_are_refused_wherever_they_stand(engine: Engine) -> None:
    assert "logit_bias names token 320" in refusal(engine, logit_bias={320: 1.0})
    assert "stop_token_ids names token -2" in refusal(engine, stop_token_ids=[-2])
    assert "logprobs asks for 321 alternatives" in refusal(engine, logprobs=321)


def test_drafts_that_cannot_be_are_refused(engine: Engine) -> None:
    assert "draft is -1, but it is 'auto' or a number of tokens from 0" in refusal(engine, draft=-1)
    assert "draft is 'yes'" in refusal(engine, draft="yes")
    without = Engine(tiny_model(num_hidden_layers=1, num_nextn_predict_layers=0), prefill_chunk=16)
    told = refusal(without, [1], draft=2)
    assert "draft=2 asks for drafted tokens, but this model has no MTP module" in told
    assert "draft='auto'" in told


def test_an_engine_without_a_tokenizer_says_what_it_cannot_do() -> None:
    engine = Engine(tiny_model(num_hidden_layers=1), prefill_chunk=16)
    assert "no tokenizer, so a prompt must be a list of token ids" in refusal(engine, "abc")
    assert "stop strings need a tokenizer" in refusal(engine, [1], stop="x")
    with pytest.raises(RequestError, match="cannot read a conversation"):
        engine.chat([{"role": "user", "content": "hi"}])


def test_an_empty_prompt_without_a_begin_token_is_refused() -> None:
    engine = Engine(tiny_model(num_hidden_layers=1), PieceTokenizer(bos=False), prefill_chunk=16)
    assert "the prompt is empty, and this model has no begin token to start from" in refusal(engine, "")


def test_a_text_longer_than_the_context_is_not_scored(engine: Engine) -> None:
    assert len(engine.score([1] * POSITIONS)) == POSITIONS - 1
    with pytest.raises(RequestError, match="the text has 65 tokens, but this model has 64 positions"):
        engine.score([1] * (POSITIONS + 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "q4_0", "backend": "torch"}, "weights='q4_0' is computed by the native kernels only"),
        ({"weights": "fp8", "backend": "torch"}, "weights='fp8' is computed by the native kernels only"),
        ({"backend": "nativ"}, "there is no backend='nativ'"),
        ({"weights": "bf61"}, "there is no weights='bf61'; did you mean 'bf16'?"),
        ({"device": "gpu0"}, "there is no device 'gpu0'"),
        ({"rows": 0}, "rows is 0"),
        ({"prefill_chunk": 1.5}, "prefill_chunk is 1.5"),
        ({"threads": -1}, "threads is -1"),
        ({"cache_tokens": 0}, "cache_tokens is 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as refused:
        Engine(tiny_model(num_hidden_layers=1), **options)
    assert words in str(refused.value)


def test_a_path_is_for_the_public_face() -> None:
    with pytest.raises(RequestError, match="takes a model, but got str"):
        Engine("runs/quickstart/model")  # type: ignore[arg-type]


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        Engine(tiny_model(num_hidden_layers=1), backend="torch", threads=2, prefill_chunk=16)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_models_defaults_hold_and_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    generation = {"do_sample": False, "max_new_tokens": 5, "eos_token_id": [70, 71], "num_beams": 3}
    model = tiny_model(num_hidden_layers=1)
    engine = Engine(model, PieceTokenizer(), generation=generation, prefill_chunk=16)
    with caplog.at_level(logging.INFO, "cueva.engine"):
        first, second = engine.generate(["a", "a"], Sampling(ignore_eos=True))
        engine.generate(["a"])
    assert first.token_ids == second.token_ids
    assert len(first.token_ids) == 5
    told = "sampling defaults: greedy (temperature 0), at most 5 new tokens (generation_config.json)"
    assert engine.describe_sampling() == told
    assert caplog.text.count("sampling defaults") == 1
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == ["generation_config.json asks for what this engine does not do; it goes on without: num_beams"]
    ended = engine.generate(["a"], Sampling(logit_bias={71: 100.0}))[0]
    assert (ended.token_ids, ended.finish_reason) == ((71,), "stop")
    assert "neutral" in Engine(model, prefill_chunk=16).describe_sampling()
