import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cueva.engine import Answer, Backend, Engine, Sampling
from cueva.model import CausalLM
from tests.builders import random_ids, tiny_model
from tests.engine.doubles import PieceTokenizer, force_drafts, remember_prefill

MANY: list[str | list[int]] = ["The house", "a", [5, 6, 7], "abc" * 15, "é", [200] * 30, "", "x y z", "last one"]
MIXED = [
    Sampling(max_new_tokens=8, temperature=0, logprobs=2),
    Sampling(max_new_tokens=7, temperature=0.8, seed=1, logprobs=0),
    Sampling(max_new_tokens=9, temperature=1.3, top_p=0.9, seed=2),
    Sampling(max_new_tokens=5, top_k=3, seed=3, repetition_penalty=1.2),
    Sampling(max_new_tokens=8, temperature=0, presence_penalty=1.0, frequency_penalty=0.5, logprobs=3),
    Sampling(max_new_tokens=6, min_p=0.2, seed=4, logit_bias={40: 2.0}),
    Sampling(max_new_tokens=7, temperature=0.9, seed=5, stop="a"),
    Sampling(max_new_tokens=3, temperature=0, ignore_eos=True),
    Sampling(max_new_tokens=6, temperature=0.7, seed=6),
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(num_hidden_layers=2), PieceTokenizer(), prefill_chunk=16)


def said(answers: Sequence[Answer]) -> list[tuple[Any, ...]]:
    return [(a.text, a.token_ids, a.finish_reason, a.logprobs) for a in answers]


def greedy(count: int, **more: Any) -> Sampling:
    return Sampling(max_new_tokens=count, temperature=0, ignore_eos=True, **more)


# --- neighbours and chunks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft", [0, 2, "auto"])
def test_no_answer_depends_on_its_batch_mates(engine: Engine, draft: Any) -> None:
    """Nine requests with settings of their own, more than run at once: texts, log-probabilities and all."""
    together = engine.generate(MANY, MIXED, draft)
    alone = [engine.generate([prompt], one, draft)[0] for prompt, one in zip(MANY, MIXED, strict=True)]
    assert said(together) == said(alone)
    assert said(engine.generate(MANY[::-1], MIXED[::-1], draft)) == said(alone)[::-1]


def test_the_same_seed_gives_the_same_answer_and_the_answer_says_which(engine: Engine) -> None:
    unseeded = Sampling(max_new_tokens=12, temperature=1.2)
    first, second = engine.generate(["a", "a"], unseeded)
    assert first.seed != second.seed
    again = engine.generate(["a"], Sampling(max_new_tokens=12, temperature=1.2, seed=first.seed))[0]
    assert again.token_ids == first.token_ids


@pytest.mark.parametrize("length", [1, 15, 40])
def test_chunked_prefill_equals_one_pass(length: int) -> None:
    model = tiny_model(num_hidden_layers=2)
    prompt = random_ids(model.config, length, seed=length).tolist()
    answers = {
        chunk: Engine(model, prefill_chunk=chunk).generate([prompt], greedy(8, logprobs=2))[0] for chunk in (1, 7, 64)
    }
    with torch.inference_mode():
        logits_A = model(torch.tensor([prompt])).logits[0, -1]
    for answer in answers.values():
        assert answer.logprobs is not None
        wanted = logits_A.log_softmax(-1)[answer.token_ids[0]]
        assert abs(answer.logprobs[0].logprob - float(wanted)) < 1e-4
        for ours, theirs in zip(answer.logprobs, answers[64].logprobs or (), strict=True):
            assert abs(ours.logprob - theirs.logprob) < 1e-4 or ours.token_id != theirs.token_id
            margin = ours.top[0][1] - ours.top[1][1]
            if margin < 1e-3:
                break  # two engines may differ from here on
            assert ours.token_id == theirs.token_id


def test_cached_decoding_equals_one_full_pass(engine: Engine) -> None:
    """Every log-probability along an answer is that of one expanded pass over the final text."""
    for prompt in ("abc", [9] * 20):
        answer = engine.generate([prompt], greedy(20, logprobs=0))[0]
        ids = engine.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else prompt  # type: ignore[union-attr]
        scored = engine.score([*ids, *answer.token_ids])[-20:]
        assert answer.logprobs is not None
        assert np.abs(np.array([one.logprob for one in answer.logprobs]) - scored).max() < 1e-4


# --- drafting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depths", [1, 2, 3])
def test_greedy_with_drafts_equals_plain_greedy_bit_for_bit(depths: int) -> None:
    """Tokens and log-probabilities, in a batch, whatever the drafts are worth."""
    engine = Engine(tiny_model(vocab_size=12, num_hidden_layers=2, num_nextn_predict_layers=depths), prefill_chunk=8)
    prompts = [[1, 2, 3, 4, 5], [3] * 11]
    plain = engine.generate(prompts, greedy(14, logprobs=3), draft=0)
    for draft in (1, 2, 4, "auto"):
        drafted = engine.generate(prompts, greedy(14, logprobs=3), draft=draft)
        assert said(drafted) == said(plain)


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_greedy_with_drafts_equals_plain_greedy_at_any_acceptance(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tiny_model(num_hidden_layers=2), prefill_chunk=8)
    prompts = [[1, 2, 3, 4, 5], [3] * 11, [7, 8]]
    settings = greedy(25, logprobs=1, repetition_penalty=1.3, frequency_penalty=0.2)
    plain = engine.generate(prompts, settings, draft=0)
    force_drafts(monkeypatch, [[*p, *a.token_ids] for p, a in zip(prompts, plain, strict=True)], share)
    drafted = engine.generate(prompts, settings, draft=3)
    assert said(drafted) == said(plain)
    for answer in drafted:
        places = [answer.drafted.count(place) for place in (1, 2, 3)]
        assert list(answer.stats.accepted) == places
        assert answer.stats.new_tokens == 25
        if share == 0.0:
            assert (answer.stats.accepted, answer.stats.passes) == ((0, 0, 0), 24)
        if share == 1.0:
            # The first token comes from the prompt, then six rounds of four.
            assert (answer.stats.accepted, answer.stats.passes) == ((6, 6, 6), 6)
            assert answer.drafted == (0, *(1, 2, 3, 0) * 6)
            assert answer.stats.tokens_per_pass == 4


def test_log_probabilities_are_the_models_own_before_any_filter(engine: Engine) -> None:
    filtered = Sampling(max_new_tokens=6, temperature=0.3, top_k=2, seed=1, logit_bias={77: 50.0}, logprobs=4)
    answer = engine.generate(["abc"], filtered)[0]
    assert answer.token_ids == (77,) * 6
    assert answer.logprobs is not None
    ids = [*engine.tokenizer.encode("abc", bos=True), *answer.token_ids]  # type: ignore[union-attr]
    with torch.inference_mode():
        wanted_TA = engine.model(torch.tensor([ids])).logits[0, 3:-1].log_softmax(-1)
    for row_A, one in zip(wanted_TA, answer.logprobs, strict=True):
        assert abs(one.logprob - float(row_A[77])) < 1e-4
        values, best = row_A.topk(4)
        assert [i for i, _ in one.top] == best.tolist()
        assert np.abs(np.array([p for _, p in one.top]) - values.numpy()).max() < 1e-4


def test_an_end_token_inside_the_accepted_prefix_ends_the_answer_there(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model(num_hidden_layers=2), prefill_chunk=8)
    plain = engine.generate([[1, 2, 3]], greedy(20), draft=0)[0]
    force_drafts(monkeypatch, [[1, 2, 3, *plain.token_ids]], 1.0)
    for end in range(1, 9, 2):
        if plain.token_ids.index(plain.token_ids[end]) != end:
            continue
        stopping = greedy(20, stop_token_ids=[plain.token_ids[end]])
        answer = engine.generate([[1, 2, 3]], stopping, draft=4)[0]
        assert answer.token_ids == plain.token_ids[: end + 1]
        assert answer.finish_reason == "stop"
        assert sum(answer.stats.accepted) == sum(place > 0 for place in answer.drafted)
    assert engine.pool.free == engine.pool.tokens


def test_no_more_is_drafted_than_an_answer_can_use(engine: Engine) -> None:
    """Three tokens: one from the prompt, then at most one draft and the token after it."""
    answer = engine.generate(["abc"], greedy(3), draft=5)[0]
    assert answer.stats.drafted == (1,)
    assert engine.generate(["abc"], greedy(2), draft=5)[0].stats.drafted == ()


def test_stop_strings_under_drafting_cut_the_same_text(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = engine.generate(["ab"], greedy(24), draft=0)[0]
    prompt = engine.tokenizer.encode("ab", bos=True)  # type: ignore[union-attr]
    force_drafts(monkeypatch, [[*prompt, *plain.token_ids]], 0.8)
    for start in range(0, len(plain.text) - 3, 4):
        stop = plain.text[start : start + 3]
        answers = [engine.generate(["ab"], greedy(24, stop=["\x00never", stop]), draft=draft)[0] for draft in (0, 4)]
        assert said(answers)[0] == said(answers)[1]
        assert answers[0].text == plain.text[: plain.text.index(stop)]
        assert answers[0].finish_reason == "stop"


@pytest.mark.parametrize("draft", [0, 3])
def test_streamed_pieces_joined_are_the_answer(engine: Engine, draft: Any) -> None:
    for prompt, sampling in zip(MANY, MIXED, strict=True):
        whole = engine.generate([prompt], sampling, draft)[0]
        pieces = list(engine.stream(prompt, sampling, draft))
        assert "".join(piece.text for piece in pieces) == whole.text
        assert sum((piece.token_ids for piece in pieces), ()) == whole.token_ids
        assert sum((piece.drafted for piece in pieces), ()) == whole.drafted
        if whole.logprobs is not None:
            assert sum((piece.logprobs or () for piece in pieces), ()) == whole.logprobs
        assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [whole.finish_reason]
        last = pieces[-1].answer
        assert last is not None
        assert said([last]) == said([whole])


def test_auto_stops_drafting_when_it_does_not_pay_and_greedy_text_stays() -> None:
    """Random modules are hardly ever right about 320 tokens."""
    engine = Engine(tiny_model(num_hidden_layers=2), prefill_chunk=8)
    answer = engine.generate([[1, 2, 3]], greedy(70), draft="auto")[0]
    assert answer.token_ids == engine.generate([[1, 2, 3]], greedy(70), draft=0)[0].token_ids
    assert sum(answer.stats.drafted) < 35


def test_a_sampled_request_learns_from_its_own_drafts_and_teaches_no_other() -> None:
    engine = Engine(tiny_model(num_hidden_layers=5, n_routed_experts=None), prefill_chunk=8)
    before = list(engine._plan.shared.acceptance)
    hot = Sampling(max_new_tokens=80, temperature=1.0, ignore_eos=True, seed=1)
    first, second = engine.generate([[1, 2, 3]] * 2, hot, draft="auto")
    assert said([first]) == said([second])
    # At first two a round, by the hopeful guess; the guess alone would make it more than a hundred.
    assert 10 < sum(first.stats.drafted) < 90
    assert engine._plan.shared.acceptance == before


# --- answers ----------------------------------------------------------------------------------------------------------


def test_ids_without_text_are_never_generated() -> None:
    """A vocabulary of 320 rows and a tokenizer of 263 tokens: the rest is masked, and any sampled id decodes."""
    tokenizer = PieceTokenizer()
    engine = Engine(tiny_model(num_hidden_layers=2), tokenizer, prefill_chunk=8)
    assert tokenizer.size < engine.config.vocab_size
    hot = [Sampling(max_new_tokens=40, temperature=100.0, ignore_eos=True, seed=seed) for seed in range(4)]
    tokens = [i for draft in (0, 2) for a in engine.generate(["a"] * 4, hot, draft) for i in a.token_ids]
    assert max(tokens) < tokenizer.size
    assert len(set(tokens)) > 150


def test_an_end_token_ends_the_answer_and_is_no_text(engine: Engine) -> None:
    sure = {"max_new_tokens": 20, "temperature": 0, "logit_bias": {1: 100.0}}
    answer = engine.generate(["abc"], Sampling(**sure))[0]
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (1,), "stop")
    ignored = engine.generate(["abc"], Sampling(**sure, ignore_eos=True))[0]
    assert (ignored.token_ids, ignored.finish_reason) == ((1,) * 20, "length")


def test_stop_tokens_end_the_answer_even_where_end_tokens_are_ignored(engine: Engine) -> None:
    sure = Sampling(max_new_tokens=20, temperature=0, logit_bias={70: 100.0}, stop_token_ids=[70], ignore_eos=True)
    answer = engine.generate(["abc"], sure)[0]
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (70,), "stop")


def test_an_answer_completes_the_character_its_prompt_began() -> None:
    tokenizer = PieceTokenizer()
    first, second = tokenizer.encode("é")
    engine = Engine(tiny_model(num_hidden_layers=2), tokenizer, prefill_chunk=8)
    answer = engine.generate([[0, first]], Sampling(max_new_tokens=1, temperature=0, logit_bias={second: 100.0}))[0]
    assert answer.text == "é"


def test_an_empty_prompt_begins_from_the_begin_token(engine: Engine) -> None:
    assert said(engine.generate(["", []], greedy(5))) == said(engine.generate([[0], [0]], greedy(5)))


def test_chat_uses_the_tokenizers_template(engine: Engine) -> None:
    messages = [{"role": "user", "content": "hi"}]
    wanted = engine.generate([engine.tokenizer.encode_chat(messages)], greedy(6))[0]  # type: ignore[union-attr]
    assert said([engine.chat(messages, greedy(6))]) == said([wanted])
    assert "".join(piece.text for piece in engine.chat_stream(messages, greedy(6))) == wanted.text


def test_the_projects_own_tokenizer_fits() -> None:
    from cueva.text import Tokenizer

    tokenizer = Tokenizer.train(["def f(x):\n    return x + 1\n"] * 50, vocab_size=288)
    engine = Engine(tiny_model(num_hidden_layers=1), tokenizer, prefill_chunk=16)
    answer = engine.generate(["def "], greedy(30))[0]
    prompt = tokenizer.encode("def ", bos=True)
    assert tokenizer.decode([*prompt, *answer.token_ids]) == "def " + answer.text
    assert max(answer.token_ids) < tokenizer.size
    assert engine.defaults.eos_ids == set(tokenizer.eos_ids)
    assert engine.chat([{"role": "user", "content": "hi"}], greedy(4)).stats.new_tokens == 4


def test_scores_are_those_of_the_whole_pass(engine: Engine) -> None:
    ids = random_ids(engine.config, 30).tolist()
    with torch.inference_mode():
        logprob_TA = engine.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = [float(logprob_TA[i, ids[i + 1]]) for i in range(29)]
    assert engine.score(ids) == pytest.approx(wanted, abs=1e-5)
    assert engine.score([5]) == []


def test_stats_add_up(engine: Engine) -> None:
    answer = engine.generate(["abcdef"], greedy(10), draft=0)[0]
    stats = answer.stats
    assert (stats.prompt_tokens, stats.new_tokens, stats.passes) == (7, 10, 9)
    assert stats.drafted == stats.accepted == ()
    assert stats.prefill_seconds > 0
    assert stats.tokens_per_second == pytest.approx(9 / stats.decode_seconds)


# --- joining, waiting, leaving ----------------------------------------------------------------------------------------


def test_more_prompts_than_fit_wait_their_turn() -> None:
    model = tiny_model(num_hidden_layers=1)
    prompts = [[i] * (1 + i) for i in range(1, 8)]
    wide = Engine(model, prefill_chunk=8).generate(prompts, greedy(6))
    narrow = Engine(model, prefill_chunk=8, cache_tokens=20)
    running: list[int] = []

    def watch(number: int, piece: Any) -> None:
        running.append(narrow.pool.tokens - narrow.pool.free)

    assert said(narrow.generate(prompts, greedy(6), on_piece=watch)) == said(wide)
    assert max(running) <= 20
    assert narrow.pool.free == 20


def test_closing_a_stream_early_frees_its_cache(engine: Engine) -> None:
    stream = engine.stream("abc", greedy(50))
    next(stream)
    assert engine.pool.free < engine.pool.tokens
    stream.close()  # type: ignore[attr-defined]
    assert engine.pool.free == engine.pool.tokens


def test_two_streams_may_run_in_turns_and_in_threads(engine: Engine) -> None:
    alone = [engine.generate([p], s)[0] for p, s in zip(MANY, MIXED, strict=True)]
    first, second = engine.stream(MANY[0], MIXED[0]), engine.stream(MANY[2], MIXED[2])
    texts = ["", ""]
    for one, two in zip(first, second, strict=False):
        texts = [texts[0] + one.text, texts[1] + two.text]
    texts = [texts[0] + "".join(p.text for p in first), texts[1] + "".join(p.text for p in second)]
    assert texts[1] == alone[2].text
    assert texts[0] == alone[0].text

    found: dict[int, Answer] = {}

    def work(number: int) -> None:
        found[number] = engine.generate([MANY[number]], MIXED[number])[0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said([found[i] for i in range(3)]) == said(alone[:3])


def test_a_cancelled_request_ends_with_what_it_has(engine: Engine) -> None:
    whole = engine.generate(["abc", "x"], greedy(20), draft=0)
    asked = 0

    def soon() -> bool:
        nonlocal asked
        asked += 1
        return asked > 6

    answers = engine.generate(["abc", "x"], greedy(20), draft=0, cancel=[soon, None])
    assert answers[0].finish_reason == "cancelled"
    assert 0 < len(answers[0].token_ids) < 20
    assert answers[0].token_ids == whole[0].token_ids[: len(answers[0].token_ids)]
    assert whole[0].text.startswith(answers[0].text.rstrip("\ufffd"))
    assert said(answers[1:]) == said(whole[1:])
    assert engine.pool.free == engine.pool.tokens


def test_a_request_cancelled_before_its_first_token_is_an_empty_answer(engine: Engine) -> None:
    asked: list[bool] = []

    def after_the_first_chunk() -> bool:
        asked.append(True)
        return len(asked) > 2

    answer = engine.generate([[5] * 100], greedy(20), cancel=after_the_first_chunk)[0]
    assert (answer.text, answer.token_ids, answer.finish_reason, answer.logprobs) == ("", (), "cancelled", None)
    assert len(asked) == 3
    assert answer.stats.prefill_seconds == answer.stats.decode_seconds == 0
    assert [p.finish_reason for p in engine.stream("abc", greedy(9), cancel=lambda: True)] == ["cancelled"]


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_bfloat16_engine_runs_and_leaves_the_callers_model_alone(backend: Backend) -> None:
    model = tiny_model(vocab_size=12, num_hidden_layers=2)
    engine = Engine(model, backend=backend, weights="bf16", prefill_chunk=8)
    assert engine.runner.cache_dtype == torch.bfloat16
    assert model.lm_head.weight.dtype == torch.float32
    if backend == "torch":
        assert engine.model.gates()[0][1].weight.dtype == torch.float32
    assert engine.cache_bytes_per_token == model.config.cache_values_per_token * 2
    plain = engine.generate([[1, 2, 3], [4] * 9], greedy(16, logprobs=2), draft=0)
    assert said(engine.generate([[1, 2, 3], [4] * 9], greedy(16, logprobs=2), draft=2)) == said(plain)
    own = Engine(model, backend=backend, prefill_chunk=8)
    assert own.model is model
    assert Engine(model, weights="f32", prefill_chunk=8).model is model


def test_a_model_without_mtp_modules_decodes_plainly() -> None:
    model = tiny_model(num_hidden_layers=2, num_nextn_predict_layers=0)
    answer = Engine(model, prefill_chunk=8).generate([[1, 2, 3]], greedy(5))[0]
    assert (len(answer.token_ids), answer.stats.drafted) == (5, ())


def test_the_golden_tokens_do_not_depend_on_the_number_of_rows() -> None:
    """Other shapes may change last bits, not the text, as long as no two tokens are nearly tied."""
    model = tiny_model(num_hidden_layers=2)
    texts = {
        Engine(model, rows=rows, prefill_chunk=16).generate([[1, 2, 3]], greedy(12), draft=2)[0].token_ids
        for rows in (1, 3, 8, 20)
    }
    assert len(texts) == 1


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_live_model_may_change_under_its_engine(backend: Backend) -> None:
    """Sampling during training: the engine reads the weights that the optimizer moves."""
    model = tiny_model(num_hidden_layers=1)
    engine = Engine(model, backend=backend, prefill_chunk=8)
    before = engine.generate([[1, 2]], greedy(8))[0].token_ids
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert engine.generate([[1, 2]], greedy(8))[0].token_ids != before
    loss = model(torch.tensor([[1, 2, 3]])).logits.square().mean()
    loss.backward()
    assert isinstance(model, CausalLM)


def test_remembered_prefill_is_the_same_prefill() -> None:
    """The shortcut that the statistical test takes changes no bits."""
    model = tiny_model(vocab_size=12, num_hidden_layers=1, num_nextn_predict_layers=2)
    plain, quick = (Engine(model, backend="torch", prefill_chunk=4) for _ in range(2))
    remember_prefill(quick)
    for _ in range(2):
        assert said(quick.generate([[1, 2, 3, 4, 5, 6]], greedy(6), 2)) == said(
            plain.generate([[1, 2, 3, 4, 5, 6]], greedy(6), 2)
        )
