"""AdamW against its definition, who decays, and the length of gradients."""

import math

import pytest
import torch

from cueva.errors import RunError
from cueva.train.optimizer import build_optimizer, clip_gradients, gradient_norm
from cueva.train.settings import OptimizerSettings
from tests.train.harness import fresh_model, tiny_config

SETTINGS = OptimizerSettings(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.5)


def with_gradients(seed: int = 0) -> torch.nn.Module:
    model = fresh_model(tiny_config("unused"))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


def test_three_steps_equal_adamw_written_out_in_float64() -> None:
    model = with_gradients()
    optimizer = build_optimizer(model, SETTINGS)
    start = {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}
    first = {name: torch.zeros_like(weight) for name, weight in start.items()}
    second = {name: torch.zeros_like(weight) for name, weight in start.items()}
    for step in range(1, 4):
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(-0.7)
            gradient = parameter.grad.double()
            decay = 0.5 if parameter.dim() >= 2 else 0.0
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            direction = first[name] / (1 - 0.8**step) / ((second[name] / (1 - 0.95**step)).sqrt() + 1e-6)
            start[name] = start[name] * (1 - 0.01 * decay) - 0.01 * direction
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), start[name], atol=2e-6, rtol=1e-5)


def test_everything_with_two_dimensions_decays_and_nothing_else() -> None:
    model = fresh_model(tiny_config("unused"))
    decaying, staying = build_optimizer(model, SETTINGS).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert decaying["weight_decay"] == 0.5
    assert staying["weight_decay"] == 0.0
    decays = {names[parameter] for parameter in decaying["params"]}
    stays = {names[parameter] for parameter in staying["params"]}
    assert decays | stays == set(names.values())
    assert all("norm" in name for name in stays)
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.experts.down_proj"} <= decays
    assert not any("e_score_correction_bias" in name for name in decays | stays)


def test_equal_gradients_give_equal_bits() -> None:
    one, other = with_gradients(3), with_gradients(3)
    for model in (one, other):
        optimizer = build_optimizer(model, SETTINGS)
        optimizer.step()
        optimizer.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_clipping_keeps_the_direction_and_only_shortens() -> None:
    model = with_gradients()
    parameters = list(model.parameters())
    exact = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None))
    norm = float(gradient_norm(parameters))
    assert norm == pytest.approx(exact, rel=1e-6)
    before = [p.grad.clone() for p in parameters if p.grad is not None]
    clip_gradients(parameters, norm, 2 * norm)
    assert all(torch.equal(p.grad, old) for p, old in zip(parameters, before, strict=True) if p.grad is not None)
    clip_gradients(parameters, norm, 0.5)
    assert float(gradient_norm(parameters)) == pytest.approx(0.5, rel=1e-5)
    for parameter, old in zip(parameters, before, strict=True):
        torch.testing.assert_close(parameter.grad, old * (0.5 / norm))


def test_a_model_in_bfloat16_is_refused_by_the_name_of_a_weight() -> None:
    model = fresh_model(tiny_config("unused")).to(torch.bfloat16)
    with pytest.raises(RunError, match=r"`model.embed_tokens.weight` is torch.bfloat16") as refused:
        build_optimizer(model, SETTINGS)
    assert "float32" in str(refused.value.way_out)
