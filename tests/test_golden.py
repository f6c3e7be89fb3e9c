"""A whole tiny model whose every weight comes from a formula, and the numbers it must give on any machine.

The numbers were computed with transformers 5.24 and, independently, with a throw-away implementation; the two agreed
within 8e-6. Weights: the names on disk without the MTP copies, sorted, and a hash of (place in that order, place in the
tensor).
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cueva.checkpoint import config_dict, inventory, load_model
from cueva.config import PRESETS
from cueva.model import CausalLM, States, inverse_frequencies, softmax_scale
from cueva.train.balance import apply_balance, max_violation, sequence_loss
from tests.builders import GOLDEN_CONFIG as CONFIG
from tests.checkpoint.folders import no_warnings

IDS = torch.tensor([[(7 * i * i + 3 * i + 1) % 97 for i in range(24)]])


def by_formula(name: str, shape: tuple[int, ...], place: int) -> Tensor:
    """The values of the tensor that is number `place` in the sorted list of names."""
    n = np.arange(math.prod(shape), dtype=np.uint64)
    h = (n * 0x9E3779B1 + (place + 1) * 0x85EBCA77) & 0xFFFFFFFF
    h ^= h >> np.uint64(15)
    h = (h * 0x2C1B3C6D) & 0xFFFFFFFF
    h ^= h >> np.uint64(12)
    u = h.astype(np.float64) / 2**32 - 0.5
    if name.endswith("e_score_correction_bias"):
        values = 0.6 * u - 0.5
    elif len(shape) == 1:
        values = 1 + 0.5 * u
    else:
        values = (1.5 if name.endswith("mlp.gate.weight") else 1.25) * u * math.sqrt(12 / shape[1])
    return torch.from_numpy(values.astype(np.float32)).view(shape)


def write_golden(folder: Path) -> None:
    """As a directory on disk, so that reading is part of the test."""
    entries = {name: e for name, e in inventory(CONFIG).items() if e.copy_of is None}
    assert len(entries) == 205
    weights = {name: by_formula(name, entries[name].shape, j) for j, name in enumerate(sorted(entries))}
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_dict(CONFIG, torch.float32)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    folder = tmp_path_factory.mktemp("golden")
    write_golden(folder)
    with no_warnings():
        return load_model(folder, dtype="float32")


@pytest.fixture(scope="module")
def states(model: CausalLM) -> States:
    with torch.no_grad():
        return model.states(IDS)


@pytest.fixture(scope="module")
def logits_TA(model: CausalLM, states: States) -> Tensor:
    with torch.no_grad():
        return model.logits(states.hidden_BTD)[0]


@pytest.fixture(scope="module")
def mtp_TA(model: CausalLM, states: States) -> Tensor:
    with torch.no_grad():
        return model.logits(states.mtp_hidden[0], 1)[0]


def close(found: Tensor, expected: list[float], atol: float = 2e-4) -> None:
    assert found.tolist() == pytest.approx(expected, abs=atol)


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


# --- the tiny model ---------------------------------------------------------------------------------------------------


def test_the_formula_gives_the_published_first_values(model: CausalLM) -> None:
    close(model.lm_head.weight[0, :3], [0.35351589, 0.24365836, 0.19357145], 1e-7)
    close(model.model.norm.weight[:3], [0.76175839, 0.87318122, 1.06813669], 1e-7)
    assert IDS[0].tolist() == numbers("1 11 35 73 28 94 77 74 85 13 52 8 75 59 57 69 95 38 92 63 48 47 60 87")


def test_scale_and_frequencies() -> None:
    assert softmax_scale(CONFIG) == pytest.approx(0.32411924819517657, rel=1e-12)
    close(inverse_frequencies(CONFIG), [1, 0.025, 0.0025, 0.00025], 1e-9)


def test_logits(logits_TA: Tensor) -> None:
    close(logits_TA[23, :6], [1.00732, 0.03236, 1.98183, 2.21380, 1.52970, -0.20939])
    close(logits_TA[0, :6], [0.18596, 0.63598, 1.12704, -0.18422, 0.92099, -1.70085])
    expected = "36 36 36 8 36 36 36 33 84 15 54 32 84 69 69 73 92 36 17 22 17 9 17 49"
    assert logits_TA.argmax(-1).tolist() == numbers(expected)
    best_T2 = logits_TA.topk(2).values
    assert (best_T2[:, 0] - best_T2[:, 1]).min() > 0.01, "no argmax is near a tie"


def test_mean_loss(logits_TA: Tensor) -> None:
    assert F.cross_entropy(logits_TA[:-1], IDS[0, 1:]).item() == pytest.approx(5.518134, abs=2e-5)


@torch.no_grad()
def test_greedy_continuation(model: CausalLM) -> None:
    ids = IDS[:, :6]
    for _ in range(12):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert ids[0, 6:].tolist() == numbers("36 49 17 83 83 36 83 93 6 53 43 10")


def test_where_the_gates_send_the_tokens(states: States) -> None:
    first, second, _ = states.routings
    assert first.expert_TK[0].tolist() == [11, 12, 15, 8]
    close(first.weight_TK[0], [0.65229, 0.69321, 0.62221, 0.53230], 2e-5)
    assert second.expert_TK[0].tolist() == [10, 15, 9, 13]
    close(second.weight_TK[0], [0.65122, 0.65503, 0.63732, 0.55643], 2e-5)
    assert first.load_E.tolist() == numbers("10 15 5 5 13 7 13 0 8 1 1 13 3 0 0 2")
    assert second.load_E.tolist() == numbers("3 8 0 8 0 7 2 5 3 6 13 3 15 4 3 16")


def test_filling_masked_experts_with_zero_would_choose_others(model: CausalLM, states: States) -> None:
    """A quarter of the tokens in the second expert layer, and none in the first."""
    changed = []
    for routing, (_, gate) in list(zip(states.routings, model.gates(), strict=True))[:2]:
        assert gate.e_score_correction_bias is not None
        choice_TE = routing.score_TE + gate.e_score_correction_bias
        group_TG = choice_TE.unflatten(-1, (4, 4)).topk(2, dim=-1).values.sum(-1)
        kept_TG = torch.zeros_like(group_TG, dtype=torch.bool).scatter_(-1, group_TG.topk(2, dim=-1).indices, True)
        filled = [choice_TE.masked_fill(~kept_TG.repeat_interleave(4, -1), fill) for fill in (-math.inf, 0.0)]
        right_TK, wrong_TK = (choice.topk(4, dim=-1).indices.sort(-1).values for choice in filled)
        assert torch.equal(right_TK, routing.expert_TK.sort(-1).values)
        changed.append(int((right_TK != wrong_TK).any(-1).sum()))
    assert changed == [0, 6]


def test_balance(model: CausalLM, states: States, tmp_path: Path) -> None:
    first, second, _ = states.routings
    assert max_violation(first.load_E) == pytest.approx(1.5)
    assert max_violation(second.load_E) == pytest.approx(1.666667, abs=1e-6)
    write_golden(tmp_path)
    moved = load_model(tmp_path, dtype="float32")
    apply_balance(moved, torch.stack([routing.load_E for routing in states.routings]), 0.001)
    (_, before), (_, after) = model.gates()[1], moved.gates()[1]
    assert before.e_score_correction_bias is not None
    assert after.e_score_correction_bias is not None
    direction_E = (after.e_score_correction_bias - before.e_score_correction_bias).sign()
    signs = {1.0: "+", -1.0: "-", 0.0: "0"}
    assert " ".join(signs[step] for step in direction_E.tolist()) == "+ - + - + - + + + 0 - + - + + -"


def test_sequence_wise_balance_loss(states: States) -> None:
    counted = torch.ones(1, 24, dtype=torch.bool)
    losses = [sequence_loss(routing, counted).item() for routing in states.routings[:2]]
    assert losses == pytest.approx([1.289967, 1.147614], abs=1e-5)
    actual = [sequence_loss(routing, counted, "actual").item() for routing in states.routings[:2]]
    assert actual == pytest.approx([1.150415, 1.123426], abs=1e-5)


def test_mtp_logits(mtp_TA: Tensor) -> None:
    assert mtp_TA.shape == (23, 97)
    close(mtp_TA[22, :6], [0.29198, 0.53436, 2.44652, 0.96680, 0.21584, -0.43676])
    expected = "61 45 13 60 25 61 30 25 61 25 61 17 25 25 72 82 7 78 25 13 78 69 25"
    assert mtp_TA.argmax(-1).tolist() == numbers(expected)
    assert F.cross_entropy(mtp_TA[:-1], IDS[0, 2:]).item() == pytest.approx(5.508121, abs=2e-5)


@torch.no_grad()
def test_mtp_reading_the_state_before_the_norm_would_give_others(model: CausalLM) -> None:
    """The wrong state gives the wrong numbers that were published with the right ones, so the two can be told apart."""
    hook = model.model.norm.register_forward_hook(lambda module, inputs, output: inputs[0])
    wrong = model.logits(model.states(IDS).mtp_hidden[0], 1)[0]
    hook.remove()
    close(wrong[22, :3], [0.20767, 0.49270, 2.26377])


@torch.no_grad()
def test_mtp_with_swapped_halves_would_give_others(model: CausalLM, mtp_TA: Tensor) -> None:
    """Eq. 21 of the report writes the state first; the weights hold the embedding's columns first."""
    weight = model.mtp_modules[0].eh_proj.weight
    right = weight.clone()
    weight.copy_(right.roll(32, dims=1))
    swapped = model.logits(model.states(IDS).mtp_hidden[0], 1)[0]
    weight.copy_(right)
    assert (swapped - mtp_TA).abs().max() > 0.5


# --- rotary frequencies and scales of published models ----------------------------------------------------------------

INV_FREQ = """
1            0.749894202  0.562341332  0.421696514  0.316227764  0.237137362  0.177827939  0.133352146
0.100000001  0.0749894157 0.0562341288 0.0390069261 0.0268793628 0.0183781441 0.012447956  0.0083345091
0.00550000044 0.00356199732 0.00224936521 0.00137051346 0.000790569407 0.000414990413 0.00017782794 3.33380376e-05
2.50000012e-05 1.87473543e-05 1.40585325e-05 1.05424124e-05 7.90569447e-06 5.9284348e-06 4.44569832e-06 3.33380376e-06
"""


@pytest.mark.parametrize("preset", ["v3-671b", "v2-lite-16b"])
def test_stretched_frequencies_of_published_models(preset: str) -> None:
    found = inverse_frequencies(PRESETS[preset])
    assert found.dtype is torch.float32
    assert found.tolist() == pytest.approx([float(word) for word in INV_FREQ.split()], rel=1e-6)
    free = [10000 ** (-2 * j / 64) for j in range(32)]
    assert found[:11].tolist() == pytest.approx(free[:11], rel=1e-6), "fast pairs keep their frequency"
    assert found[23:].tolist() == pytest.approx([f / 40 for f in free[23:]], rel=1e-6), "slow ones are stretched"


def test_plain_frequencies_of_moonlight() -> None:
    found = inverse_frequencies(PRESETS["moonlight-16b"])
    assert found[:3].tolist() == pytest.approx([1, 0.713111103, 0.508527458], rel=1e-6)
    assert found[31].item() == pytest.approx(2.80461209e-05, rel=1e-6)


@pytest.mark.parametrize(
    ("preset", "scale"),
    [("v3-671b", 0.1352337788608801), ("v2-lite-16b", 0.1147213867929261), ("moonlight-16b", 0.07216878364870322)],
)
def test_softmax_scales_of_published_models(preset: str, scale: float) -> None:
    assert softmax_scale(PRESETS[preset]) == pytest.approx(scale, rel=1e-12)
