import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from cueva.engine import Engine, SequenceCache
from cueva.engine.passes import Work
from cueva.engine.runner import Runner, rows_are_independent
from cueva.model import CausalLM
from tests.builders import random_ids, tiny_model
from tests.engine.doubles import GREEDY

PROMPTS = [random_ids(tiny_model().config, length, seed=length).tolist() for length in (5, 19, 3, 11, 8)]


def runner_of(dtype: torch.dtype = torch.float32, **changes: Any) -> Runner:
    return Runner(tiny_model(**changes).to(dtype), rows=8, prefill_chunk=16)


def filled(runner: Runner, prompt: list[int]) -> SequenceCache:
    cache = runner.new_cache(100)
    for start in range(0, len(prompt), runner.prefill_chunk):
        runner.prefill(cache, prompt[start : start + runner.prefill_chunk])
    return cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_place_or_its_neighbours(dtype: torch.dtype) -> None:
    runner = runner_of(dtype)
    (alone,) = runner.decode([Work(filled(runner, PROMPTS[0]), [7])])
    for place in (0, 3, 7):
        before = [Work(filled(runner, PROMPTS[1 + i % 4]), [i]) for i in range(place)]
        after = [Work(filled(runner, PROMPTS[1 + i % 3]), [40 + i]) for i in range(7 - place)]
        cache = filled(runner, PROMPTS[0])
        got = runner.decode([*before, Work(cache, [7]), *after])[place]
        assert torch.equal(got.state_ND, alone.state_ND)
        assert (got.logits_NA == alone.logits_NA).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_verification_has_the_bits_of_decoding(dtype: torch.dtype) -> None:
    """Eleven rows of one sequence, behind three of another: two passes. One by one: eleven passes."""
    runner = runner_of(dtype)
    ids = random_ids(runner.model.config, 11, seed=1).tolist()
    cache = filled(runner, PROMPTS[1])
    one_by_one = [runner.decode([Work(cache, [token_id])])[0] for token_id in ids]
    other, together = filled(runner, PROMPTS[2]), filled(runner, PROMPTS[1])
    _, got = runner.decode([Work(other, [1, 2, 3]), Work(together, ids)])
    assert torch.equal(got.state_ND, torch.cat([one.state_ND for one in one_by_one]))
    assert [row.tolist() for row in got.logits_NA] == [one.logits_NA[0].tolist() for one in one_by_one]
    for layer in range(runner.model.config.num_hidden_layers):
        length = cache.length(layer)
        assert torch.equal(together.rows(layer, length), cache.rows(layer, length))


def test_an_mtp_row_does_not_depend_on_its_place_or_its_neighbours() -> None:
    runner = runner_of(num_nextn_predict_layers=2)
    state_ND = torch.randn(8, 32, generator=torch.Generator().manual_seed(3))
    for depth in (1, 2):
        (alone,) = runner.mtp(depth, [Work(runner.new_cache(50), [7, 9], state_ND[:2])])
        others = Work(runner.new_cache(50), [1, 2, 3, 4, 5], state_ND[3:8])
        _, got = runner.mtp(depth, [others, Work(runner.new_cache(50), [7, 9], state_ND[:2])])
        assert torch.equal(got.state_ND, alone.state_ND)
        assert (got.logits_NA == alone.logits_NA).all()
        assert got.logits_NA.shape == (1, 320)
        assert len(runner.mtp(depth, [Work(runner.new_cache(50), [7], state_ND[:1])], logits=False)[0].logits_NA) == 0


def test_cached_passes_equal_one_full_pass() -> None:
    runner = runner_of()
    ids = random_ids(runner.model.config, 40).tolist()
    with torch.inference_mode():
        wanted = runner.model.states(torch.tensor([ids])).hidden_BTD[0]
    cache = filled(runner, ids[:29])
    (done,) = runner.decode([Work(cache, ids[29:])])
    assert (done.state_ND - wanted[29:]).abs().max() < 1e-4


def test_every_pass_has_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = tiny_model(), []
    step = CausalLM.step

    def spy(self: CausalLM, ids_T: Tensor, segments: Any, *, rowwise: bool, **more: Any) -> Tensor:
        shapes.append((len(ids_T), rowwise))
        return step(self, ids_T, segments, rowwise=rowwise, **more)

    monkeypatch.setattr(CausalLM, "step", spy)
    engine = Engine(model, backend="torch", rows=4, prefill_chunk=16)
    shapes.clear()  # the check at the start
    engine.generate([[1, 2], [3] * 20, [4]], GREEDY_8, draft=3)
    assert set(shapes) == {(engine.runner.rows, True), (16, False)}


GREEDY_8 = type(GREEDY)(temperature=0, ignore_eos=True, max_new_tokens=8)


@pytest.mark.parametrize("fault", ["place", "neighbours", "head", "mtp"])
def test_rows_that_influence_each_other_are_noticed_and_then_run_alone(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine whose matrix library treats rows differently is played by adding a last-bit error to the states."""
    step, logits, mtp_step = CausalLM.step, CausalLM.logits, CausalLM.mtp_step

    def wrong(h_TD: Tensor) -> Tensor:
        place_T1 = torch.arange(len(h_TD))[:, None]
        if fault == "neighbours":
            return h_TD + 1e-6 * (h_TD.mean(0) - h_TD)  # nothing among eight equal rows
        return h_TD + 1e-6 * place_T1

    monkeypatch.setattr(
        CausalLM, "step", lambda *a, **k: wrong(step(*a, **k)) if fault in ("place", "neighbours") else step(*a, **k)
    )
    if fault == "head":
        monkeypatch.setattr(CausalLM, "logits", lambda *a, **k: wrong(logits(*a, **k)))
    if fault == "mtp":
        monkeypatch.setattr(CausalLM, "mtp_step", lambda *a, **k: wrong(mtp_step(*a, **k)))
    model = tiny_model(vocab_size=12)
    with caplog.at_level(logging.WARNING, "cueva.engine"):
        engine = Engine(model, backend="torch", rows=8, prefill_chunk=16)
    assert engine.runner.rows == 1
    assert "one row" in caplog.text
    plain = engine.generate([[1, 2, 3]], GREEDY_8, draft=0)[0]
    drafted = engine.generate([[5] * 4, [1, 2, 3], [7]], GREEDY_8, draft=2)[1]
    assert drafted.token_ids == plain.token_ids
    # With one row a pass, a draft never pays.
    assert engine.generate([[1, 2, 3]], GREEDY_8, draft="auto")[0].stats.drafted == ()


def test_the_check_passes_on_this_machine() -> None:
    for model in (tiny_model(num_nextn_predict_layers=2), tiny_model().to(torch.bfloat16)):
        if not rows_are_independent(model, 8):
            pytest.skip("this machine's matrix library treats rows differently: engines here run one row per pass")
