"""The whole model: types that must survive, rows that must not mix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cueva.config import ModelConfig, model_config
from cueva.errors import ShapeError
from cueva.model import CausalLM
from tests.builders import random_ids, tiny_model
from tests.strategies import model_shapes


@given(config=model_shapes(), batch=st.integers(2, 4), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_a_row_does_not_depend_on_its_batch_mates(config: ModelConfig, batch: int, seed: int) -> None:
    model = tiny_model(config, seed=seed)
    ids = random_ids(config, batch, 10, seed=seed)
    with torch.no_grad():
        together = model(ids)
        for row in range(batch):
            alone = model(ids[row : row + 1])
            torch.testing.assert_close(together.logits[row], alone.logits[0], atol=2e-4, rtol=1e-4)
            for one, other in zip(together.mtp_logits, alone.mtp_logits, strict=True):
                torch.testing.assert_close(one[row], other[0], atol=2e-4, rtol=1e-4)


def test_gate_and_bias_stay_float32_and_exact_when_the_model_is_cast() -> None:
    model = tiny_model()
    before = [(gate.weight.clone(), gate.e_score_correction_bias.clone()) for _, gate in model.gates()]  # type: ignore
    model.to(torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    for (_, gate), (weight, bias) in zip(model.gates(), before, strict=True):
        assert gate.weight.dtype == gate.e_score_correction_bias.dtype == torch.float32  # type: ignore[union-attr]
        assert torch.equal(gate.weight, weight)
        assert torch.equal(gate.e_score_correction_bias, bias)  # type: ignore[arg-type]


def test_two_thousand_bias_steps_of_a_thousandth_make_two_even_in_a_bfloat16_model() -> None:
    model = tiny_model().to(torch.bfloat16)
    bias = model.gates()[0][1].e_score_correction_bias
    assert bias is not None
    bias.zero_()
    for _ in range(2000):
        bias += 0.001
    torch.testing.assert_close(bias, torch.full_like(bias, 2.0), atol=1e-3, rtol=0)


def test_a_bfloat16_models_router_multiplies_in_float32() -> None:
    model = tiny_model().to(torch.bfloat16)
    gate = model.gates()[0][1]
    x_TD = torch.randn(40, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = (x_TD.double() @ gate.weight.double().T).sigmoid()
    torch.testing.assert_close(gate(x_TD, None).score_TE.double(), exact, atol=1e-6, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gate(x_TD, None).score_TE.double(), exact, atol=1e-6, rtol=0)


def test_a_bias_routes_differently_from_none_at_any_width() -> None:
    """DeepSeek's demo gives the bias only to models 7168 wide."""
    model = tiny_model()
    ids = random_ids(model.config, 1, 16)
    with_bias = model(ids).logits
    for _, gate in model.gates():
        assert gate.e_score_correction_bias is not None
        gate.e_score_correction_bias.zero_()
    assert not torch.allclose(with_bias, model(ids).logits)


def test_logits_are_float32_whatever_the_model_is() -> None:
    model = tiny_model().to(torch.bfloat16)
    out = model(random_ids(model.config, 1, 6))
    assert out.logits.dtype == out.mtp_logits[0].dtype == torch.float32


def test_recomputed_activations_change_neither_output_gradients_nor_counts() -> None:
    model = tiny_model()
    ids = random_ids(model.config, 2, 12)
    results = []
    for recompute in (False, True):
        model.zero_grad()
        states = model.states(ids, recompute=recompute)
        (states.hidden_BTD.square().mean() + states.mtp_hidden[0].square().mean()).backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((states.hidden_BTD.detach(), grads, [r.load_E for r in states.routings]))
    plain, again = results
    assert torch.equal(plain[0], again[0])
    assert plain[1].keys() == again[1].keys()
    for name in plain[1]:
        torch.testing.assert_close(plain[1][name], again[1][name])
    for one, other in zip(plain[2], again[2], strict=True):
        assert torch.equal(one, other)


def test_fresh_weights_have_the_configured_spread_and_zero_biases() -> None:
    model = CausalLM(model_config("pocket"))
    model.init_weights(torch.Generator().manual_seed(0), 0.006)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            assert float(parameter.std()) == pytest.approx(0.006, rel=0.05), name
        else:
            assert (parameter == 1).all(), name
    assert all((g.e_score_correction_bias == 0).all() for _, g in model.gates())  # type: ignore[union-attr]


def test_equal_seeds_give_equal_weights() -> None:
    first, second = tiny_model(seed=4), tiny_model(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_tied_embeddings_are_one_parameter() -> None:
    model = tiny_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    names = [name for name, _ in model.named_parameters()]
    assert "lm_head.weight" not in names


def test_ids_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"shape \(4,\), but rows of a batch"):
        tiny_model()(torch.zeros(4, dtype=torch.int64))
