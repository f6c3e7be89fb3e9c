from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import cueva.engine.drafting as drafting
from cueva.engine import Engine, Sampling
from cueva.engine.drafting import ModuleChain
from cueva.engine.draws import fresh_seed
from cueva.engine.requests import make_request
from cueva.engine.scheduler import Batch, DraftPlan
from cueva.model import CausalLM, Segment
from tests.builders import PlainCache, tiny_model
from tests.engine.doubles import force_drafts

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9], [3, 1] * 9]
GREEDY = Sampling(temperature=0, ignore_eos=True, max_new_tokens=20)
SHAPE: dict[str, Any] = {"vocab_size": 12, "num_hidden_layers": 2}


def teacher_forced(model: CausalLM, tokens: list[int]) -> PlainCache:
    """What all caches hold after one pass over the true tokens."""
    cache, ids_T = PlainCache(), torch.tensor(tokens)
    with torch.inference_mode():
        state_TD = model.step(ids_T, [Segment(cache, 0, len(tokens))], rowwise=False)
        for depth in range(1, model.config.num_nextn_predict_layers + 1):
            rows = len(tokens) - depth
            if rows < 1:
                break
            segments = [Segment(cache, 0, rows)]
            state_TD = model.mtp_step(depth, ids_T[depth:], state_TD[:rows], segments, rowwise=False)
    return cache


def plain_answers(engine: Engine) -> list[list[int]]:
    return [[*p, *a.token_ids] for p, a in zip(PROMPTS, engine.generate(PROMPTS, GREEDY, draft=0), strict=True)]


def watched(engine: Engine, draft: Any, after: Callable[[Batch], None]) -> list[tuple[int, ...]]:
    """Run the prompts and look at the batch between rounds."""
    requests = [
        make_request(p, GREEDY, draft, engine.defaults, engine.pool.tokens, fresh_seed(), None) for p in PROMPTS
    ]
    answers = {}
    with Batch(requests, engine.runner, engine.pool, engine._plan, 8) as batch:
        while batch.busy:
            answers |= {number: p.answer.token_ids for number, p in batch.advance() if p.answer is not None}
            after(batch)
    return [answers[i] for i in range(len(requests))]


def compare(batch: Batch, engine: Engine, truth: list[list[int]]) -> None:
    main, depths = engine.config.num_hidden_layers, engine.config.num_nextn_predict_layers
    for one in batch.active:
        assert one.cache is not None
        tokens = one.tokens
        wanted = teacher_forced(engine.model, tokens)
        assert truth[one.number][: len(tokens)] == tokens
        for layer in range(main + depths):
            length = one.cache.length(layer)
            if layer < main:
                assert length == len(tokens) - 1
            else:
                assert length <= max(len(tokens) - 1 - (layer - main + 1), 0)
            if length:
                difference = (one.cache.rows(layer, length) - wanted.rows(layer, length)).abs().max()
                assert difference < 1e-4, (layer, length)


@pytest.mark.parametrize(("depths", "draft"), [(1, 1), (1, 3), (2, 2), (3, 5)])
def test_after_random_acceptance_every_cache_equals_a_teacher_forced_pass(
    depths: int, draft: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tiny_model(**SHAPE, num_nextn_predict_layers=depths), prefill_chunk=8)
    truth = plain_answers(engine)
    force_drafts(monkeypatch, truth, 0.7)
    got = watched(engine, draft, lambda batch: compare(batch, engine, truth))
    assert [[*p, *a] for p, a in zip(PROMPTS, got, strict=True)] == truth


def test_the_number_of_drafts_may_change_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model(**SHAPE, num_nextn_predict_layers=2), prefill_chunk=8)
    truth = plain_answers(engine)
    force_drafts(monkeypatch, truth, 0.7)
    chance = np.random.default_rng(4)
    monkeypatch.setattr(
        DraftPlan, "counts", lambda self, active: [min(int(chance.integers(0, 5)), one.draft_limit) for one in active]
    )
    monkeypatch.setattr(DraftPlan, "begin", lambda self, one: True)
    got = watched(engine, "auto", lambda batch: compare(batch, engine, truth))
    assert [[*p, *a] for p, a in zip(PROMPTS, got, strict=True)] == truth


def test_modules_that_are_not_used_catch_up_and_keep_few_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "LAG_MOST", 4)
    engine = Engine(tiny_model(**SHAPE, num_nextn_predict_layers=2), prefill_chunk=8)
    truth = plain_answers(engine)
    monkeypatch.setattr(
        DraftPlan, "counts", lambda self, active: [min(int(len(one.answer) > 15), one.draft_limit) for one in active]
    )
    monkeypatch.setattr(DraftPlan, "begin", lambda self, one: True)
    monkeypatch.setattr(DraftPlan, "keeps_up", lambda self, one: True)
    lags = []

    def look(batch: Batch) -> None:
        compare(batch, engine, truth)
        lags.extend(rows.stop - rows.first for one in batch.active if one.chain for rows in one.chain.states)

    got = watched(engine, "auto", look)
    assert [[*p, *a] for p, a in zip(PROMPTS, got, strict=True)] == truth
    assert 4 <= max(lags) <= 4 + 2


@pytest.mark.parametrize("depths", [1, 3])
def test_prefill_in_chunks_leaves_no_holes_in_the_modules_caches(depths: int) -> None:
    model = tiny_model(**SHAPE, num_nextn_predict_layers=depths)
    prompt = torch.randint(0, 12, (23,), generator=torch.Generator().manual_seed(0)).tolist()
    wanted = teacher_forced(model, prompt)
    for chunk in (1, 7, 64):
        runner = Engine(model, prefill_chunk=chunk).runner
        cache = runner.new_cache(100)
        chain = ModuleChain(runner, cache)
        for start in range(0, len(prompt), chunk):
            chain.prefill(prompt, start, runner.prefill(cache, prompt[start : start + chunk]))
        for depth in range(1, depths + 1):
            layer = chain.layer(depth)
            assert chain.length(depth) == len(prompt) - depth
            assert (cache.rows(layer, 23 - depth) - wanted.rows(layer, 23 - depth)).abs().max() < 1e-4
            # What the next depth has still to see is there, and nothing else.
            assert (chain.states[depth - 1].first, chain.states[depth - 1].stop) == (23 - depth, 24 - depth)


@pytest.mark.parametrize(("depths", "count"), [(1, 4), (2, 5), (3, 3)])
def test_drafts_are_what_the_trained_heads_say_and_then_the_last_head_again(depths: int, count: int) -> None:
    """Draft k is the argmax of depth k in a whole expanded pass; later ones follow the definition, row by row."""
    engine = Engine(tiny_model(**SHAPE, num_nextn_predict_layers=depths), prefill_chunk=8)
    runner, model, prompt = engine.runner, engine.model, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    cache, known = runner.new_cache(100), len(prompt) - 1
    chain = ModuleChain(runner, cache)
    for start in range(0, known, 8):
        chain.prefill(prompt[:-1], start, runner.prefill(cache, prompt[:-1][start : start + 8]))

    def likeliest(number: int, drafts: Any, logits_A: np.ndarray) -> drafting.Draft:
        return drafting.Draft(int(logits_A.argmax()), np.eye(12)[logits_A.argmax()])

    (drafts,) = drafting.draft(runner, [chain], [prompt], [count], likeliest)
    line = list(prompt)
    with torch.inference_mode():
        for depth in range(1, depths + 1):
            logits_A = model(torch.tensor([line])).mtp_logits[depth - 1][0, known - 1]
            line.append(int(logits_A.argmax()))
        # The last module once more: its rows so far, then rows with its own state and the newest draft.
        again, ids_T = PlainCache(), torch.tensor(line[:-1])
        state_TD = model.step(ids_T[:known], [Segment(PlainCache(), 0, known)], rowwise=False)
        for depth in range(1, depths + 1):
            segments = [Segment(again, 0, known)]
            state_TD = model.mtp_step(depth, ids_T[depth : depth + known], state_TD, segments, rowwise=False)
        state_TD = state_TD[-1:]
        for _ in range(count - depths):
            newest_T = torch.tensor(line[-1:])
            state_TD = model.mtp_step(depths, newest_T, state_TD, [Segment(again, 0, 1)], rowwise=False)
            line.append(int(model.logits(state_TD, depths)[0].argmax()))
    assert [draft.token_id for draft in drafts] == line[len(prompt) :]
