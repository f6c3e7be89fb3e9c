"""The gradients of one step against an independent model, equation by equation (`plain_model.py`)."""

import pytest
import torch

from cueva.config import ModelConfig
from cueva.model import CausalLM
from cueva.train import Batch, StepReport, training_step
from tests.builders import tiny_model
from tests.train.harness import dials_of, packed_batch
from tests.train.plain_model import plain_loss

SHAPE = {
    "vocab_size": 19,
    "hidden_size": 12,
    "intermediate_size": 10,
    "moe_intermediate_size": 5,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 2,
    "q_lora_rank": 6,
    "kv_lora_rank": 5,
    "qk_nope_head_dim": 3,
    "qk_rope_head_dim": 4,
    "v_head_dim": 2,
}


def batch_of(config: ModelConfig) -> Batch:
    return packed_batch(rows=2, length=7, vocab=config.vocab_size, seed=4)


def step_gradients(model: CausalLM, batch: Batch, **dials: object) -> tuple[StepReport, dict[str, torch.Tensor]]:
    """One real step that moves nothing, and what it left in `.grad`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    report = training_step(model, optimizer, [batch], dials_of(**dials))
    return report, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("actual", "recompute"), [(False, False), (True, True)], ids=["literal", "actual choice, recomputed"]
)
def test_gradients_of_attention_experts_and_mtp_equal_those_of_a_plain_model(actual: bool, recompute: bool) -> None:
    model = tiny_model(**SHAPE, std=0.4, seed=1)
    batch = batch_of(model.config)
    weights = {
        name: tensor.detach().double().requires_grad_(tensor.is_floating_point() and "bias" not in name)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    expected, means, gates = plain_loss(
        model.config,
        weights,
        batch.ids_BU.tolist(),
        batch.document_BU.tolist(),
        mtp_weight=0.3,
        sequence_weight=0.5,
        actual=actual,
    )
    expected.backward()

    report, gradients = step_gradients(
        model,
        batch,
        sequence_loss=0.5,
        sequence_loss_choice="actual" if actual else "literal",
        recompute=recompute,
    )
    assert report.skipped is None
    assert report.loss == pytest.approx(float(means[0].detach()), rel=1e-5)
    for found, mean in zip(report.mtp_loss, means[1:], strict=True):
        assert found == pytest.approx(float(mean.detach()), rel=1e-5)
    assert report.sequence_loss == pytest.approx(float(gates.detach()), rel=1e-5)

    assert set(gradients) == {name for name, weight in weights.items() if weight.requires_grad}
    for name, gradient in gradients.items():
        exact = weights[name].grad
        assert exact is not None, name
        # Float32 sums of a few hundred terms of order 1: 1e-5 of the largest entry leaves a decade of room.
        largest = float(exact.abs().max())
        assert largest > 1e-6, f"{name} has no gradient worth comparing"
        torch.testing.assert_close(
            gradient.double(), exact, atol=1e-5 * largest + 1e-8, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_plain_model_is_no_copy_a_swapped_half_or_missing_norm_shows() -> None:
    """The comparison can fail: three mistakes each move the plain loss by far more than the tolerance."""
    model = tiny_model(**SHAPE, std=0.4, seed=1)
    batch = batch_of(model.config)
    weights = {n: t.detach().double() for n, t in [*model.named_parameters(), *model.named_buffers()]}

    def loss(**changed: torch.Tensor) -> float:
        w = {**weights, **{name.replace("__", "."): tensor for name, tensor in changed.items()}}
        return float(plain_loss(model.config, w, batch.ids_BU.tolist(), batch.document_BU.tolist(), mtp_weight=0.3)[0])

    right = loss()
    swapped = weights["model.layers.2.eh_proj.weight"].roll(model.config.hidden_size, dims=1)
    assert abs(loss(model__layers__2__eh_proj__weight=swapped) - right) > 1e-3
    flat = torch.ones_like(weights["model.layers.2.shared_head.norm.weight"])
    assert abs(loss(model__layers__2__shared_head__norm__weight=flat) - right) > 1e-3
    bias = torch.zeros_like(weights["model.layers.1.mlp.gate.e_score_correction_bias"])
    assert abs(loss(model__layers__1__mlp__gate__e_score_correction_bias=bias) - right) > 1e-3
