"""The training step: what must not matter (how rows are cut, recomputed, repeated, padded) and what must."""

import copy
import math

import pytest
import torch

from cueva.model import CausalLM
from cueva.train import Batch, StepReport, Totals, build_optimizer, training_step
from cueva.train.settings import OptimizerSettings
from tests.builders import tiny_model
from tests.train.harness import PatternRows, dials_of, packed_batch

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_nextn_predict_layers": 2}
EVERYTHING = {"sequence_loss": 0.1, "bias_speed": 0.01}


def model_of(**changes: object) -> CausalLM:
    return tiny_model(**{**SMALL, **changes}, std=0.2)


def one_step(
    model: CausalLM, batches: list[Batch], **dials: object
) -> tuple[StepReport, dict[str, torch.Tensor], list[torch.Tensor]]:
    """Report, gradients and balance biases after a step with plain gradient descent at rate 0."""
    report = training_step(model, torch.optim.SGD(model.parameters(), lr=0.0), batches, dials_of(**dials))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return report, gradients, [gate.e_score_correction_bias.clone() for _, gate in model.gates()]  # type: ignore[union-attr]


def rows_of(batch: Batch, *rows: int) -> Batch:
    return Batch(batch.ids_BU[list(rows)], batch.document_BU[list(rows)])


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 1e-6) -> None:
    assert set(one) == set(other)
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], atol=atol, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("cut", [[[0], [1], [2], [3]], [[0, 1, 2], [3]]], ids=["four of one", "three and one"])
def test_micro_batches_of_any_size_equal_one_large_batch(cut: list[list[int]]) -> None:
    """The last row is mostly padding, so micro-batches hold unequal numbers of targets: only global counts do this."""
    batch = packed_batch(rows=4, padding=12)
    whole, gradients, biases = one_step(model_of(), [batch], **EVERYTHING)
    pieces, other_gradients, other_biases = one_step(model_of(), [rows_of(batch, *rows) for rows in cut], **EVERYTHING)
    assert_close(gradients, other_gradients)
    for one, other in zip(biases, other_biases, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(whole.load_GE, pieces.load_GE)
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-6)
    assert pieces.mtp_loss == pytest.approx(whole.mtp_loss, rel=1e-6)
    assert pieces.mtp_match == pytest.approx(whole.mtp_match)
    assert pieces.sequence_loss == pytest.approx(whole.sequence_loss, rel=1e-6)
    assert (pieces.targets, pieces.positions) == (whole.targets, whole.positions)


def test_the_routers_gradient_from_the_sequence_loss_is_the_same_in_four_micro_batches() -> None:
    """Alone, without the cross-entropies, so that a factor of four could not hide."""
    batch = packed_batch(rows=4)

    def gate_gradients(batches: list[Batch], weight: float) -> list[torch.Tensor]:
        _, gradients, _ = one_step(model_of(), batches, sequence_loss=weight)
        return [gradient for name, gradient in gradients.items() if name.endswith("gate.weight")]

    pieces = [rows_of(batch, row) for row in range(4)]
    for none, one, four in zip(
        gate_gradients([batch], 0.0), gate_gradients([batch], 50.0), gate_gradients(pieces, 50.0), strict=True
    ):
        assert float((one - none).norm()) > 10 * float(none.norm())
        torch.testing.assert_close(four, one, atol=1e-5, rtol=1e-4)


def test_recomputation_changes_neither_loss_nor_gradients_nor_counts() -> None:
    batch = packed_batch()
    kept, gradients, biases = one_step(model_of(), [batch], **EVERYTHING)
    again, other_gradients, other_biases = one_step(model_of(), [batch], recompute=True, **EVERYTHING)
    assert again.loss == kept.loss
    assert again.mtp_loss == kept.mtp_loss
    assert torch.equal(again.load_GE, kept.load_GE)
    assert_close(gradients, other_gradients)
    for one, other in zip(biases, other_biases, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("document_mask", [True, False])
def test_each_gate_counts_k_pairs_for_every_position_that_is_no_filler(document_mask: bool) -> None:
    batch, model = packed_batch(rows=3, padding=6), model_of()
    report, _, _ = one_step(model, [batch], document_mask=document_mask)
    document = batch.document_BU if document_mask else torch.where(batch.document_BU < 0, -1, 0)
    chosen, inputs = model.config.num_experts_per_tok, document[:, :-1]
    expected = [int((inputs >= 0).sum())]
    for depth in (1, 2):
        here, there = inputs[:, :-depth], inputs[:, depth:]
        expected.append(int(((here == there) & (there >= 0)).sum()))
    # One expert layer, then two depths.
    assert report.load_GE.sum(-1).tolist() == [chosen * count for count in expected]
    assert report.positions == expected[0]
    assert report.load_GE.dtype == torch.int64


def test_padding_and_filler_change_nothing() -> None:
    """Other tokens in padded places, and behind the last target of a depth, leave loss, gradients and loads alone."""
    batch = packed_batch(rows=3, padding=6)
    other_ids = torch.where(batch.document_BU < 0, (batch.ids_BU + 7) % 40, batch.ids_BU)
    one, gradients, _ = one_step(model_of(), [batch], **EVERYTHING)
    other, other_gradients, _ = one_step(model_of(), [Batch(other_ids, batch.document_BU)], **EVERYTHING)
    assert other.loss == one.loss
    assert other.mtp_loss == one.mtp_loss
    assert torch.equal(one.load_GE, other.load_GE)
    assert_close(gradients, other_gradients)


def test_packed_documents_give_the_losses_of_each_document_alone_at_every_depth() -> None:
    ids = torch.randint(0, 40, (1, 17), generator=torch.Generator().manual_seed(5))
    packed = Batch(ids, torch.tensor([[0] * 9 + [1] * 8]))
    first, second = Batch(ids[:, :9], packed.document_BU[:, :9]), Batch(ids[:, 9:], packed.document_BU[:, 9:])
    model = model_of()
    whole, _, _ = one_step(model, [packed])
    alone = [one_step(model, [part])[0] for part in (first, second)]
    counts = [Totals.of([part], 2, document_mask=True).targets for part in (first, second)]
    for depth in range(3):
        losses = [(report.loss, *report.mtp_loss)[depth] for report in alone]
        weighted = sum(loss * count[depth] for loss, count in zip(losses, counts, strict=True))
        mean = weighted / sum(count[depth] for count in counts)
        assert (whole.loss, *whole.mtp_loss)[depth] == pytest.approx(mean, rel=1e-5)


def test_a_batch_repeated_twice_has_the_same_losses_and_gradients() -> None:
    batch = packed_batch(rows=2)
    one, gradients, _ = one_step(model_of(), [batch], **EVERYTHING)
    twice, other_gradients, _ = one_step(model_of(), [rows_of(batch, 0, 1, 0, 1)], **EVERYTHING)
    assert twice.loss == pytest.approx(one.loss, rel=1e-6)
    assert twice.mtp_loss == pytest.approx(one.mtp_loss, rel=1e-6)
    assert twice.sequence_loss == pytest.approx(one.sequence_loss, rel=1e-6)
    assert_close(gradients, other_gradients)
    assert torch.equal(twice.load_GE, 2 * one.load_GE)


def test_the_mtp_weight_is_shared_by_the_depths() -> None:
    """Gradient of the whole = main + lambda / D * each depth: linear in lambda, and the head gets all of it."""
    batch = packed_batch()
    none, half, full = (one_step(model_of(), [batch], mtp_weight=weight)[1] for weight in (0.0, 0.5, 1.0))
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.o_proj.weight"):
        torch.testing.assert_close(half[name] - none[name], (full[name] - none[name]) / 2, atol=1e-6, rtol=1e-3)
        assert float((full[name] - none[name]).norm()) > 1e-4
    assert float(none["model.layers.3.eh_proj.weight"].norm()) == 0.0


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_moves_nothing(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    optimizer = build_optimizer(model, OptimizerSettings(lr=0.1))
    batch, dials = packed_batch(), dials_of(lr=0.1, bias_speed=0.1)
    training_step(model, optimizer, [batch], dials)
    weights, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])

    if broken == "loss":
        with torch.no_grad():
            weights["model.norm.weight"][0] = model.model.norm.weight[0] = float("nan")
    else:
        monkeypatch.setattr("cueva.train.step.gradient_norm", lambda parameters: torch.tensor(float("inf")))
    report = training_step(model, optimizer, [batch], dials)
    assert report.skipped == ("the loss is nan" if broken == "loss" else "the gradient norm is inf")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], atol=0, rtol=0, equal_nan=True)
    for key, state in optimizer.state_dict()["state"].items():
        for moment, tensor in state.items():
            assert torch.equal(tensor, moments[key][moment])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rows_without_any_target_are_skipped_rather_than_divided_by_nothing() -> None:
    batch = packed_batch(rows=1)
    report, _, _ = one_step(model_of(), [Batch(batch.ids_BU, torch.full_like(batch.document_BU, -1))], **EVERYTHING)
    assert report.skipped == "there is nothing to predict in these rows"
    assert report.loss == 0.0


def test_gradients_longer_than_the_clip_are_shortened_to_it() -> None:
    batch = packed_batch()
    free, gradients, _ = one_step(model_of(), [batch])
    clipped, other, _ = one_step(model_of(), [batch], clip=free.grad_norm / 4)
    assert clipped.grad_norm == free.grad_norm
    for name, gradient in gradients.items():
        torch.testing.assert_close(other[name], gradient / 4)


def test_bfloat16_arithmetic_gives_nearly_the_same_step_with_float32_weights() -> None:
    """bfloat16 rounds to 2^-8; a mean over many tokens and terms should agree to a few of those."""
    batch = packed_batch()
    exact, gradients, _ = one_step(model_of(), [batch], **EVERYTHING)
    model = model_of()
    rough, other, _ = one_step(model, [batch], precision="bfloat16", **EVERYTHING)
    assert rough.loss != exact.loss
    assert rough.loss == pytest.approx(exact.loss, rel=2e-2)
    for name, gradient in gradients.items():
        assert other[name].dtype == torch.float32
        if gradient.dim() >= 2:
            cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), other[name].flatten(), dim=0)
            assert float(cosine) > 0.9, name


@pytest.mark.parametrize(
    "changes",
    [
        {"num_nextn_predict_layers": 0},
        {"n_routed_experts": None},
        {"tie_word_embeddings": True},
        {"q_lora_rank": None, "attention_bias": True},
        {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False, "n_group": 1, "topk_group": 1},
        {},
    ],
    ids=["no MTP", "dense", "tied", "no query latent", "V2 gates", "everything"],
)
def test_a_model_learns_what_can_be_learned(changes: dict[str, object]) -> None:
    """Every token has three equally likely successors: ln 3 = 1.10 nats is the floor, ln 40 = 3.69 the start."""
    model = tiny_model(**{**SMALL, "num_nextn_predict_layers": 1, **changes}, std=0.1)
    optimizer = build_optimizer(model, OptimizerSettings(lr=0.02))
    rows, losses, depth = PatternRows(), [], []
    for step in range(30):
        ids, _ = rows.batch(range(step * 6, step * 6 + 6))
        batch = Batch(torch.from_numpy(ids), torch.zeros_like(torch.from_numpy(ids)))
        report = training_step(
            model, optimizer, [batch], dials_of(lr=0.02, clip=1.0, bias_speed=0.02, sequence_loss=1e-4)
        )
        losses.append(report.loss)
        depth += report.mtp_loss
    assert losses[0] > 3.0
    assert losses[-1] < 2.5
    assert not depth or depth[-1] < depth[0] - 0.5
    assert math.isfinite(report.grad_norm)
