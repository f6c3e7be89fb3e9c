"""Latent attention: two forms, any chunks, any cache, one answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cueva.config import ModelConfig
from cueva.kernels import attend
from cueva.model import Segment
from cueva.model import attention as attention_module
from tests.builders import PlainCache, random_ids, tiny_model
from tests.strategies import model_shapes

# Logits of these models are several units in size; the two forms differ by some hundred float32 roundings.
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


@given(config=model_shapes(), chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_prefill_in_any_chunks_then_decoding_equals_one_full_pass(
    config: ModelConfig, chunks: list[int], seed: int
) -> None:
    """Chunks that do not start at zero catch a T x T mask; single rows catch the scale of the absorbed form."""
    model = tiny_model(config, seed=seed)
    ids = random_ids(config, sum(chunks) + 3, seed=seed)
    cache, states = PlainCache(), []
    with torch.no_grad():
        at = 0
        for chunk in chunks:
            states.append(model.step(ids[at : at + chunk], [Segment(cache, 0, chunk)], rowwise=False))
            at += chunk
        for row in range(at, len(ids)):
            states.append(model.step(ids[row : row + 1], [Segment(cache, 0, 1)], rowwise=True))
        logits = model.logits(torch.cat(states))
        torch.testing.assert_close(logits, model(ids[None]).logits[0], **CLOSE)


@pytest.mark.parametrize("always_absorbed", [True, False])
def test_absorbed_attention_equals_expanded_attention(monkeypatch: pytest.MonkeyPatch, always_absorbed: bool) -> None:
    monkeypatch.setattr(attention_module, "absorbed_is_cheaper", lambda *args, **kwargs: always_absorbed)
    model = tiny_model()
    ids, cache = random_ids(model.config, 20), PlainCache()
    with torch.no_grad():
        first = model.step(ids[:7], [Segment(cache, 0, 7)], rowwise=False)
        second = model.step(ids[7:], [Segment(cache, 0, 13)], rowwise=False)
        torch.testing.assert_close(model.logits(torch.cat([first, second])), model(ids[None]).logits[0], **CLOSE)


def test_a_decoded_rows_bits_do_not_depend_on_its_place_its_neighbours_or_being_verified() -> None:
    model = tiny_model()
    ids = random_ids(model.config, 20)

    def prefilled() -> PlainCache:
        cache = PlainCache()
        model.step(ids[:12], [Segment(cache, 0, 12)], rowwise=False)
        return cache

    with torch.no_grad():
        # Alone, one by one, in row 0 of eight.
        alone, cache = [], prefilled()
        for row in range(12, 20):
            padded = torch.zeros(8, dtype=torch.int64)
            padded[0] = ids[row]
            alone.append(model.step(padded, [Segment(cache, 0, 1)], rowwise=True)[0])
        # Eight at once, as verification does.
        verified = model.step(ids[12:20], [Segment(prefilled(), 0, 8)], rowwise=True)
        for row in range(8):
            assert torch.equal(alone[row], verified[row])
        # In row 5, with a stranger in rows 0 to 3 and other filler.
        crowd = random_ids(model.config, 8, seed=9)
        crowd[5] = ids[12]
        segments = [Segment(prefilled(), 5, 6), Segment(PlainCache(), 0, 4)]
        assert torch.equal(alone[0], model.step(crowd, segments, rowwise=True)[5])


def test_the_cache_holds_latent_and_rotary_key_and_nothing_else() -> None:
    model = tiny_model()
    cache = PlainCache()
    with torch.no_grad():
        model.step(random_ids(model.config, 5), [Segment(cache, 0, 5)], rowwise=False)
    values = sum(cache.rows(layer, 5).numel() for layer in range(model.config.num_hidden_layers))
    assert values == 5 * model.config.cache_values_per_token


def test_latent_norms_use_their_own_epsilon_whatever_rms_norm_eps_says() -> None:
    """With ordinary latents the difference hides at 1e-4; small ones show it."""
    model = tiny_model(rms_norm_eps=1e-1)
    attention = model.main_layers[0].self_attn
    with torch.no_grad():
        attention.kv_a_proj_with_mqa.weight.mul_(1e-3)
        x_BTD = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
        latent, _ = attention.latents(x_BTD, model.rotary.at(torch.arange(4)))
        raw = attention.kv_a_proj_with_mqa(x_BTD)[..., :16].double()
        expected = raw / (raw.square().mean(-1, keepdim=True) + 1e-6).sqrt() * attention.kv_a_layernorm.weight.double()
    torch.testing.assert_close(latent.double(), expected, atol=1e-5, rtol=1e-4)
    assert model.main_layers[0].input_layernorm.eps == 1e-1


def test_filler_rows_leave_no_trace() -> None:
    model = tiny_model()
    ids, cache, padded_cache = random_ids(model.config, 5), PlainCache(), PlainCache()
    with torch.no_grad():
        plain = model.step(ids, [Segment(cache, 0, 5)], rowwise=False)
        padded = torch.cat([ids, random_ids(model.config, 4, seed=3)])
        routings: list = []
        filled = model.step(padded, [Segment(padded_cache, 0, 5)], rowwise=False, routings=routings)
    torch.testing.assert_close(filled[:5], plain, **CLOSE)
    assert padded_cache.length(0) == 5
    assert [int(r.load_E.sum()) for r in routings] == [5 * model.config.num_experts_per_tok] * 2


def test_both_forms_agree_on_the_threshold_being_a_matter_of_cost_alone() -> None:
    assert attend.absorbed_is_cheaper is attention_module.absorbed_is_cheaper
