import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cueva.checkpoint.fp8 import E4M3, E4M3_MAX, dequantise, quantise, read_quantization_config
from cueva.errors import ShapeError


def codes(*numbers: int) -> Tensor:
    return torch.tensor([numbers], dtype=torch.uint8).view(E4M3)


def slow_dequantise(code_OI: Tensor, scale_GJ: Tensor, block: tuple[int, int]) -> Tensor:
    """The definition, one value at a time, decoding E4M3 by hand: sign, 4 exponent bits, 3 mantissa bits."""
    raw = code_OI.contiguous().view(torch.uint8)
    result = torch.empty(code_OI.shape)
    for o in range(raw.shape[0]):
        for i in range(raw.shape[1]):
            byte = int(raw[o, i])
            sign, exponent, mantissa = -1.0 if byte >> 7 else 1.0, byte >> 3 & 15, byte & 7
            value = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
            if byte & 0x7F == 0x7F:
                value = math.nan
            scale = float(scale_GJ[o // block[0], i // block[1]])
            # The product of two floats fits a double; the cast back to float32 is the one rounding.
            result[o, i] = sign * value * scale
    return result


# --- known values -----------------------------------------------------------------------------------------------------


def test_the_scale_multiplies_although_its_name_says_inverse() -> None:
    assert dequantise(codes(0x38), torch.tensor([[2.0]]), block=(128, 128), dtype=torch.float32).item() == 2.0


def test_codes_mean_what_the_format_says() -> None:
    decoded = dequantise(codes(0x7E, 0x08, 0x01, 0x38, 0x3A), torch.ones(1, 1), block=(128, 128), dtype=torch.float32)
    assert decoded.tolist() == [[448.0, 0.015625, 2**-9, 1.0, 1.25]]
    assert dequantise(codes(0x7F), torch.ones(1, 1), block=(1, 1), dtype=torch.float32).isnan().item()
    # 1.0625 lies between two codes and goes to the even one; 1.1875 is nearer to 1.25.
    assert torch.tensor([1.0, 1.0625, 1.1875]).to(E4M3).view(torch.uint8).tolist() == [0x38, 0x38, 0x3A]


def test_a_tile_of_known_values() -> None:
    x = ((torch.arange(128) - 64) / 10)[None]
    code, scale = quantise(x, block=(1, 128))
    assert scale.item() == pytest.approx(0.0142857144, rel=1e-7)
    raw = code.view(torch.uint8)[0]
    assert raw[:4].tolist() == [0xFE, 0xFE, 0xFE, 0xFD]
    assert (raw[64].item(), raw[65].item()) == (0x00, 0x4E)
    code, scale = quantise(x, block=(1, 128), scale_fmt="ue8m0")
    assert scale.item() == 2**-6
    assert code.view(torch.uint8)[0, :4].tolist() == [0xFD, 0xFD, 0xFC, 0xFC]
    assert dequantise(code, scale, block=(1, 128), dtype=torch.float32)[0, 0].item() == -6.5


# --- blocks -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    block=st.sampled_from([(1, 8), (8, 8), (16, 8), (128, 128), (7, 5)]),
    seed=st.integers(0, 1000),
)
def test_dequantising_is_exact(rows: int, columns: int, block: tuple[int, int], seed: int) -> None:
    """Against an implementation that knows neither tensors nor float8; any block, edges ragged or not."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    raw[(raw & 0x7F) == 0x7F] = 0
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    scale = torch.rand(grid, generator=generator) * 0.01 + 1e-6
    exact = dequantise(raw.view(E4M3), scale, block=block, dtype=torch.float32)
    assert torch.equal(exact, slow_dequantise(raw.view(E4M3), scale, block))
    rounded = dequantise(raw.view(E4M3), scale, block=block, dtype=torch.bfloat16)
    assert torch.equal(rounded, exact.to(torch.bfloat16)), "one product in float32, one cast"


@settings(max_examples=30)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    scale_fmt=st.sampled_from([None, "ue8m0"]),
    size=st.sampled_from([1e-6, 1.0, 1e5]),
    seed=st.integers(0, 1000),
)
def test_quantising_and_back_stays_within_half_a_step(
    rows: int, columns: int, scale_fmt: str | None, size: float, seed: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    block = (16, 8)
    code, scale = quantise(weight, block=block, scale_fmt=scale_fmt)
    assert tuple(scale.shape) == (-(-rows // 16), -(-columns // 8))
    back = dequantise(code, scale, block=block, dtype=torch.float32)
    step = scale.repeat_interleave(16, 0)[:rows].repeat_interleave(8, 1)[:, :columns]
    # Three mantissa bits: half a step is 2**-4 of the value, or 2**-10 of the scale among the subnormals.
    assert bool(((back - weight).abs() <= torch.maximum(weight.abs() * 2**-4, step * 2**-10) * (1 + 1e-5)).all())
    for r in range(scale.shape[0]):
        for c in range(scale.shape[1]):
            largest = weight[16 * r : 16 * r + 16, 8 * c : 8 * c + 8].abs().max()
            if scale_fmt is None:
                assert scale[r, c].item() == (largest / E4M3_MAX).item(), "the edge counts only the values it has"
            else:
                exponent = math.log2(scale[r, c].item())
                assert exponent == round(exponent)
                assert (largest / E4M3_MAX).item() <= scale[r, c].item() < 2.0001 * (largest / E4M3_MAX).item()


@pytest.mark.parametrize(("rows", "columns"), [(576, 256), (192, 256)])
def test_a_ragged_edge_keeps_the_block_size_of_the_config(rows: int, columns: int) -> None:
    """The block of a 192-row matrix with two rows of scales has 128 rows, not 96."""
    weight = torch.randn(rows, columns)
    weight[128:] *= 1000
    code, scale = quantise(weight, block=(128, 128))
    assert tuple(scale.shape) == (-(-rows // 128), 2)
    back = dequantise(code, scale, block=(128, 128), dtype=torch.float32)
    step = scale.amax(1).repeat_interleave(128)[:rows, None]
    assert bool(((back - weight).abs() <= weight.abs() * 2**-4 + step * 2**-10).all())


def test_a_zero_block_stays_zero_and_a_subnormal_one_finite() -> None:
    for scale_fmt in (None, "ue8m0"):
        code, scale = quantise(torch.zeros(3, 5), block=(2, 2), scale_fmt=scale_fmt)
        assert bool((scale > 0).all())
        assert bool((code.view(torch.uint8) == 0).all())
        code, scale = quantise(torch.full((2, 2), 1e-45), block=(2, 2), scale_fmt=scale_fmt)
        assert bool(dequantise(code, scale, block=(2, 2), dtype=torch.float32).isfinite().all())


def test_the_largest_value_becomes_448_and_never_nan() -> None:
    """Rounding the scale down must not push the quotient over the largest code."""
    for value in torch.rand(200, generator=torch.Generator().manual_seed(1)) * 1e4:
        code, scale = quantise(value.view(1, 1), block=(1, 1))
        assert code.float().item() == 448.0
        assert scale.item() > 0


def test_scales_may_be_stored_as_powers_of_two() -> None:
    code = codes(0x38, 0x40)
    scale = torch.tensor([[2.0**-7]])
    plain = dequantise(code, scale, block=(128, 128), dtype=torch.float32)
    assert torch.equal(dequantise(code, scale.to(torch.float8_e8m0fnu), block=(128, 128), dtype=torch.float32), plain)
    assert torch.equal(dequantise(code, scale.bfloat16(), block=(128, 128), dtype=torch.float32), plain)


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="needs 2 x 1 scales, but there are 1 x 1"):
        dequantise(torch.zeros(192, 128).to(E4M3), torch.ones(1, 1), block=(128, 128), dtype=torch.float32)


def test_the_block_size_is_read_from_the_config() -> None:
    config = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [64, 32], "scale_fmt": "ue8m0"}
    found = read_quantization_config(config)
    assert found is not None
    assert (found.block, found.scale_fmt) == ((64, 32), "ue8m0")
    assert read_quantization_config(None) is None


@pytest.mark.oracle
@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_dequantising_equals_transformers_on_aligned_shapes(scale_fmt: str | None) -> None:
    finegrained = pytest.importorskip("transformers.integrations.finegrained_fp8")
    weight = torch.randn(256, 384, generator=torch.Generator().manual_seed(5))
    code, scale = quantise(weight, block=(128, 128), scale_fmt=scale_fmt)
    theirs = finegrained.Fp8Dequantize(None).convert({"weight": code, "weight_scale_inv": scale})["weight"]
    assert torch.equal(dequantise(code, scale, block=(128, 128), dtype=theirs.dtype), theirs)
