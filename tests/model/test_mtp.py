"""Multi-token prediction: causal chains, borders, caches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cueva.model import Segment
from tests.builders import PlainCache, random_ids, tiny_model

CLOSE = {"atol": 2e-4, "rtol": 1e-4}


@pytest.mark.parametrize("depths", [0, 1, 2, 3])
def test_each_depth_has_rows_as_far_as_its_token_lies_in_the_row(depths: int) -> None:
    model = tiny_model(num_nextn_predict_layers=depths)
    out = model(random_ids(model.config, 2, 9))
    assert [tuple(x.shape) for x in out.mtp_logits] == [(2, 9 - k, 320) for k in range(1, depths + 1)]
    assert model(random_ids(model.config, 1, 2)).logits.shape == (1, 2, 320)


def test_the_chain_is_causal_at_every_depth() -> None:
    """Row i of depth k may know tokens up to i + k, not one more."""
    model = tiny_model(num_nextn_predict_layers=3)
    ids = random_ids(model.config, 1, 12)
    with torch.no_grad():
        before = model(ids)
        for changed in range(12):
            other = ids.clone()
            other[0, changed] = (other[0, changed] + 1) % 320
            after = model(other)
            torch.testing.assert_close(before.logits[0, :changed], after.logits[0, :changed], atol=1e-5, rtol=1e-5)
            for depth in (1, 2, 3):
                safe = max(changed - depth, 0)
                one, two = before.mtp_logits[depth - 1][0], after.mtp_logits[depth - 1][0]
                torch.testing.assert_close(one[:safe], two[:safe], atol=1e-5, rtol=1e-5)
                if safe < len(one):
                    assert not torch.allclose(one[safe], two[safe], atol=1e-5), "the row must know token i + k"


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    padding=st.integers(0, 3),
    filler=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_a_packed_row_equals_its_documents_alone_at_every_depth(lengths: list[int], padding: int, filler: int) -> None:
    model = tiny_model(num_nextn_predict_layers=3)
    documents = [random_ids(model.config, n, seed=n + 10 * i) for i, n in enumerate(lengths)]
    pad = random_ids(model.config, padding, seed=filler)
    ids = torch.cat([*documents, pad])[None]
    marks = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)] + [torch.full((padding,), -1)])[None]
    with torch.no_grad():
        packed = model.states(ids, marks)
        start = 0
        for document in documents:
            alone = model.states(document[None])
            n = len(document)
            torch.testing.assert_close(packed.hidden_BTD[0, start : start + n], alone.hidden_BTD[0], **CLOSE)
            for depth in range(3):
                rows = max(n - depth - 1, 0)
                got = packed.mtp_hidden[depth][0, start : start + rows]
                torch.testing.assert_close(got, alone.mtp_hidden[depth][0, :rows], **CLOSE)
                assert packed.mtp_valid[depth][0, start : start + rows].all()
                assert not packed.mtp_valid[depth][0, start + rows : start + n].any()
            start += n
    # Loads count valid positions, K experts each, and nothing else.
    chosen = model.config.num_experts_per_tok
    gates_main = model.config.gate_count - 3
    expected = [sum(lengths) * chosen] * gates_main
    expected += [sum(max(n - k, 0) for n in lengths) * chosen for k in (1, 2, 3)]
    assert [int(r.load_E.sum()) for r in packed.routings] == expected


def test_module_rows_over_a_cache_equal_the_teacher_forced_pass() -> None:
    model = tiny_model(num_nextn_predict_layers=2)
    ids, cache = random_ids(model.config, 14), PlainCache()
    with torch.no_grad():
        whole = model.states(ids[None])
        state = model.step(ids, [Segment(cache, 0, 14)], rowwise=False)
        for depth in (1, 2):
            rows, done = 14 - depth, []
            for start in range(0, rows, 5):
                some = slice(start, min(start + 5, rows))
                n = some.stop - some.start
                done.append(
                    model.mtp_step(depth, ids[depth:][some], state[some], [Segment(cache, 0, n)], rowwise=start > 0)
                )
            state = torch.cat(done)
            torch.testing.assert_close(state, whole.mtp_hidden[depth - 1][0], **CLOSE)
            assert cache.length(model.config.num_hidden_layers + depth - 1) == rows


def test_embedding_and_head_exist_once_and_take_one_gradient_from_all_depths() -> None:
    model = tiny_model(num_nextn_predict_layers=2)
    names = dict(model.named_parameters())
    assert sum("embed_tokens" in n for n in names) == 1
    assert not any("shared_head.head" in n for n in names)
    out = model(random_ids(model.config, 1, 8))
    gradient = [
        torch.autograd.grad(logits.sum(), model.lm_head.weight, retain_graph=True)[0]
        for logits in (out.logits, *out.mtp_logits)
    ]
    assert all(float(g.abs().sum()) > 0 for g in gradient)


def test_a_copy_that_differs_is_used_by_its_depth_only() -> None:
    model = tiny_model(num_nextn_predict_layers=2)
    ids = random_ids(model.config, 1, 8)
    with torch.no_grad():
        before = model(ids)
        module = model.mtp_modules[0]
        module.shared_head.head = torch.nn.Linear(32, 320, bias=False)
        module.shared_head.head.weight.copy_(model.lm_head.weight * 2)
        after = model(ids)
    torch.testing.assert_close(after.mtp_logits[0], before.mtp_logits[0] * 2)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.mtp_logits[1], before.mtp_logits[1])
