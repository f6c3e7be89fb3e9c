"""The balance bias and the sequence-wise loss: exact counts, exact signs, and golden numbers."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cueva.errors import ShapeError
from cueva.kernels.route import Routing, route
from cueva.model import CausalLM
from cueva.train import Batch, apply_balance, bias_step, max_violation, sequence_loss, training_step
from cueva.train.optimizer import build_optimizer
from cueva.train.settings import OptimizerSettings
from tests.builders import GOLDEN_CONFIG, random_ids, tiny_model
from tests.train.harness import dials_of, packed_batch

LOADS = st.lists(st.integers(0, 2**40), min_size=1, max_size=9)


@given(load=LOADS)
@example(load=[2**40, 2**40, 2**40 + 1])  # a mean taken in float32 cannot tell these apart
@example(load=[7, 7, 7])
def test_a_bias_moves_by_exactly_one_step_against_its_load(load: list[int]) -> None:
    bias = torch.full((len(load),), 0.5)
    bias_step(bias, torch.tensor(load), 0.25)
    for moved, count in zip(bias.tolist(), load, strict=True):
        above = count * len(load) - sum(load)  # Python's own integers
        assert moved == 0.5 + (0.25 if above < 0 else -0.25 if above > 0 else 0.0)


def test_equal_loads_move_nothing() -> None:
    bias = torch.zeros(5)
    bias_step(bias, torch.full((5,), 40_001), 0.001)
    assert torch.equal(bias, torch.zeros(5))


def test_counts_in_a_float_type_are_refused() -> None:
    with pytest.raises(AssertionError, match="lose their units"):
        bias_step(torch.zeros(2), torch.tensor([40_001.0, 40_000.0]), 0.001)
    with pytest.raises(AssertionError, match="loses its steps"):
        bias_step(torch.zeros(2, dtype=torch.bfloat16), torch.tensor([1, 2]), 0.001)


def test_the_proportional_rule_moves_by_the_relative_error() -> None:
    bias = torch.zeros(4)
    bias_step(bias, torch.tensor([0, 10, 10, 20]), 0.1, "proportional")
    torch.testing.assert_close(bias, torch.tensor([0.1, 0.0, 0.0, -0.1]))


def test_every_gate_is_balanced_including_those_of_mtp() -> None:
    model = tiny_model(num_nextn_predict_layers=2)
    before = [gate.e_score_correction_bias for _, gate in model.gates()]
    values = [bias.clone() for bias in before if bias is not None]
    loads = torch.arange(4 * 8).view(4, 8)
    apply_balance(model, loads, 0.5)
    assert [name for name, _ in model.gates()][-2:] == ["model.layers.3.mlp.gate", "model.layers.4.mlp.gate"]
    for (_, gate), old, value in zip(model.gates(), before, values, strict=True):
        assert gate.e_score_correction_bias is old, (
            "moved in place: a buffer that is bound anew is lost to a checkpoint"
        )
        torch.testing.assert_close(old, value + torch.tensor([0.5] * 4 + [-0.5] * 4))


def test_a_gate_without_its_counts_is_an_error() -> None:
    with pytest.raises(ShapeError, match="loads of 2 gates were counted, but the model has 3"):
        apply_balance(tiny_model(), torch.zeros(2, 8, dtype=torch.int64), 0.1)


def test_no_bias_goes_further_than_speed_times_steps_and_the_loads_even_out() -> None:
    model = tiny_model(std=0.3)
    for _, gate in model.gates():
        assert gate.e_score_correction_bias is not None
        gate.e_score_correction_bias.zero_()
    optimizer = build_optimizer(model, OptimizerSettings(lr=1e-6))
    batch, violations = packed_batch(rows=8, vocab=320), []
    for _ in range(30):
        report = training_step(model, optimizer, [batch], dials_of(lr=1e-6, bias_speed=0.02))
        violations.append(max(report.max_vio))
    for _, gate in model.gates():
        assert gate.e_score_correction_bias is not None
        assert float(gate.e_score_correction_bias.abs().max()) <= 0.02 * 30 * (1 + 1e-5)
    assert violations[0] > 0.6
    assert sum(violations[-5:]) / 5 < 0.5 * violations[0]


def test_speed_zero_leaves_the_biases_alone() -> None:
    model = tiny_model()
    before = [gate.e_score_correction_bias.clone() for _, gate in model.gates()]  # type: ignore[union-attr]
    training_step(model, build_optimizer(model, OptimizerSettings()), [packed_batch(vocab=320)], dials_of())
    for (_, gate), bias in zip(model.gates(), before, strict=True):
        assert torch.equal(gate.e_score_correction_bias, bias)  # type: ignore[arg-type]


def test_max_violation_is_how_far_the_busiest_is_above_the_mean() -> None:
    assert max_violation(torch.tensor([4, 4, 4, 4])) == 0.0
    assert max_violation(torch.tensor([8, 0, 4, 4])) == 1.0
    assert max_violation(torch.tensor([16, 0, 0, 0])) == 3.0
    assert max_violation(torch.tensor([0, 0])) == 0.0


# --- the sequence-wise loss -------------------------------------------------------------------------------------------


def routing_of(score_TE: torch.Tensor, chosen: int = 2) -> Routing:
    logit_TE = score_TE.logit()
    return route(logit_TE, torch.zeros(score_TE.shape[-1]), chosen=chosen)


def test_uniform_scores_give_exactly_one_and_one_expert_for_all_gives_e_over_k() -> None:
    counted = torch.ones(3, 5, dtype=torch.bool)
    uniform = routing_of(torch.full((15, 8), 0.5))
    assert float(sequence_loss(uniform, counted)) == pytest.approx(3.0, rel=1e-6)  # one for each of three rows
    score = torch.full((15, 8), 1e-6)
    score[:, :2] = 1 - 1e-6
    assert float(sequence_loss(routing_of(score), counted)) == pytest.approx(3 * 8 / 2, rel=1e-4)


def test_padding_counts_neither_in_f_nor_in_p_and_an_empty_row_adds_nothing() -> None:
    score = torch.rand(12, 8, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    counted = torch.tensor([[True, True, True, False, False, False], [False] * 6])
    alone = sequence_loss(routing_of(score[:3]), torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(sequence_loss(routing_of(score), counted), alone)


def test_the_literal_choice_ignores_bias_and_groups_and_the_actual_one_does_not() -> None:
    score = torch.rand(24, 8, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    counted = torch.ones(2, 12, dtype=torch.bool)
    free = route(score.logit(), torch.zeros(8), chosen=2)
    pushed = route(score.logit(), torch.tensor([3.0] * 2 + [0.0] * 6), chosen=2, groups=4, groups_kept=2)
    torch.testing.assert_close(sequence_loss(pushed, counted), sequence_loss(free, counted))
    actual = sequence_loss(pushed, counted, "actual")
    assert abs(float(actual) - float(sequence_loss(free, counted))) > 0.1


def test_only_the_scores_shares_have_a_gradient() -> None:
    """Scaling a token's scores by one factor changes no share, so the gradient along the scores themselves is 0."""
    score = (torch.rand(6, 8, generator=torch.Generator().manual_seed(2)) * 0.9 + 0.05).requires_grad_()
    routing = routing_of(score.detach())._replace(score_TE=score)
    sequence_loss(routing, torch.ones(1, 6, dtype=torch.bool)).backward()
    assert score.grad is not None
    assert float(score.grad.abs().max()) > 1e-3
    torch.testing.assert_close((score.grad * score).sum(-1), torch.zeros(6), atol=1e-6, rtol=0)


def golden_model() -> CausalLM:
    """A tiny model whose every weight is a formula of its name's place in the sorted list of published names.

    The numbers below were computed with `transformers` 5.24 and with an independent implementation of the report.
    """
    config = GOLDEN_CONFIG
    model = CausalLM(config)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        stem = name.rpartition(".")[0]
        for expert in range(16):
            if name.endswith("experts.gate_up_proj"):
                tensors[f"{stem}.{expert}.gate_proj.weight"] = tensor.data[expert, :16]
                tensors[f"{stem}.{expert}.up_proj.weight"] = tensor.data[expert, 16:]
            elif name.endswith("experts.down_proj"):
                tensors[f"{stem}.{expert}.down_proj.weight"] = tensor.data[expert]
            else:
                tensors[name] = tensor.data
    assert len(tensors) == 205
    for j, name in enumerate(sorted(tensors)):
        tensor = tensors[name]
        n = torch.arange(tensor.numel(), dtype=torch.int64)
        h = (n * 0x9E3779B1 + (j + 1) * 0x85EBCA77) % 2**32
        h = h ^ (h >> 15)
        # A product of two 32-bit numbers does not fit in int64: multiply the halves.
        h = ((h & 0xFFFF) * 0x2C1B3C6D + (((h >> 16) * 0x2C1B3C6D % 2**16) << 16)) % 2**32
        h = h ^ (h >> 12)
        u = h.double() / 2**32 - 0.5
        if name.endswith("e_score_correction_bias"):
            value = 0.6 * u - 0.5
        elif tensor.dim() == 1:
            value = 1 + 0.5 * u
        else:
            value = (1.5 if name.endswith("mlp.gate.weight") else 1.25) * u * (12 / tensor.shape[-1]) ** 0.5
        tensor.copy_(value.view(tensor.shape).float())
    return model


def test_the_golden_model_has_its_loads_violations_and_sequence_losses() -> None:
    model = golden_model()
    ids = torch.tensor([[(7 * i * i + 3 * i + 1) % 97 for i in range(24)]])
    with torch.no_grad():
        routings = model.states(ids).routings
    assert routings[0].load_E.tolist() == [10, 15, 5, 5, 13, 7, 13, 0, 8, 1, 1, 13, 3, 0, 0, 2]
    assert routings[1].load_E.tolist() == [3, 8, 0, 8, 0, 7, 2, 5, 3, 6, 13, 3, 15, 4, 3, 16]
    assert max_violation(routings[0].load_E) == pytest.approx(1.5)
    assert max_violation(routings[1].load_E) == pytest.approx(1.666667, abs=1e-6)

    bias = torch.zeros(16)
    bias_step(bias, routings[1].load_E, 1.0)
    assert bias.tolist() == [1, -1, 1, -1, 1, -1, 1, 1, 1, 0, -1, 1, -1, 1, 1, -1]

    counted = torch.ones(1, 24, dtype=torch.bool)
    literal = [float(sequence_loss(routing, counted)) for routing in routings[:2]]
    actual = [float(sequence_loss(routing, counted, "actual")) for routing in routings[:2]]
    assert literal == pytest.approx([1.289967, 1.147614], abs=2e-6)
    assert actual == pytest.approx([1.150415, 1.123436], abs=2e-6)


def test_the_golden_model_has_its_main_and_mtp_losses() -> None:
    """The 24 ids as a row: 23 main targets, and 22 of depth 1 over the 23 rows that the main model computes."""
    ids = torch.tensor([[(7 * i * i + 3 * i + 1) % 97 for i in range(24)]])
    model = golden_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    report = training_step(model, optimizer, [Batch(ids, torch.zeros_like(ids))], dials_of())
    assert report.loss == pytest.approx(5.518134, abs=2e-5)
    assert report.mtp_loss == pytest.approx((5.508121,), abs=2e-5)
    assert report.targets == 23


def test_evaluation_moves_and_counts_nothing() -> None:
    model = tiny_model()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        model(random_ids(model.config, 2, 12))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
