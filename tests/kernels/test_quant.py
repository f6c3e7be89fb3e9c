"""Block formats: the bytes of GGUF, a search that is worth its time, and the same bytes from C++."""

import ctypes
import itertools
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

import cueva.kernels.quant as quant
from cueva.errors import CuevaError, ShapeError
from cueva.kernels.quant import BLOCK_FORMATS, dequantise, quantise

Rows = NDArray[np.float32]
NAMES = tuple(BLOCK_FORMATS)
SEARCHED = ("q4_k", "q6_k")
# Weights as large as a model's, as small as float32 goes, and both in one block. The largest stays in every format.
value = st.one_of(
    st.floats(-1, 1, width=32),
    st.floats(-(2.0**18), 2.0**18, width=32),
    st.floats(-(2.0**-20), 2.0**-20, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45]),
)
rows = hnp.arrays(np.float32, (2, 512), elements=value, fill=value)


def normal_rows(*shape: int, std: float = 0.02, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


# What a whole block may look like that no bell curve shows.
ODD_BLOCKS = {
    "zeros": torch.zeros(256),
    "negative zeros": torch.full((256,), -0.0),
    "a minimum of zero": normal_rows(256).abs() * torch.arange(256).clamp(max=1),
    "a minimum of negative zero": torch.cat([torch.tensor([-0.0, 0.5]), torch.ones(254)]),
    "one outlier": torch.cat([normal_rows(255), torch.tensor([300_000.0])]),
    "one negative outlier": torch.cat([torch.tensor([-300_000.0]), normal_rows(255)]),
    "all equal": torch.full((256,), 0.37),
    "all equal and negative": torch.full((256,), -0.37),
    "all negative": -normal_rows(256).abs() - 1,
    "all positive, far from zero": normal_rows(256).abs() + 10,
    "subnormal": torch.arange(256) * 1e-45,
    "scales among the subnormal float16": normal_rows(256, std=1e-6),
    "below the smallest float16 scale": normal_rows(256, std=1e-9),
    "one sub-block among zeros": torch.cat([torch.zeros(96), normal_rows(32), torch.zeros(128)]),
    "two magnitudes": torch.cat([normal_rows(128), normal_rows(128, std=1e-30)]),
}


# --- against the gguf package ----------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
@given(x_OK=rows)
def test_q8_0_and_q4_0_give_the_bytes_of_the_gguf_package(name: str, x_OK: Rows) -> None:
    """Where the inverse of a scale overflows, the package casts infinities to integers, which C leaves open."""
    gguf = pytest.importorskip("gguf")
    scale_OZ = np.abs(x_OK).reshape(2, -1, 32).max(-1) / (127 if name == "q8_0" else 8)
    blocks_OZK = x_OK.reshape(2, -1, 32)
    blocks_OZK[(scale_OZ > 0) & (scale_OZ < 2.0**-120)] = 0
    expected = gguf.quants.quantize(x_OK, gguf.GGMLQuantizationType(BLOCK_FORMATS[name].gguf_type))
    np.testing.assert_array_equal(quantise(torch.from_numpy(x_OK), name).numpy(), expected)


@pytest.mark.oracle
@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**31), blocks=st.integers(1, 5))
def test_any_bytes_expand_to_the_floats_of_the_gguf_package(name: str, seed: int, blocks: int) -> None:
    gguf = pytest.importorskip("gguf")
    block = BLOCK_FORMATS[name]
    raw_OY = np.random.default_rng(seed).integers(0, 256, (3, blocks * block.bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw_OY, gguf.GGMLQuantizationType(block.gguf_type))
    ours = dequantise(torch.from_numpy(raw_OY), name).numpy()
    # Random scales may be NaN (any NaN will do) and infinite; the rest agrees to the bit, signs of zeros included.
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(ours), ~number)
    np.testing.assert_array_equal(ours[number].view(np.uint32), expected[number].view(np.uint32))


@pytest.mark.oracle
def test_sizes_and_type_numbers_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    for name, block in BLOCK_FORMATS.items():
        kind = gguf.GGMLQuantizationType[name.upper()]
        assert (kind, gguf.GGML_QUANT_SIZES[kind]) == (block.gguf_type, (block.values, block.bytes))
        assert block.name == name


# --- how close --------------------------------------------------------------------------------------------------------


def plain_error(x_ZK: Rows, name: str) -> NDArray[np.float64]:
    """Squared error per block of rounding between the extremes, scales stored as the format stores them."""
    if name == "q4_k":
        x = x_ZK.reshape(-1, 8, 32)
        low, high = np.minimum(x.min(-1), 0), x.max(-1)
        scale, minimum = stored((high - low) / np.float32(15), 63), stored(-low, 63)
        with np.errstate(all="ignore"):
            q = np.where(scale > 0, (x + minimum) / scale, 0).clip(0, 15).round()
        y = scale * q - minimum
    else:
        x = x_ZK.reshape(-1, 16, 16)
        extreme = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]
        scale = stored(extreme / np.float32(-32), 127)
        with np.errstate(all="ignore"):
            q = np.where(scale != 0, x / scale, 0).clip(-32, 31).round()
        y = scale * q
    return ((x.astype(np.float64) - y) ** 2).reshape(len(x_ZK), -1).sum(-1)


def stored(scale_ZG: Rows, levels: int) -> Rows:
    """Whole multiples of one float16 per block, with a last axis for the values."""
    with np.errstate(all="ignore"):
        d_Z1 = (np.abs(scale_ZG).max(-1, keepdims=True) / levels).astype(np.float16).astype(np.float32)
        whole = np.where(d_Z1 > 0, scale_ZG / d_Z1, 0).clip(-levels, levels).round()
    return (d_Z1 * whole)[..., None].astype(np.float32)


def block_errors(x_ZK: Tensor, name: str) -> NDArray[np.float64]:
    y_ZK = dequantise(quantise(x_ZK, name), name)
    return (x_ZK.double() - y_ZK.double()).square().sum(-1).numpy()


@pytest.mark.parametrize("name", SEARCHED)
@settings(max_examples=40)
@given(x_OK=rows)
@example(x_OK=torch.stack(list(ODD_BLOCKS.values())).numpy())
def test_the_search_is_never_worse_than_rounding_between_the_extremes(name: str, x_OK: Rows) -> None:
    x_ZK = x_OK.reshape(-1, 256)
    ours, plain = block_errors(torch.from_numpy(x_ZK), name), plain_error(x_ZK, name)
    # Both errors are compared inside in float32, where 256 terms may be off by 256 roundings.
    assert (ours <= plain * (1 + 256 * 2.0**-24) + 1e-30).all()


def brute_force_q4(x_W: Tensor) -> float:
    """The least squared error of one sub-block of Q4_K over 6,000 pairs of ends, each refitted twice; exact scales."""
    ends = torch.arange(-0.04, 0.20, 0.003, dtype=torch.float64)
    low, high = x_W.min().clamp(max=0), x_W.max()
    drawn = torch.cartesian_prod(ends, ends)
    scale_N = (1 - drawn.sum(-1)) * (high - low) / 15
    minimum_N = -(low + drawn[:, 0] * (high - low)).clamp(max=0)
    best = float("inf")
    for _ in range(3):
        q_NW = ((x_W + minimum_N[:, None]) / scale_N[:, None]).clamp(0, 15).round()
        best = min(best, float((x_W - scale_N[:, None] * q_NW + minimum_N[:, None]).square().sum(-1).min()))
        mean_N, square_N = q_NW.mean(-1), q_NW.square().mean(-1)
        scale_N = ((q_NW * x_W).mean(-1) - mean_N * x_W.mean()) / (square_N - mean_N.square()).clamp_min(1e-9)
        minimum_N = (scale_N * mean_N - x_W.mean()).clamp_min(0)
    return best


def brute_force_q6(x_W: Tensor) -> float:
    """The least squared error of one sub-block of Q6_K over 1,000 scales of both signs, refitted once; exact scales."""
    scale_N = x_W.abs().max() / torch.cat([torch.arange(25, 38, 0.025), -torch.arange(25, 38, 0.025)]).double()
    best = float("inf")
    for _ in range(2):
        q_NW = (x_W / scale_N[:, None]).clamp(-32, 31).round()
        best = min(best, float((x_W - scale_N[:, None] * q_NW).square().sum(-1).min()))
        scale_N = (q_NW * x_W).sum(-1) / q_NW.square().sum(-1).clamp_min(1)
    return best


@pytest.mark.parametrize(("name", "force"), [("q4_k", brute_force_q4), ("q6_k", brute_force_q6)])
@pytest.mark.parametrize("shape_of_weights", ["normal", "heavy tails", "uniform"])
def test_the_error_is_within_four_percent_of_brute_force(
    name: str, force: Callable[[Tensor], float], shape_of_weights: str
) -> None:
    """Root mean square; brute force stores its scales exactly, so a part of it is what six or eight bits cost."""
    x_ZK = normal_rows(6, 256, std=1.0)
    if shape_of_weights == "heavy tails":
        x_ZK = x_ZK * (1 + x_ZK.abs())
    if shape_of_weights == "uniform":
        x_ZK = torch.rand(6, 256, generator=torch.Generator().manual_seed(1)) - 0.5
    width = 32 if name == "q4_k" else 16
    best = sum(force(x_W) for x_W in x_ZK.double().view(-1, width))
    assert (block_errors(x_ZK, name).sum() / best) ** 0.5 <= 1.04


@pytest.mark.parametrize(("name", "bound"), [("q8_0", 0.0055), ("q4_0", 0.088), ("q4_k", 0.0715), ("q6_k", 0.0170)])
def test_the_error_of_normal_weights_is_known_for_each_format(name: str, bound: float) -> None:
    """Root mean square in parts of the standard deviation."""
    x_OK = normal_rows(64, 1024)
    error = float((dequantise(quantise(x_OK, name), name) - x_OK).square().mean().sqrt() / 0.02)
    assert 0.9 * bound < error < bound


# --- odd blocks and refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("odd", ODD_BLOCKS)
def test_odd_blocks_keep_every_value_within_one_level(name: str, odd: str) -> None:
    x_K = ODD_BLOCKS[odd]
    y_K = dequantise(quantise(x_K, name), name)
    assert torch.isfinite(y_K).all()
    levels = {"q8_0": 127, "q4_0": 8, "q4_k": 15, "q6_k": 31}[name]
    span = float(torch.maximum(x_K.max(), torch.tensor(0.0)) - torch.minimum(x_K.min(), torch.tensor(0.0)))
    # Tiny weights meet the steps of float16 itself, 2**-24: half a step in a scale that is multiplied by all levels, or
    # one in a scale that the search could still multiply by what suits it.
    coarse = 2.0**-24 if name in SEARCHED else levels * 2.0**-25
    assert float((x_K - y_K).abs().max()) <= 1.2 * span / levels + coarse


def test_zeros_stay_zeros_and_their_blocks_are_empty() -> None:
    for name, block in BLOCK_FORMATS.items():
        raw_OY = quantise(torch.zeros(3, 512), name)
        assert not dequantise(raw_OY, name).any()
        if name in ("q8_0", "q4_k"):
            assert not raw_OY.any()
        assert raw_OY.shape == (3, block.row_bytes(512))


def test_equal_values_come_back_almost_exactly_from_the_searched_formats() -> None:
    for name, sign in itertools.product(SEARCHED, (1.0, -1.0)):
        x_K = torch.full((256,), 0.37 * sign)
        torch.testing.assert_close(dequantise(quantise(x_K, name), name), x_K, rtol=2.0**-10, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_block_does_not_depend_on_what_is_beside_it(name: str) -> None:
    """Also over the border of what is taken in one go."""
    x_OK = normal_rows(5, 256 * 500)
    raw_OY = quantise(x_OK, name)
    size = BLOCK_FORMATS[name].row_bytes(256)
    for row, place in ((0, 0), (2, 23), (2, 24), (4, 499)):
        alone = quantise(x_OK[row, 256 * place : 256 * (place + 1)], name)
        assert torch.equal(raw_OY[row, size * place : size * (place + 1)], alone)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_and_strided_rows_are_stored_as_their_values(name: str) -> None:
    x_OK = normal_rows(4, 512).bfloat16()
    expected = quantise(x_OK.float(), name)
    assert torch.equal(quantise(x_OK, name), expected)
    wide = torch.full((4, 1024), torch.nan)
    wide[:, ::2] = x_OK.float()
    assert torch.equal(quantise(wide[:, ::2], name), expected)
    assert torch.equal(quantise(x_OK.view(2, 2, 512), name), expected.view(2, 2, -1))


def test_a_width_that_is_no_whole_block_is_refused_with_the_ways_out() -> None:
    with pytest.raises(
        ShapeError, match=r"rows of 320 values do not fit q4_k, whose blocks hold 256: 256 or 512 would"
    ) as refused:
        quantise(torch.zeros(1, 320), "q4_k")
    assert refused.value.way_out == "try q8_0, whose blocks hold 32"
    with pytest.raises(ShapeError, match="rows of 20 values do not fit q8_0, whose blocks hold 32: 32 would fit"):
        quantise(torch.zeros(1, 20), "q8_0")
    with pytest.raises(ShapeError, match="rows of 33 bytes are not whole blocks of q8_0, which are 34 bytes"):
        dequantise(torch.zeros(1, 33, dtype=torch.uint8), "q8_0")


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_are_refused_with_their_place(name: str, odd: float) -> None:
    x_OK = normal_rows(2, 256)
    x_OK[1, 7] = odd
    with pytest.raises(
        CuevaError, match=rf"1 of 512 weights are NaN or infinite \(the first at \[1, 7\]\); {name} can"
    ):
        quantise(x_OK, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_value_a_format_holds_is_held_and_a_larger_one_is_refused(name: str, sign: float) -> None:
    block = BLOCK_FORMATS[name]
    x_OK = torch.zeros(1, 256)
    x_OK[0, 3] = sign * block.largest
    y_OK = dequantise(quantise(x_OK, name), name)
    assert torch.isfinite(y_OK).all()
    assert float(y_OK[0, 3]) == pytest.approx(sign * block.largest, rel=0.02)
    x_OK[0, 3] *= 1.01
    with pytest.raises(CuevaError, match=f"is too large for {name}, whose float16 scale reaches"):
        quantise(x_OK, name)


def test_unknown_formats_and_dtypes_are_refused_by_name() -> None:
    with pytest.raises(CuevaError, match=r"no block format 'q4_K'; did you mean 'q4_k'\?; the formats are: q8_0, q4_0"):
        quantise(torch.zeros(1, 256), "q4_K")
    with pytest.raises(CuevaError, match=r"must be float32, bfloat16 or float16, not torch\.int64"):
        quantise(torch.zeros(1, 256, dtype=torch.int64), "q4_k")
    with pytest.raises(CuevaError, match=r"stored blocks are uint8 rows, not torch\.float32"):
        dequantise(torch.zeros(1, 34), "q8_0")


def test_bits_per_weight_are_the_known_ones() -> None:
    assert [block.bits_per_weight for block in BLOCK_FORMATS.values()] == [8.5, 4.5, 4.5, 6.5625]


# --- C++ --------------------------------------------------------------------------------------------------------------

SHIM = """
#include "native.hpp"
#define OFFER(name)                                                                                             \\
    extern "C" void quantise_##name(const float* x_OK, int64_t O, int64_t K, uint8_t* raw_OY, int64_t Y) {      \\
        for (int64_t o = 0; o < O; ++o) CUEVA_ISA::quantise_row_##name(x_OK + o * K, K, raw_OY + o * Y);        \\
    }                                                                                                           \\
    extern "C" void dequantise_##name(const uint8_t* raw_OY, int64_t O, int64_t Y, float* y_OK, int64_t K) {    \\
        for (int64_t o = 0; o < O; ++o) CUEVA_ISA::dequantise_row_##name(raw_OY + o * Y, K, y_OK + o * K);      \\
    }
OFFER(q8_0) OFFER(q4_0) OFFER(q4_k) OFFER(q6_k)
extern "C" uint16_t half_of(float x) { return CUEVA_ISA::quant::half_of(x); }
extern "C" float float_of_half(uint16_t half) { return CUEVA_ISA::quant::float_of_half(half); }
extern "C" float largest_magnitude(const float* x_K, int64_t K) { return CUEVA_ISA::quant::largest_magnitude(x_K, K); }
"""
WIDE = ("-mavx2", "-mfma", "-mf16c")
BUILDS = {
    "portable": ("-ffp-contract=off",),
    "avx2": (*WIDE, "-ffp-contract=off"),
    "avx512": (*WIDE, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-ffp-contract=off"),
    "fused": WIDE,
}


class Native:
    """`native.hpp` compiled with the given flags, called through ctypes on whole matrices."""

    def __init__(self, folder: Path, isa: str, flags: tuple[str, ...]):
        source, library = folder / f"{isa}.cpp", folder / f"{isa}.so"
        source.write_text(SHIM, encoding="utf-8")
        here = Path(quant.__file__).parent
        strict = ("-Wall", "-Wextra", "-Werror", "-Wno-psabi")
        command = ["g++", "-std=c++17", "-O3", *strict, "-shared", "-fPIC", f"-DCUEVA_ISA={isa}", *flags, f"-I{here}"]
        subprocess.run([*command, str(source), "-o", str(library)], check=True)
        self.library = ctypes.CDLL(str(library))
        self.library.float_of_half.restype = ctypes.c_float
        self.library.largest_magnitude.restype = ctypes.c_float

    def quantise(self, x_OK: Tensor, name: str) -> Tensor:
        x_OK = x_OK.contiguous()
        raw_OY = torch.full((len(x_OK), BLOCK_FORMATS[name].row_bytes(x_OK.shape[1])), 0xA5, dtype=torch.uint8)
        self._call(f"quantise_{name}", x_OK, raw_OY)
        return raw_OY

    def dequantise(self, raw_OY: Tensor, name: str) -> Tensor:
        y_OK = torch.full((len(raw_OY), BLOCK_FORMATS[name].row_values(raw_OY.shape[1])), torch.nan)
        self._call(f"dequantise_{name}", raw_OY, y_OK)
        return y_OK

    def _call(self, function: str, given: Tensor, made: Tensor) -> None:
        sizes = [ctypes.c_int64(size) for size in given.shape]
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (given, made)]
        getattr(self.library, function)(pointers[0], *sizes, pointers[1], ctypes.c_int64(made.shape[1]))


@pytest.fixture(scope="module")
def natives(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Native]:
    folder, built = tmp_path_factory.mktemp("quant"), {}

    def native(isa: str) -> Native:
        if shutil.which("g++") is None:
            pytest.skip("there is no g++ to compile native.hpp with")
        if isa != "portable":
            present = Path("/proc/cpuinfo").read_text() if platform.machine() == "x86_64" else ""
            needed = [flag.removeprefix("-m") for flag in BUILDS[isa] if flag.startswith("-m")]
            if not set(needed) <= set(present.split()):
                pytest.skip(f"this processor lacks one of {', '.join(needed)}")
        if isa not in built:
            built[isa] = Native(folder, isa, BUILDS[isa])
        return built[isa]

    return native


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("name", NAMES)
def test_native_blocks_are_the_references_byte_for_byte(natives: Callable[[str], Native], isa: str, name: str) -> None:
    native = natives(isa)
    odd_OK = torch.stack(list(ODD_BLOCKS.values()))
    heavy_OK = normal_rows(8, 1024, std=1.0) ** 3
    for x_OK in (normal_rows(16, 1024), normal_rows(8, 512, std=1e-6), heavy_OK, odd_OK):
        raw_OY = quantise(x_OK, name)
        assert torch.equal(native.quantise(x_OK, name), raw_OY)
        assert torch.equal(
            native.dequantise(raw_OY, name).view(torch.int32), dequantise(raw_OY, name).view(torch.int32)
        )


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(x_OK=rows)
def test_native_blocks_of_any_values_are_the_references(
    natives: Callable[[str], Native], name: str, x_OK: Rows
) -> None:
    x = torch.from_numpy(x_OK)
    assert torch.equal(natives("portable").quantise(x, name), quantise(x, name))


@pytest.mark.parametrize("name", NAMES)
def test_fused_arithmetic_makes_blocks_that_are_as_good_and_reads_the_same_floats(
    natives: Callable[[str], Native], name: str
) -> None:
    native = natives("fused")
    x_OK = normal_rows(64, 1024)
    fused, exact = native.quantise(x_OK, name), quantise(x_OK, name)
    errors = [float((dequantise(raw_OY, name) - x_OK).square().sum()) for raw_OY in (fused, exact)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)
    assert torch.equal(native.dequantise(exact, name), dequantise(exact, name))


def test_every_float16_is_read_and_every_rounding_to_one_is_to_the_nearest_even(
    natives: Callable[[str], Native],
) -> None:
    library = natives("portable").library
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[~np.isnan(halves)]
    floats = halves.astype(np.float32)
    read = np.array([library.float_of_half(ctypes.c_uint16(int(bits))) for bits in halves.view(np.uint16)], np.float32)
    np.testing.assert_array_equal(read.view(np.uint32), floats.view(np.uint32))
    # Between two neighbours: the middle, and a hair to either side of it.
    ladder = np.sort(floats[np.isfinite(floats) & (floats >= 0)])[::7]
    middle = ((ladder[:-1].astype(np.float64) + ladder[1:]) / 2).astype(np.float32)
    tried = np.concatenate([floats, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9))])
    tried = np.concatenate([tried, -tried, np.float32([65519.9, 65520, 1e30, 1e-8, 2**-25, 3e-8, 1e-45])])
    with np.errstate(over="ignore"):
        expected = tried.astype(np.float16).view(np.uint16)
    written = np.array([library.half_of(ctypes.c_float(float(x))) for x in tried], np.int64) & 0xFFFF
    np.testing.assert_array_equal(written, expected)


def test_the_native_largest_magnitude_sees_nan_and_infinity(natives: Callable[[str], Native]) -> None:
    library = natives("portable").library

    def largest(x_K: Tensor) -> float:
        return library.largest_magnitude(ctypes.c_void_p(x_K.data_ptr()), ctypes.c_int64(len(x_K)))

    x_K = normal_rows(100)
    assert largest(x_K) == float(x_K.abs().max())
    for odd in (torch.inf, -torch.inf):
        x_K[37] = odd
        assert largest(x_K) == float("inf")
    x_K[2] = -torch.nan
    assert np.isnan(largest(x_K))
