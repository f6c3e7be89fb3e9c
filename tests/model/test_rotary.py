"""Rotary positions: known vectors of the published models."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cueva.config import PRESETS, RopeScaling, model_config
from cueva.model.rotary import Rotary, attention_factor, inverse_frequencies, rotate, softmax_scale

# Values of DeepSeek-V3 and V2-Lite as transformers computes them, float32.
V3_FREQUENCIES = [
    1, 0.749894202, 0.562341332, 0.421696514, 0.316227764, 0.237137362,
    0.177827939, 0.133352146, 0.100000001, 0.0749894157, 0.0562341288, 0.0390069261,
    0.0268793628, 0.0183781441, 0.012447956, 0.0083345091, 0.00550000044, 0.00356199732,
    0.00224936521, 0.00137051346, 0.000790569407, 0.000414990413, 0.00017782794, 3.33380376e-05,
    2.50000012e-05, 1.87473543e-05, 1.40585325e-05, 1.05424124e-05, 7.90569447e-06, 5.9284348e-06,
    4.44569832e-06, 3.33380376e-06,
]  # fmt: skip


@pytest.mark.parametrize("name", ["v3-671b", "v2-lite-16b"])
def test_yarn_frequencies_of_the_published_models_whatever_the_length(name: str) -> None:
    torch.testing.assert_close(inverse_frequencies(PRESETS[name]), torch.tensor(V3_FREQUENCIES), rtol=1e-6, atol=0.0)


def test_moonlight_has_plain_frequencies() -> None:
    got = inverse_frequencies(PRESETS["moonlight-16b"])
    torch.testing.assert_close(got[[0, 1, 2, -1]], torch.tensor([1, 0.713111103, 0.508527458, 2.80461209e-05]))


@pytest.mark.parametrize(
    ("name", "scale"),
    [("v3-671b", 0.1352337788608801), ("v2-lite-16b", 0.1147213867929261), ("moonlight-16b", 0.07216878364870322)],
)
def test_softmax_scales_of_the_published_models_hold_the_squared_temperature(name: str, scale: float) -> None:
    assert softmax_scale(PRESETS[name]) == pytest.approx(scale, rel=1e-12)
    assert attention_factor(PRESETS[name]) == 1.0


def test_one_of_the_two_mscale_keys_is_read_as_transformers_reads_it() -> None:
    yarn = RopeScaling(factor=4, original_max_position_embeddings=16, mscale=2.0)
    config = model_config("tiny", rope_scaling=yarn)
    assert attention_factor(config) == pytest.approx(1.1386294361119891)
    assert softmax_scale(config) == config.qk_head_dim**-0.5
    explicit = dataclasses.replace(yarn, attention_factor=1.5)
    assert attention_factor(model_config("tiny", rope_scaling=explicit)) == 1.5


@pytest.mark.parametrize(
    ("interleave", "expected"),
    [
        (True, [-1.14263966, 1.92207560, 2.95985067, 4.02979950]),
        (False, [-1.98411065, 1.95990067, 2.46237790, 4.01979967]),
    ],
)
def test_the_known_vector_turns_as_pairs_and_as_halves(interleave: bool, expected: list[float]) -> None:
    config = model_config("tiny", qk_rope_head_dim=4)
    turn = Rotary(config).at(torch.tensor([1]))
    got = rotate(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), turn, interleave=interleave)
    torch.testing.assert_close(got.flatten(), torch.tensor(expected))


@given(shift=st.integers(0, 150_000), seed=st.integers(0, 99), interleave=st.booleans())
def test_only_differences_of_positions_matter_even_far_out(shift: int, seed: int, interleave: bool) -> None:
    config = PRESETS["v3-671b"]
    rotary, generator = Rotary(config), torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 64, generator=generator)

    def score(first: int, second: int) -> torch.Tensor:
        turned_q = rotate(q, rotary.at(torch.tensor([first])), interleave=interleave)
        turned_k = rotate(k, rotary.at(torch.tensor([second])), interleave=interleave)
        return (turned_q * turned_k).sum()

    # Float32 angles of 150,000 radians keep 1/64 of a radian; a bfloat16 position would be off by hundreds.
    torch.testing.assert_close(score(17 + shift, 5 + shift), score(17, 5), atol=0.25, rtol=0.0)


def test_rotation_keeps_the_dtype_and_computes_in_float32() -> None:
    config = model_config("tiny")
    x = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    turn = Rotary(config).at(torch.tensor([5, 100, 250]))
    half = rotate(x.bfloat16(), turn, interleave=True)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, rotate(x.bfloat16().float(), turn, interleave=True).bfloat16(), rtol=0, atol=0)


def test_frequencies_have_values_when_the_model_is_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        rotary = Rotary(PRESETS["tiny"])
    assert rotary.at(torch.tensor([3])).cos_TJ.device.type == "cpu"
