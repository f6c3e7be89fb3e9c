"""Products with packed weights against their reference: every format and every instruction set of this machine.

Sources and activations lie among NaN, so that a kernel which reads a neighbour's memory says so in its results.
"""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cueva.checkpoint import fp8
from cueva.errors import CuevaError, RequestError, ShapeError
from cueva.kernels import native, quant
from cueva.kernels.linear import FORMATS, PackedMatrix, stored, with_byte_activations

ISAS = native.runnable() or ["none"]
DENSE = ("f32", "bf16")
BLOCKS = ("q8_0", "q4_0", "q4_k", "q6_k")
TILED = (*DENSE, "fp8", *BLOCKS)
MAPPED = ("rows_f32", "rows_bf16")
EVERY = (*TILED, *MAPPED)
COLUMNS = {"q8_0": (32, 96, 1056), "q4_0": (32, 96, 1056), "q4_k": (256, 512, 1280), "q6_k": (256, 512, 1280)}
"""Whole blocks; the last is more than a product of prompt rows widens at once (1,024 columns)."""
ANY_COLUMNS = (1, 2, 7, 31, 32, 33, 97, 128, 129, 300, 1025)
LAYOUTS = ("plain", "sliced", "transposed", "every other column")
E4M3 = torch.float8_e4m3fn

pytestmark = pytest.mark.skipif(native.extension() is None, reason="the native kernels were not built")
every_isa = pytest.mark.parametrize("isa", ISAS)


# --- made-up matrices -------------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def among_nan(values_OI: Tensor, layout: str) -> Tensor:
    """The same values as a view of memory that holds NaN everywhere else; a sliced one begins at an odd element."""
    rows, columns = values_OI.shape
    if layout == "plain":
        return values_OI.clone()
    if layout == "transposed":
        frame = torch.full((columns + 2, rows + 3), torch.nan, dtype=values_OI.dtype)
        view = frame[1 : 1 + columns, 1 : 1 + rows].T
    elif layout == "every other column":
        frame = torch.full((rows + 2, 2 * columns + 3), torch.nan, dtype=values_OI.dtype)
        view = frame[1 : 1 + rows, 1 : 1 + 2 * columns : 2]
    else:
        frame = torch.full((rows + 2, columns + 3), torch.nan, dtype=values_OI.dtype)
        view = frame[1 : 1 + rows, 1 : 1 + columns]
    view.copy_(values_OI)
    return view


def packed_fp8(weight_OI: Tensor, isa: str, layout: str = "plain") -> tuple[PackedMatrix, Tensor]:
    """The matrix rounded to E4M3 codes, packed; and the numbers that the codes and scales stand for."""
    code_OI, scale_GJ = fp8.quantise(weight_OI, block=(128, 128))
    packed = PackedMatrix("fp8", *weight_OI.shape, isa=isa, threads=1)
    source = among_nan(code_OI.float(), "plain").to(E4M3) if layout == "plain" else among_codes(code_OI, layout)
    packed.fill_fp8(source, scale_GJ)
    return packed, fp8.dequantise(code_OI, scale_GJ, block=(128, 128), dtype=torch.float32)


def among_codes(code_OI: Tensor, layout: str) -> Tensor:
    """FP8 codes as a view whose surroundings are the code of NaN."""
    wide = among_nan(torch.zeros(code_OI.shape), layout)
    base = torch.full((wide.untyped_storage().nbytes() // 4,), 0x7F, dtype=torch.uint8)
    view = torch.as_strided(base, wide.shape, wide.stride(), wide.storage_offset())
    view.copy_(code_OI.contiguous().view(torch.uint8))
    return view.view(E4M3) if view.stride(1) == 1 else torch.as_strided(
        base.view(E4M3), wide.shape, wide.stride(), wide.storage_offset()
    )  # fmt: skip


def packed(weight_OI: Tensor, format: str, isa: str, layout: str = "plain") -> tuple[PackedMatrix, Tensor]:
    """A packed matrix, and the float32 numbers that it must hold."""
    if format == "fp8":
        return packed_fp8(weight_OI, isa, layout)
    if format in MAPPED:
        dtype = torch.float32 if format == "rows_f32" else torch.bfloat16
        source = among_nan(weight_OI.to(dtype), "sliced" if layout != "plain" else "plain")
        return PackedMatrix.mapped(source, isa=isa), source.float()
    made = PackedMatrix(format, *weight_OI.shape, isa=isa, threads=1)
    made.fill(among_nan(weight_OI, layout))
    return made, stored(weight_OI, format)


def multiply(matrix: PackedMatrix, x_TI: Tensor, *, prefill: bool, threads: int = 1, index: int = 0) -> Tensor:
    """The product of activations that lie among NaN, into memory whose surroundings must stay as they are."""
    tokens, columns = x_TI.shape
    frame = torch.full((tokens * columns + 50,), torch.nan)
    from_TI = frame[17 : 17 + tokens * columns].view(tokens, columns)
    from_TI.copy_(x_TI)
    rows = matrix.rows if matrix.turns == 1 else -(-matrix.rows // 16) * 16 * matrix.turns
    out = torch.full((tokens * rows + 40,), 12345.0)
    to_TO = out[20 : 20 + tokens * rows].view(tokens, rows)
    to_TO.fill_(torch.nan)
    matrix.native.linear(index, from_TI.data_ptr(), tokens, prefill, to_TO.data_ptr(), threads)
    assert (out[:20] == 12345.0).all(), "wrote before the result"
    assert (out[-20:] == 12345.0).all(), "wrote behind the result"
    return to_TO.clone()


def check(x_TI: Tensor, y_TO: Tensor, numbers_OI: Tensor, format: str, isa: str, *, prefill: bool) -> None:
    """Hold a product against float64 sums of the very numbers that it is made of.

    A sum of I products in float32, whatever its order, is off by at most I / 2**24 of the sum of their sizes. Where a
    processor multiplies bf16 pairs, activations are rounded to bf16 first (and widened block weights of prompts too):
    2**-9 of each product, and 2**-9 once more.
    """
    x_TI = with_byte_activations(x_TI) if format in BLOCKS and not prefill else x_TI
    if isa == "avx512bf16" and format in ("bf16", "fp8"):
        x_TI = x_TI.bfloat16().float()
    wanted_TO = x_TI.double() @ numbers_OI.double().T
    size_TO = x_TI.double().abs() @ numbers_OI.double().abs().T
    share = (x_TI.shape[1] + 8) * 2.0**-24
    if isa == "avx512bf16" and prefill and format in (*BLOCKS, "fp8"):
        share += 2 * 2.0**-9
    error_TO = (y_TO.double() - wanted_TO).abs()
    assert (error_TO <= share * size_TO + 1e-37).all(), (error_TO / size_TO.clamp_min(1e-37)).max()


CASE: dict[str, Any] = {"rows": 1, "columns": 1, "tokens": 1, "seed": 0, "layout": "plain", "power": 0}


@st.composite
def products(draw: st.DrawFn, format: str) -> dict[str, Any]:
    """A product's shape, layout and sizes of numbers."""
    return {
        "rows": draw(st.integers(1, 40)),
        "columns": draw(st.sampled_from(COLUMNS.get(format, ANY_COLUMNS))),
        "tokens": draw(st.integers(1, 20)),
        "seed": draw(st.integers(0, 2**31)),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "power": draw(st.integers(-6, 4)),
    }


# --- products ---------------------------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("format", EVERY)
def test_a_product_is_the_references(isa: str, format: str) -> None:
    @settings(max_examples=12)
    @given(case=products(format))
    @example(case=CASE | {"columns": COLUMNS.get(format, ANY_COLUMNS)[0]})
    @example(case=CASE | {"rows": 17, "columns": COLUMNS.get(format, ANY_COLUMNS)[-1], "tokens": 20})
    def run(case: dict[str, Any]) -> None:
        weight_OI = normal(case["rows"], case["columns"], seed=case["seed"]) * 10.0 ** case["power"]
        x_TI = normal(case["tokens"], case["columns"], seed=case["seed"] + 1)
        matrix, numbers_OI = packed(weight_OI, format, isa, case["layout"])
        for prefill in (False, True):
            y_TO = multiply(matrix, x_TI, prefill=prefill)
            check(x_TI, y_TO, numbers_OI, format, isa, prefill=prefill)
            assert torch.equal(matrix.linear(x_TI, prefill=prefill), y_TO)

    run()


@every_isa
@pytest.mark.parametrize("format", EVERY)
def test_a_row_has_the_same_bits_alone_and_among_others(isa: str, format: str) -> None:
    """Whatever the number of rows and of threads, and whatever the other rows hold: NaN, say."""
    columns = COLUMNS.get(format, ANY_COLUMNS)[-1]
    matrix, _ = packed(normal(70, columns, seed=0), format, isa)
    x_TI = normal(20, columns, seed=1)
    for prefill in (False, True):
        alone_TO = torch.cat([multiply(matrix, x_TI[t : t + 1], prefill=prefill) for t in range(20)])
        for threads in (1, 2, 3, 4):
            assert torch.equal(multiply(matrix, x_TI, prefill=prefill, threads=threads), alone_TO), threads
        for tokens in range(1, 20):
            assert torch.equal(multiply(matrix, x_TI[:tokens], prefill=prefill), alone_TO[:tokens]), tokens
            assert torch.equal(multiply(matrix, x_TI[-tokens:], prefill=prefill), alone_TO[-tokens:]), tokens
        strange_TI = x_TI.clone()
        strange_TI[torch.arange(20) != 7] = torch.nan
        assert torch.equal(multiply(matrix, strange_TI, prefill=prefill)[7], alone_TO[7])


@every_isa
@pytest.mark.parametrize("format", EVERY)
def test_a_bias_is_added_to_every_row(isa: str, format: str) -> None:
    columns = COLUMNS.get(format, ANY_COLUMNS)[1]
    matrix, _ = packed(normal(21, columns, seed=0), format, isa)
    x_TI, bias_O = normal(9, columns, seed=1), normal(21, seed=2)
    before = [multiply(matrix, x_TI, prefill=prefill) for prefill in (False, True)]
    matrix.set_bias(bias_O)
    for prefill, plain_TO in zip((False, True), before, strict=True):
        assert torch.equal(multiply(matrix, x_TI, prefill=prefill), plain_TO + bias_O)
    with pytest.raises(ShapeError, match="20 values does not fit 21 outputs"):
        matrix.set_bias(bias_O[:20])


@every_isa
@pytest.mark.parametrize("format", BLOCKS)
def test_activations_of_no_size_or_of_hardly_any_add_nothing(isa: str, format: str) -> None:
    """A block of zeros has no scale, and one of numbers near the smallest has none whose inverse is finite."""
    matrix, _ = packed(normal(16, 256, seed=0), format, isa)
    for size in (0.0, 1e-45, 1e-40, 1e-38):
        x_TI = normal(3, 256, seed=1)
        x_TI[:, :32] = 0.0
        without_TO = multiply(matrix, x_TI, prefill=False)
        x_TI[:, :32:2] = size
        assert torch.equal(multiply(matrix, x_TI, prefill=False), without_TO), size
        assert with_byte_activations(x_TI).isfinite().all(), size


# --- what is stored ---------------------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("format", EVERY)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_numbers_stored_are_exactly_those_of_the_format(isa: str, format: str, layout: str) -> None:
    for rows, columns in [(1, COLUMNS.get(format, (1,))[0]), (33, COLUMNS.get(format, ANY_COLUMNS)[-1])]:
        matrix, numbers_OI = packed(normal(rows, columns, seed=rows), format, isa, layout)
        assert torch.equal(matrix.unpack(), numbers_OI)
        ids = torch.tensor([0, rows // 2, rows - 1])
        assert torch.equal(matrix.unpack_rows(ids), numbers_OI[ids])


@every_isa
@pytest.mark.parametrize("format", [*DENSE, *BLOCKS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_may_come_in_half_precision(isa: str, format: str, dtype: torch.dtype) -> None:
    weight_OI = among_nan(normal(19, 256, seed=0).to(dtype), "transposed")
    weight_OI[0, :4] = torch.tensor([0.0, -0.0, 6e-8, -3e-5]).to(dtype)  # subnormal as float16
    matrix = PackedMatrix(format, 19, 256, isa=isa, threads=2)
    matrix.fill(weight_OI)
    assert torch.equal(matrix.unpack(), stored(weight_OI, format))


@every_isa
@pytest.mark.parametrize("format", DENSE)
def test_infinities_and_the_smallest_numbers_are_stored_as_they_are(isa: str, format: str) -> None:
    odd = torch.tensor([[torch.inf, -torch.inf, 1e-45, -1e-40, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8, torch.nan, 0.0]])
    matrix = PackedMatrix(format, 1, 9, isa=isa, threads=1)
    matrix.fill(odd)
    assert torch.equal(matrix.unpack().nan_to_num(7, 8, 9), stored(odd, format).nan_to_num(7, 8, 9))
    assert matrix.unpack()[0, 7].isnan()


@every_isa
@pytest.mark.parametrize("format", [*DENSE, *BLOCKS])
def test_matrices_of_one_block_do_not_touch_each_other(isa: str, format: str) -> None:
    """Several matrices, each of two parts whose tiles of sixteen rows take turns, filled in any order."""
    weights = {(e, part): normal(37, 256, seed=10 * e + part) for e in range(3) for part in range(2)}
    matrix = PackedMatrix(format, 37, 256, count=3, turns=2, isa=isa, threads=2)
    for e, part in [(2, 1), (0, 0), (1, 1), (2, 0), (0, 1), (1, 0)]:
        matrix.fill(weights[e, part], e, part)
    x_TI = normal(5, 256, seed=99)
    for e in range(3):
        tiles_GOI = matrix.unpack(e).unflatten(0, (-1, 16))
        out_TGO = matrix.linear(x_TI, e).unflatten(-1, (-1, 16))
        for part in range(2):
            assert torch.equal(tiles_GOI[part::2].flatten(0, 1)[:37], stored(weights[e, part], format))
            assert (tiles_GOI[part::2].flatten(0, 1)[37:] == 0).all()
            alone, _ = packed(weights[e, part], format, isa)
            assert torch.equal(out_TGO[:, part::2].flatten(1)[:, :37], alone.linear(x_TI))


@every_isa
@pytest.mark.parametrize("format", BLOCKS)
def test_blocks_of_a_file_are_taken_as_they_are(isa: str, format: str) -> None:
    """Any bytes but for the scales, which are infinite, zero or NaN in some rows: the other rows do not notice."""
    generator = torch.Generator().manual_seed(3)
    block = quant.block_format(format)
    raw_OY = torch.randint(0, 256, (40, block.row_bytes(512)), generator=generator, dtype=torch.uint8)
    halves = {"q8_0": [0], "q4_0": [0], "q4_k": [0, 2], "q6_k": [208]}[format]
    scales = {3: torch.inf, 5: -torch.inf, 20: 0.0, 39: torch.nan}
    raw_OZY = raw_OY.unflatten(-1, (-1, block.bytes))
    for at in halves:
        for row in range(40):
            some_Z = torch.rand(raw_OZY.shape[1], generator=generator) if row not in scales else torch.zeros(1)
            half_Z2 = (some_Z + scales.get(row, 0.0)).to(torch.float16)[:, None].view(torch.uint8)
            raw_OZY[row, :, at : at + 2] = half_Z2
    matrix = PackedMatrix(format, 40, 512, isa=isa, threads=1)
    matrix.fill_blocks(raw_OY)
    numbers_OI = quant.dequantise(raw_OY, format)
    assert torch.equal(matrix.unpack().nan_to_num(1e9, 2e9, 3e9), numbers_OI.nan_to_num(1e9, 2e9, 3e9))

    x_TI = normal(4, 512, seed=1)
    usual = torch.tensor([row for row in range(40) if row not in (3, 5, 39)])
    for prefill in (False, True):
        y_TO = multiply(matrix, x_TI, prefill=prefill)
        check(x_TI, y_TO[:, usual], numbers_OI[usual], format, isa, prefill=prefill)
        assert (y_TO[:, 20] == 0).all()
        assert not y_TO[:, [3, 5, 39]].isfinite().any()


# --- FP8 --------------------------------------------------------------------------------------------------------------


@every_isa
def test_all_finite_fp8_codes_are_exact(isa: str) -> None:
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)
    assert len(codes) == 254
    for scale in (1.0, 0.37, 2.0**-140, 2.0**100):
        matrix = PackedMatrix("fp8", 254, 1, isa=isa, threads=1)
        matrix.fill_fp8(codes[:, None].view(E4M3), torch.full((2, 1), scale))
        assert torch.equal(matrix.unpack()[:, 0], codes.view(E4M3).float() * scale), scale
        across = PackedMatrix("fp8", 1, 254, isa=isa, threads=1)
        across.fill_fp8(codes[None].view(E4M3), torch.full((1, 2), scale))
        assert torch.equal(across.unpack()[0], codes.view(E4M3).float() * scale), scale
        # A product with 1 in one place is the number itself, in both kinds of product.
        if scale == 1.0:
            for prefill in (False, True):
                assert torch.equal(multiply(across, torch.eye(254), prefill=prefill)[:, 0], codes.view(E4M3).float())


@every_isa
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ragged_fp8_blocks_keep_their_own_scales(isa: str, layout: str) -> None:
    """300 x 270: three rows and three columns of scales, the last of each for a part; any finite codes."""
    generator = torch.Generator().manual_seed(5)
    code_OI = torch.randint(0, 127, (300, 270), generator=generator, dtype=torch.uint8)
    code_OI = (code_OI | torch.randint(0, 2, code_OI.shape, generator=generator, dtype=torch.uint8) << 7).view(E4M3)
    scale_GJ = torch.tensor([[1e-3, 0.0, 7.5], [2.0**-126, 1e-44, 2.0**100], [0.5, 3e38 / 448 / 256, 1e-20]])
    numbers_OI = fp8.dequantise(code_OI, scale_GJ, block=(128, 128), dtype=torch.float32)
    matrix = PackedMatrix("fp8", 300, 270, isa=isa, threads=3)
    matrix.fill_fp8(among_codes(code_OI, layout), scale_GJ)
    assert torch.equal(matrix.unpack(), numbers_OI)
    x_TI = normal(5, 270, seed=2) * 1e-10
    for prefill in (False, True):
        if isa != "avx512bf16":  # whose products flush subnormal weights
            check(x_TI, multiply(matrix, x_TI, prefill=prefill), numbers_OI, "fp8", isa, prefill=prefill)


@every_isa
@pytest.mark.parametrize("scale", [2.0**119, 2.0**120, 2.0**127])
def test_the_largest_fp8_scales_are_exact_or_refused(isa: str, scale: float) -> None:
    """Scales near the largest float32 with small codes stand for finite numbers, which must not become infinite."""
    code_OI = torch.full((16, 32), 2.0**-6).to(E4M3)
    matrix = PackedMatrix("fp8", 16, 32, isa=isa, threads=1)
    try:
        matrix.fill_fp8(code_OI, torch.tensor([[scale]]))
    except CuevaError as error:
        assert "scale" in str(error), error  # noqa: PT017
    else:
        assert torch.equal(matrix.unpack(), code_OI.float() * scale)


@every_isa
def test_an_infinite_fp8_scale_spoils_its_own_rows_alone(isa: str) -> None:
    code_OI = normal(300, 33, seed=0).to(E4M3)
    scale_GJ = torch.tensor([[1.0], [torch.inf], [0.25]])
    matrix = PackedMatrix("fp8", 300, 33, isa=isa, threads=1)
    matrix.fill_fp8(code_OI, scale_GJ)
    numbers_OI = fp8.dequantise(code_OI, scale_GJ, block=(128, 128), dtype=torch.float32)
    assert torch.equal(matrix.unpack().nan_to_num(1e9, 2e9, 3e9), numbers_OI.nan_to_num(1e9, 2e9, 3e9))
    x_TI = normal(7, 33, seed=1)
    usual = torch.cat([torch.arange(128), torch.arange(256, 300)])
    for prefill in (False, True):
        y_TO = multiply(matrix, x_TI, prefill=prefill)
        check(x_TI, y_TO[:, usual], numbers_OI[usual], "fp8", isa, prefill=prefill)
        assert not y_TO[:, 128:256].isfinite().any()


@every_isa
def test_a_part_of_an_fp8_tensor_takes_the_scales_of_its_place(isa: str) -> None:
    """Rows from 70 on, and the transposed columns from 128 on: what attention's up-projections are cut into."""
    code_OI = normal(400, 200, seed=0).to(E4M3)
    scale_GJ = 1 + torch.rand(4, 2, generator=torch.Generator().manual_seed(1))
    numbers_OI = fp8.dequantise(code_OI, scale_GJ, block=(128, 128), dtype=torch.float32)
    rows = PackedMatrix("fp8", 150, 200, isa=isa, threads=1)
    rows.fill_fp8(code_OI[70:220], scale_GJ, scale_row=70)
    assert torch.equal(rows.unpack(), numbers_OI[70:220])
    turned = PackedMatrix("fp8", 200, 144, isa=isa, threads=1)
    turned.fill_fp8(code_OI[128:272].T, scale_GJ.T, scale_column=128)
    assert torch.equal(turned.unpack(), numbers_OI[128:272].T)


@every_isa
def test_fp8_scales_that_do_not_cover_the_matrix_are_refused(isa: str) -> None:
    matrix = PackedMatrix("fp8", 300, 200, isa=isa, threads=1)
    with pytest.raises(ShapeError, match="scales"):
        matrix.fill_fp8(torch.zeros(300, 200).to(E4M3), torch.ones(2, 2))


@every_isa
@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_fp8_codes_of_nan_are_refused(isa: str, code: int) -> None:
    codes = torch.zeros(20, 40, dtype=torch.uint8)
    codes[19, 39] = code
    with pytest.raises(ShapeError, match="NaN"):
        PackedMatrix("fp8", 20, 40, isa=isa, threads=1).fill_fp8(codes.view(E4M3), torch.ones(1, 1))


# --- what cannot be done ----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match="no weight format 'q5_0'"):
        PackedMatrix("q5_0", 16, 32, threads=1)
    with pytest.raises(RequestError, match="no weight format 'rows_f32'"):
        PackedMatrix("rows_f32", 16, 32, threads=1)
    matrix = PackedMatrix("q8_0", 16, 32, threads=1)
    with pytest.raises(ShapeError, match=r"shape \(16, 31\), but \(16, 32\) is expected"):
        matrix.fill(torch.zeros(16, 31))
    with pytest.raises(CuevaError, match="NaN or infinite"):
        matrix.fill(torch.full((16, 32), torch.inf))
    with pytest.raises(ShapeError, match=r"\(16, 34\) are expected"):
        matrix.fill_blocks(torch.zeros(16, 33, dtype=torch.uint8))
    with pytest.raises(ShapeError, match=r"\(T, 32\) is expected"):
        matrix.linear(torch.zeros(2, 33))
    with pytest.raises(CuevaError, match="float64"):
        PackedMatrix("f32", 16, 32, threads=1).fill(torch.zeros(16, 32, dtype=torch.float64))
    with pytest.raises(ShapeError, match="as they lie"):
        PackedMatrix.mapped(torch.zeros(32, 16).T)
    with pytest.raises(CuevaError, match="256"):
        PackedMatrix("q4_k", 16, 96, threads=1).fill(torch.zeros(16, 96))


def test_every_format_is_tested_here() -> None:
    assert set(EVERY) == set(FORMATS)


def test_the_portable_kernels_always_run() -> None:
    assert ISAS[-1] == "portable"
    assert set(ISAS) <= set(native.built())
