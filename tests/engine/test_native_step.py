"""A native step in float32 against the model's own forward: every preset's shape, any small shape, any mix of rows.

The relative error is held below 1e-5: sums of a few hundred float32 products in another order, a few layers deep, come
out at 1e-6. Shapes that make much of little (`wobble`) get their own measure.
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cueva.config import PRESETS, ModelConfig, model_config
from cueva.kernels import native
from cueva.model.experts import MixtureOfExperts
from tests.builders import tiny_model
from tests.engine.native_models import (
    ISAS,
    choices_are_clear,
    clear_ids,
    clear_model,
    forward,
    ids_for,
    in_small,
    native_shapes,
    poisoned_cache,
    relative_error,
    rows_for,
    run,
    run_all,
    runner_of,
    wobble,
)

pytestmark = pytest.mark.skipif(native.extension() is None, reason="the native kernels were not built")
every_isa = pytest.mark.parametrize("isa", ISAS)

CLOSE = 1e-5
WAYS: dict[str, list[tuple[bool, int]]] = {
    "verified in one go": [(False, 100)],
    "prompt in chunks, then decoded": [
        (True, 16),
        (True, 16),
        (True, 16),
        (False, 1),
        (False, 1),
        (False, 5),
        (False, 99),
    ],
    "one prompt chunk": [(True, 100)],
}


@every_isa
@pytest.mark.parametrize("preset", PRESETS)
def test_every_presets_shape_runs_through_it(isa: str, preset: str) -> None:
    """70 positions: beyond a page of the cache, and beyond the 64 rows that attention takes at once."""
    model = tiny_model(in_small(preset))
    (ids,) = clear_ids(model, 70)
    wanted = forward(model, ids)
    runner = runner_of(model, isa=isa)
    assert len(wanted) == 1 + model.config.num_nextn_predict_layers > 1
    for way, pieces in WAYS.items():
        found = run_all(runner, poisoned_cache(runner, 70), ids, pieces)
        for depth, (got_TA, wanted_TA) in enumerate(zip(found, wanted, strict=True)):
            assert relative_error(got_TA, wanted_TA) < CLOSE, (way, depth)


@every_isa
def test_any_small_shape_runs_through_it(isa: str) -> None:
    @settings(max_examples=20, suppress_health_check=[HealthCheck.filter_too_much])
    @given(
        config=native_shapes(),
        seed=st.integers(0, 1000),
        pieces=st.lists(st.tuples(st.booleans(), st.integers(1, 30)), min_size=1, max_size=4),
        factor=st.sampled_from([0.0, 1.0, 1e30]),
    )
    def check(config: ModelConfig, seed: int, pieces: list[tuple[bool, int]], factor: float) -> None:
        model = tiny_model(config, seed=seed)
        ids = ids_for(config, sum(count for _, count in pieces) + config.num_nextn_predict_layers, seed=seed)
        assume(choices_are_clear(model, [ids]))
        runner = runner_of(model, isa=isa)
        runner.model.plan.set_expand_factor(factor)
        found = run_all(runner, poisoned_cache(runner, len(ids)), ids, [*pieces, (False, 99)])
        bound = max(CLOSE, 8 * wobble(model, ids))
        for got_TA, wanted_TA in zip(found, forward(model, ids), strict=True):
            assert relative_error(got_TA, wanted_TA) < bound

    check()


@every_isa
def test_sequences_of_all_kinds_mix_in_one_step(isa: str) -> None:
    """Decoding, verification and prompts of five sequences, one empty before, in one call for each depth."""
    model = tiny_model(in_small("v3-671b"))
    held, fresh, prompt = (3, 70, 0, 17, 130), (1, 4, 2, 20, 9), (False, False, False, True, True)
    ids = clear_ids(model, *(h + f + 1 for h, f in zip(held, fresh, strict=True)))
    wanted = [forward(model, one) for one in ids]
    runner = runner_of(model, isa=isa)
    caches = [poisoned_cache(runner, len(one)) for one in ids]
    earlier = [run(runner, cache, one[:h], [(True, 256)])[0] if h else None
               for cache, one, h in zip(caches, ids, held, strict=True)]  # fmt: skip
    runner.model.plan.poison()
    work = [rows_for(c, one[h : h + f]) for c, one, h, f in zip(caches, ids, held, fresh, strict=True)]
    rows = np.arange(sum(fresh), dtype=np.int32)
    state_TD, logits_TA = runner.step(0, work, rows, prefill=prompt)
    parts = torch.from_numpy(logits_TA).split(fresh)
    for got_TA, (wanted_TA, _), h, f in zip(parts, wanted, held, fresh, strict=True):
        assert relative_error(got_TA, wanted_TA[h : h + f]) < CLOSE

    for i, (h, f) in enumerate(zip(held, fresh, strict=True)):
        if h:
            run(runner, caches[i], ids[i][1 : h + 1], [(True, 256)], depth=1, state_TD=earlier[i])
        del f
    work = [rows_for(c, one[h + 1 : h + f + 1], s)
            for c, one, h, f, s in zip(caches, ids, held, fresh, state_TD.split(fresh), strict=True)]  # fmt: skip
    _, logits_TA = runner.step(1, work, rows, prefill=prompt)
    for got_TA, (_, wanted_TA), h, f in zip(torch.from_numpy(logits_TA).split(fresh), wanted, held, fresh, strict=True):
        assert relative_error(got_TA, wanted_TA[h : h + f]) < CLOSE


@every_isa
def test_logits_are_given_for_the_rows_that_were_asked_for_and_no_others(isa: str) -> None:
    model = tiny_model()
    ids = ids_for(model.config, 9)
    runner = runner_of(model, isa=isa)
    whole_TA = run(runner, poisoned_cache(runner, 9), ids, [(False, 9)])[1]
    for asked in ([], [0], [8], [2, 3, 7]):
        work = [rows_for(poisoned_cache(runner, 9), ids)]
        logits_TA = runner.step(0, work, np.array(asked, dtype=np.int32))[1]
        assert logits_TA.shape == (len(asked), model.config.vocab_size)
        assert torch.equal(torch.from_numpy(logits_TA), whole_TA[asked])
    # A prompt's last row is the first to be decoded from: its logits are those of its state, however it came about.
    state_TD, logits_TA = run(runner, poisoned_cache(runner, 9), ids, [(True, 9)])
    assert (runner.logits(state_TD[-1]) == logits_TA[-1].numpy()).all()


# --- attention --------------------------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("latent_and_rope", [(512, 64), (256, 64), (256, 32), (128, 32), (33, 6)])
def test_both_forms_of_attention_agree_on_prompts(isa: str, latent_and_rope: tuple[int, int]) -> None:
    latent, rope = latent_and_rope
    model = tiny_model(kv_lora_rank=latent, qk_rope_head_dim=rope, num_attention_heads=3, num_hidden_layers=2)
    (ids,) = clear_ids(model, 150)
    runner = runner_of(model, isa=isa)
    forms = []
    for factor in (0.0, 1e30):
        runner.model.plan.set_expand_factor(factor)
        forms.append(run(runner, poisoned_cache(runner, 150), ids, [(True, 40), (True, 70), (True, 40)])[1])
    expanded_TA, absorbed_TA = forms
    assert not torch.equal(expanded_TA[40:], absorbed_TA[40:]), "the factor decides nothing"
    assert relative_error(expanded_TA, absorbed_TA) < CLOSE
    assert relative_error(expanded_TA, forward(model, ids)[0]) < CLOSE


@every_isa
@pytest.mark.parametrize("factor", [0.0, 1e30])
def test_long_contexts_cross_pages_and_chunks(isa: str, factor: float) -> None:
    """1,150 positions: 18 pages, five chunks of the absorbed form, more keys than the expanded form raises at once."""
    model = tiny_model(num_hidden_layers=2, max_position_embeddings=2048)
    (ids,) = clear_ids(model, 1150, gap=1e-6)
    wanted_TA = forward(model, ids)[0]
    runner = runner_of(model, isa=isa)
    runner.model.plan.set_expand_factor(factor)
    pieces = [
        (True, 256),
        (True, 256),
        (True, 187),
        (False, 1),
        (False, 3),
        (False, 65),
        (False, 1),
        (True, 256),
        (True, 125),
    ]
    logits_TA = run(runner, poisoned_cache(runner, 1150), ids, pieces)[1]
    error_T = (logits_TA - wanted_TA).norm(dim=-1) / wanted_TA.norm(dim=-1)
    assert float(error_T.max()) < 3 * CLOSE  # the worst of all rows, not their mean
    assert relative_error(logits_TA, wanted_TA) < CLOSE


@every_isa
def test_more_heads_than_lanes(isa: str) -> None:
    """Twenty heads of one row lie in two groups of sixteen lanes, and three rows of five heads in one."""
    for heads in (5, 16, 20):
        model = tiny_model(num_attention_heads=heads)
        (ids,) = clear_ids(model, 40)
        runner = runner_of(model, isa=isa, threads=3)
        pieces = [(False, 1), (False, 3), (False, 4), (True, 9), (False, 40)]
        assert relative_error(run(runner, poisoned_cache(runner, 40), ids, pieces)[1], forward(model, ids)[0]) < CLOSE


# --- experts ----------------------------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("preset", ["tiny", "v2-lite-16b", "moonlight-16b", "v3-671b"])
def test_experts_are_chosen_as_the_gate_chooses_them(isa: str, preset: str) -> None:
    """The same experts in the same order, in every layer and module, for prompts and decoded rows alike."""
    model = tiny_model(in_small(preset))
    config = model.config
    ids = ids_for(config, 50)
    assert choices_are_clear(model, [ids])
    with torch.inference_mode():
        routings = model.states(ids[None]).routings
    main = len(routings) - config.num_nextn_predict_layers
    runner = runner_of(model, isa=isa)
    for prompt in (False, True):
        cache = poisoned_cache(runner, 50)
        routes_LTK = np.full((main, 50, config.num_experts_per_tok), -1, np.int32)
        state_TD, _ = runner.step(
            0, [rows_for(cache, ids)], np.empty(0, np.int32), prefill=prompt, routes=routes_LTK
        )  # fmt: skip
        for found_TK, routing in zip(routes_LTK, routings[:main], strict=True):
            assert (torch.from_numpy(found_TK) == routing.expert_TK).all()
        routes_LTK = np.full((1, 49, config.num_experts_per_tok), -1, np.int32)
        work = [rows_for(cache, ids[1:], state_TD[:49])]
        runner.step(1, work, np.empty(0, np.int32), prefill=prompt, routes=routes_LTK)
        assert (torch.from_numpy(routes_LTK[0]) == routings[main].expert_TK[:49]).all()


@every_isa
def test_ties_go_to_the_lower_expert(isa: str) -> None:
    """Experts whose centroids are equal tie in every row; so do groups."""
    model = tiny_model(n_routed_experts=16, n_group=4, topk_group=2, num_experts_per_tok=4)
    for _, gate in model.gates():
        gate.weight.data.copy_(gate.weight.data[:2].repeat(8, 1))
        assert gate.e_score_correction_bias is not None
        gate.e_score_correction_bias.zero_()
    ids = ids_for(model.config, 30)
    with torch.inference_mode():
        routings = model.states(ids[None]).routings
    runner = runner_of(model, isa=isa)
    routes_LTK = np.full((2, 30, 4), -1, np.int32)
    runner.step(0, [rows_for(poisoned_cache(runner, 30), ids)], np.empty(0, np.int32), routes=routes_LTK)
    for found_TK, routing in zip(routes_LTK, routings, strict=False):
        assert (torch.from_numpy(found_TK) == routing.expert_TK).all()
        assert set(found_TK.flatten().tolist()) <= set(range(8)), "the two lower groups"


@every_isa
def test_groups_may_be_as_many_as_experts(isa: str) -> None:
    """128 groups of one expert, of which a hundred are kept."""
    model = tiny_model(
        n_routed_experts=128, n_group=128, topk_group=100, num_experts_per_tok=6, moe_intermediate_size=8,
        topk_method="group_limited_greedy", scoring_func="softmax", routed_scaling_factor=16.0,
    )  # fmt: skip
    (ids,) = clear_ids(model, 30, gap=1e-7)
    wanted_TA = forward(model, ids)[0]
    for threads in (1, 2):
        runner = runner_of(model, isa=isa, threads=threads)
        for pieces in ([(False, 30)], [(True, 30)]):
            assert relative_error(run(runner, poisoned_cache(runner, 30), ids, pieces)[1], wanted_TA) < CLOSE


@every_isa
def test_experts_that_nobody_chose_are_not_read(isa: str) -> None:
    """All rows choose the same two of eight experts; the weights of the others are NaN."""
    model = clear_model(model_config("tiny"))
    ids = ids_for(model.config, 20)
    wanted_TA = forward(model, ids)[0]
    with torch.inference_mode():
        routings = model.states(ids[None]).routings
    blocks = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    for mlp, routing in zip(blocks, routings, strict=True):
        chosen = routing.expert_TK.unique()
        assert len(chosen) == 2
        others = [e for e in range(8) if e not in chosen]
        for stacked in mlp.experts.parameters():
            stacked.data[others] = torch.nan
    runner = runner_of(model, isa=isa)
    for pieces in ([(False, 1), (False, 19)], [(True, 20)]):
        assert relative_error(run(runner, poisoned_cache(runner, 20), ids, pieces)[1], wanted_TA) < CLOSE
