"""A traced text: every number in it is what the model says when it is asked directly."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cueva.engine import Engine, Sampling
from cueva.errors import RequestError
from cueva.study import Trace, make_trace
from cueva.study.trace import token_text
from tests.builders import tiny_model
from tests.study.synthetic import make_trace_of


class Letters:
    """A tokenizer of bytes: token n is byte n, and 256 begins a text."""

    bos_id, adds_bos = 256, True

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return [256] * bos + list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b"<bos>"


class Script:
    """An engine that writes what it is told to, in pieces with the depth of each token's draft."""

    def __init__(self, model: Any, pieces: Sequence[tuple[list[int], list[int]]]):
        self.model, self.tokenizer, self.pieces = model, Letters(), pieces

    def stream(self, ids: list[int], sampling: object, draft: int) -> Iterator[Any]:
        self.asked, self.draft = ids, draft
        for token_ids, drafted in self.pieces:
            yield SimpleNamespace(token_ids=token_ids, drafted=drafted, answer=None)
        stats = SimpleNamespace(drafted=(3,), accepted=(1,), passes=2)
        yield SimpleNamespace(token_ids=(), drafted=(), answer=SimpleNamespace(stats=stats))


def trace_of(model: Any, pieces: Sequence[tuple[list[int], list[int]]] = (([10, 11], [1, 0]), ([12], [0]))) -> Trace:
    engine: Any = Script(model, pieces)
    sampling: Any = None
    return make_trace(engine, "abc", sampling)


def test_tokens_come_in_order_with_their_proposers() -> None:
    trace = trace_of(tiny_model())
    assert [token.id for token in trace.tokens] == [256, 97, 98, 99, 10, 11, 12]
    assert [token.text for token in trace.tokens] == ["<bos>", "a", "b", "c", "\n", "\x0b", "\x0c"]
    assert [token.prompt for token in trace.tokens] == [True] * 4 + [False] * 3
    assert [token.drafted for token in trace.tokens] == [0, 0, 0, 0, 1, 0, 0]
    assert (trace.proposed, trace.accepted, trace.passes) == ((3,), (1,), 2)


def test_every_mtp_module_drafts_unless_told_otherwise() -> None:
    for depths in (0, 1, 3):
        engine: Any = Script(tiny_model(num_nextn_predict_layers=depths), [])
        sampling: Any = None
        make_trace(engine, "", sampling)
        assert (engine.asked, engine.draft) == ([256], depths)
        make_trace(engine, "x", sampling, draft=7)
        assert engine.draft == 7


def test_probabilities_are_the_models_own() -> None:
    model = tiny_model()
    trace = trace_of(model)
    ids = torch.tensor([[token.id for token in trace.tokens]])
    expected = model(ids).logits[0].log_softmax(-1)
    assert trace.tokens[0].logprob is None
    for position, token in enumerate(trace.tokens[1:]):
        assert token.logprob == pytest.approx(float(expected[position, token.id].detach()), abs=1e-4)


def test_probabilities_do_not_depend_on_how_many_rows_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pieces = tiny_model(), [([n % 250 for n in range(90)], [0] * 90)]
    whole = trace_of(model, pieces)
    monkeypatch.setattr("cueva.study.trace.ROWS_AT_ONCE", 7)
    parts = trace_of(model, pieces)
    for one, other in zip(whole.tokens[1:], parts.tokens[1:], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_every_gates_choice_belongs_to_the_token_it_was_fed() -> None:
    """Main layers see token i in row i; MTP module k sees token i + k there, so its first k tokens have no choice."""
    model = tiny_model(num_nextn_predict_layers=2)
    trace = trace_of(model)
    ids = torch.tensor([[token.id for token in trace.tokens]])
    routings = model.states(ids).routings
    assert trace.gates == ("layer 1", "layer 2", "mtp 1", "mtp 2")
    for gate, (late, routing) in enumerate(zip((0, 0, 1, 2), routings, strict=True)):
        assert trace.experts[gate][:late] == ((),) * late
        assert [list(choice) for choice in trace.experts[gate][late:]] == routing.expert_TK.tolist()
        for row, weights in enumerate(trace.weights[gate][late:]):
            assert list(weights) == pytest.approx(routing.weight_TK[row].tolist(), abs=1e-5)
            assert sum(weights) == pytest.approx(model.config.routed_scaling_factor, abs=1e-3)


def test_changing_one_token_changes_no_choice_before_it() -> None:
    """A check of the order that does not repeat the code: routing is causal, in the MTP modules too."""
    model = tiny_model(num_nextn_predict_layers=2)
    one = trace_of(model, [([10, 11, 12, 13], [0] * 4)])
    other = trace_of(model, [([10, 11, 77, 13], [0] * 4)])
    for gate in range(len(one.gates)):
        assert one.experts[gate][:6] == other.experts[gate][:6]
        assert one.weights[gate][:6] == other.weights[gate][:6]
        assert one.weights[gate][6] != other.weights[gate][6], "the token itself was fed here"


def test_a_dense_model_has_no_gates_and_a_short_text_no_deep_choices() -> None:
    assert trace_of(tiny_model(n_routed_experts=None, num_nextn_predict_layers=0)).gates == ()
    engine: Any = Script(tiny_model(num_nextn_predict_layers=2), [])
    sampling: Any = None
    trace = make_trace(engine, [5], sampling)
    assert trace.gates == ("layer 1", "layer 2", "mtp 1", "mtp 2")
    assert [len(rows[0]) for rows in trace.experts] == [2, 2, 0, 0]
    assert engine.asked == [5]


def test_a_token_that_is_no_whole_character_is_shown_by_its_bytes() -> None:
    tokenizer: Any = Letters()
    assert token_text(tokenizer, 0xE2) == "\\xe2"
    assert token_text(tokenizer, ord("a")) == "a"
    assert token_text(None, 17) == "<17>"


def test_a_trace_survives_json_and_nonsense_is_refused() -> None:
    trace = make_trace_of()
    assert Trace.from_json(trace.to_json()) == trace
    for text in ("", "{}", '{"tokens": [{"no": 1}]}', "[]", '{"tokens": 5}'):
        with pytest.raises(RequestError, match="this is not a trace"):
            Trace.from_json(text)


# --- with the engine itself -------------------------------------------------------------------------------------------


def test_a_greedy_trace_is_the_engines_text_with_the_engines_probabilities() -> None:
    model = tiny_model(num_nextn_predict_layers=2)
    engine = Engine(model, rows=2)
    sampling = Sampling(max_new_tokens=24, temperature=0.0, ignore_eos=True, logprobs=0)
    trace = make_trace(engine, [5, 6, 7], sampling)
    answer = engine.generate([[5, 6, 7]], sampling, draft=0)[0]
    assert tuple(token.id for token in trace.tokens[3:]) == answer.token_ids
    assert answer.logprobs is not None
    for token, told in zip(trace.tokens[3:], answer.logprobs, strict=True):
        assert token.logprob == pytest.approx(told.logprob, abs=2e-3)
    assert len(trace.proposed) >= 1
    assert sum(token.drafted > 0 for token in trace.tokens) == sum(trace.accepted)
    assert trace.passes <= 23


def test_without_a_tokenizer_a_text_is_refused_and_tokens_are_numbers() -> None:
    engine = Engine(tiny_model(), rows=2)
    with pytest.raises(RequestError, match="no tokenizer"):
        make_trace(engine, "text", Sampling(max_new_tokens=2))
    trace = make_trace(engine, [1, 2], Sampling(max_new_tokens=2, seed=1))
    assert [token.text for token in trace.tokens[:2]] == ["<1>", "<2>"]
