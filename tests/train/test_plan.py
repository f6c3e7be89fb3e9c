"""What a run will cost, against what it does cost."""

import pytest
import torch

from cueva.config import model_config
from cueva.model import CausalLM
from cueva.train import TrainConfig, forward_flops_per_token, measure_peak, plan_run, training_flops_per_token
from cueva.train.plan import activation_bytes
from tests.builders import random_ids, tiny_model
from tests.train.harness import tiny_config


def counted_flops(model: CausalLM, length: int) -> int:
    """Operations that PyTorch's own counter sees in a forward pass with every expert product done once per pair."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(random_ids(model.config, 1, length))
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "changes", [{}, {"q_lora_rank": None, "num_nextn_predict_layers": 2}, {"n_routed_experts": None}]
)
def test_flops_per_token_equal_what_pytorch_counts(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences known: torch counts all T positions of attention, not those a token sees; depth k has T - k rows."""
    # Grouped products are not in torch's counter; a loop of plain ones does the same work.
    monkeypatch.setattr("cueva.kernels.experts.grouped_fits", lambda *_: False)
    length, model = 64, tiny_model(**changes)
    config = model.config
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    unseen = layers * 2 * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim) * (length - 1) / 2
    expected = (forward_flops_per_token(config, length) + unseen) * length
    assert counted_flops(model, length) == pytest.approx(expected, rel=0.03)
    assert training_flops_per_token(config, length) == 3 * forward_flops_per_token(config, length)


def test_the_published_shape_costs_about_250_gigaflops_a_token_to_train() -> None:
    """Megatron-LM states about 250 GFLOP per token without the MTP module and 260 with it, at 4,096 positions."""
    shape = model_config("v3-671b")
    with_mtp = training_flops_per_token(shape, 4096)
    assert with_mtp == pytest.approx(260e9, rel=0.1)
    without = training_flops_per_token(model_config("v3-671b", num_nextn_predict_layers=0), 4096)
    assert without == pytest.approx(250e9, rel=0.1)


def test_the_measured_peak_is_a_speed_and_takes_little_time() -> None:
    import time

    began = time.perf_counter()
    assert 1e8 < measure_peak("float32", seconds=0.05) < 1e14
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("preset", ["tiny", "pocket"])
def test_the_activation_estimate_is_near_what_autograd_keeps(preset: str, recompute: bool) -> None:
    """Two rows of 64; recomputation keeps one D per layer, and the estimate adds the layer that is being repeated."""
    config = model_config(preset)
    model = tiny_model(config, std=0.02)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    document = (torch.arange(64) // 30)[None].repeat(2, 1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model.states(random_ids(config, 2, 64), document, recompute=recompute)
    assert states.hidden_BTD.requires_grad
    found = sum(size for size, _ in kept.values())
    estimate = activation_bytes(config, 2, 64, recompute=recompute)
    if recompute:
        one_layer = activation_bytes(config, 2, 64, recompute=False) / config.num_hidden_layers
        assert 0.5 * found < estimate < found + 1.5 * one_layer
    else:
        assert estimate == pytest.approx(found, rel=0.25)


def test_a_plan_says_what_a_run_will_be(tmp_path: object) -> None:
    config = TrainConfig(
        model={"preset": "pocket"},
        batch={"rows": 4, "accumulate": 2, "ramp_from": 2, "ramp_share": 0.5},
        run={"steps": 100, "folder": str(tmp_path)},
    )
    shape = config.shape()
    plan = plan_run(config, shape, tokens_per_second=1000.0)
    model = CausalLM(shape)
    assert plan["parameters_trained"] == sum(parameter.numel() for parameter in model.parameters())
    assert plan["parameters"] + plan["parameters_mtp"] == plan["parameters_trained"]
    assert plan["parameters_active"] == shape.parameters(active=True)
    assert plan["memory_bytes"]["weights"] == 4 * (
        plan["parameters_trained"] + shape.gate_count * (shape.n_routed_experts or 0)
    )
    assert plan["memory_bytes"]["moments"] == 8 * plan["parameters_trained"]
    parts = {key: value for key, value in plan["memory_bytes"].items() if key != "total"}
    assert plan["memory_bytes"]["total"] == sum(parts.values())
    assert all(value > 0 for value in parts.values())
    assert plan["tokens_per_step"] == 8 * 256
    assert 70 * 8 * 256 < plan["tokens"] < 100 * 8 * 256
    assert plan["seconds"] == plan["tokens"] / 1000
    assert plan_run(config, shape)["seconds"] is None


def test_the_planned_tokens_and_bytes_are_those_of_the_run(tmp_path: object) -> None:
    from pathlib import Path

    from cueva.train import run_training
    from tests.train.harness import parts

    config = tiny_config(str(tmp_path), batch={"rows": 2, "accumulate": 2, "ramp_from": 1, "ramp_share": 0.7})
    plan = plan_run(config, config.shape())
    assert run_training(config, parts(config)).tokens == plan["tokens"]
    state = Path(str(tmp_path)) / "test" / "state" / "step-8"
    found = sum(path.stat().st_size for path in state.iterdir())
    # Headers, the random state and the two JSON files are small change.
    assert found == pytest.approx(plan["state_bytes"], rel=0.6, abs=40_000)


def test_a_plan_of_a_run_limited_by_time_asks_for_a_speed() -> None:
    config = TrainConfig(model={"preset": "tiny"}, run={"minutes": 2})
    assert plan_run(config, config.shape())["tokens"] is None
    assert plan_run(config, config.shape())["seconds"] == 120
    assert plan_run(config, config.shape(), tokens_per_second=10.0)["tokens"] == 1200
    flops = training_flops_per_token(config.shape(), 256)
    assert plan_run(config, config.shape(), peak_flops=10 * flops, share_of_peak=0.5)["tokens"] == 600
    both = TrainConfig(model={"preset": "tiny"}, run={"minutes": 2, "steps": 1})
    assert plan_run(both, both.shape(), tokens_per_second=1e6)["seconds"] < 1
