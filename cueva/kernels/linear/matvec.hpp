// Sixteen results for a few rows of activations: decoding and verification.
//
// The order of summation, on which the sameness of bits rests. A result is the sum over its row's columns in two chains,
// one of even and one of odd columns (column pairs on processors with a bf16 product), each from the first column to the
// last, added to each other at the end. In block formats the products of 32 columns are summed exactly in integers and
// blocks are added from the first to the last; with fp8, each 128 columns are summed in two chains as above, scaled, and
// added from the first to the last. Nothing in it depends on how many rows are computed together, so a row's bits do not
// either, and since a thread owns whole tiles, nor do they depend on the number of threads.

#pragma once

#include "operand.hpp"

namespace CUEVA_ISA {

static inline int32_t four(const int8_t* p) { int32_t v; memcpy(&v, p, 4); return v; }

template <int M>
static void matvec_f32(const Matrix& w, const uint8_t* data, const Operand& x, const int32_t* rows, F32x16 (&out)[M]) {
    const float* from[M];
    F32x16 even[M], odd[M];
    for (int m = 0; m < M; ++m) from[m] = x.x(rows[m]), even[m] = odd[m] = zero();
    const float* tile = reinterpret_cast<const float*>(data);
    const int64_t columns = round_up(w.columns, kColumnPad);
    for (int64_t k = 0; k < columns; k += 2) {
        const F32x16 a = load(tile + k * 16), b = load(tile + k * 16 + 16);
        for (int m = 0; m < M; ++m) {
            even[m] = fma(a, splat(from[m][k]), even[m]);
            odd[m] = fma(b, splat(from[m][k + 1]), odd[m]);
        }
    }
    for (int m = 0; m < M; ++m) out[m] = add(even[m], odd[m]);
}

template <int M>
static void matvec_bf16(const Matrix& w, const uint8_t* data, const Operand& x, const int32_t* rows, F32x16 (&out)[M]) {
    const int64_t columns = round_up(w.columns, kColumnPad);
    F32x16 even[M], odd[M];
    for (int m = 0; m < M; ++m) even[m] = odd[m] = zero();
#if defined(CUEVA_ISA_BF16)
    const uint32_t* from[M];
    for (int m = 0; m < M; ++m) from[m] = x.pairs(rows[m]);
    for (int64_t k = 0; k < columns / 2; k += 2) {
        const __m512i a = _mm512_loadu_si512(data + k * 64), b = _mm512_loadu_si512(data + k * 64 + 64);
        for (int m = 0; m < M; ++m) {
            even[m] = dot_bf16(even[m], a, from[m][k]);
            odd[m] = dot_bf16(odd[m], b, from[m][k + 1]);
        }
    }
#else
    const float* from[M];
    for (int m = 0; m < M; ++m) from[m] = x.x(rows[m]);
    for (int64_t k = 0; k < columns; k += 2) {
        F32x16 a, b;
        load_bf16_pairs(data + k * 32, a, b);
        for (int m = 0; m < M; ++m) {
            even[m] = fma(a, splat(from[m][k]), even[m]);
            odd[m] = fma(b, splat(from[m][k + 1]), odd[m]);
        }
    }
#endif
    for (int m = 0; m < M; ++m) out[m] = add(even[m], odd[m]);
}

template <int M>
static void matvec_fp8(const Matrix& w, const uint8_t* data, const Operand& x, const int32_t* rows, F32x16 (&out)[M]) {
    const int64_t columns = round_up(w.columns, kColumnPad);
    for (int m = 0; m < M; ++m) out[m] = zero();
    for (int64_t k0 = 0; k0 < columns; k0 += kFp8Block) {
        const int64_t width = columns - k0 < kFp8Block ? columns - k0 : kFp8Block;
        const F32x16 scale = load(reinterpret_cast<const float*>(data));
        data += 64;
        F32x16 even[M], odd[M];
        for (int m = 0; m < M; ++m) even[m] = odd[m] = zero();
#if defined(CUEVA_ISA_BF16)
        const uint32_t* from[M];
        for (int m = 0; m < M; ++m) from[m] = x.pairs(rows[m]) + k0 / 2;
        const E4m3Table table;
        for (int64_t k = 0; k < width; k += 4) {
            __m512i a, b;
            table.pairs(data + k * 16, a, b);
            for (int m = 0; m < M; ++m) {
                even[m] = dot_bf16(even[m], a, from[m][k / 2]);
                odd[m] = dot_bf16(odd[m], b, from[m][k / 2 + 1]);
            }
        }
#else
        const float* from[M];
        for (int m = 0; m < M; ++m) from[m] = x.x(rows[m]) + k0;
        for (int64_t k = 0; k < width; k += 2) {
            const F32x16 a = load_e4m3(data + k * 16), b = load_e4m3(data + k * 16 + 16);
            for (int m = 0; m < M; ++m) {
                even[m] = fma(a, splat(from[m][k]), even[m]);
                odd[m] = fma(b, splat(from[m][k + 1]), odd[m]);
            }
        }
#endif
        for (int m = 0; m < M; ++m) out[m] = fma(add(even[m], odd[m]), scale, out[m]);
        data += width * 16;
    }
}

template <int M>
static void matvec_q8_0(const Matrix& w, const uint8_t* data, const Operand& x, const int32_t* rows, F32x16 (&out)[M]) {
    for (int m = 0; m < M; ++m) out[m] = zero();
    const int64_t blocks = round_up(w.columns, kColumnPad) / 32;
    for (int64_t b = 0; b < blocks; ++b, data += kQ8Bytes) {
        const F32x16 scale = load_f16(data);
        SignedDot dot[M];
        for (int quad = 0; quad < 8; ++quad) {
            const S8x64 bytes = load_s8x64(data + 32 + quad * 64);
            for (int m = 0; m < M; ++m) dot[m].add(bytes, four(x.bytes(rows[m]) + b * 32 + quad * 4));
        }
        for (int m = 0; m < M; ++m) {
            const int32_t* sums = x.sums(rows[m]) + b * 2;
            const F32x16 exact = to_float(dot[m].finish(sums[0] + sums[1]));
            out[m] = fma(exact, mul(scale, splat(x.scales(rows[m])[b])), out[m]);
        }
    }
}

// The four-bit products of 32 columns: 4 vectors of two quads each.
template <int M>
static inline void dot_nibbles(const uint8_t* vectors, const Operand& x, const int32_t* rows, int64_t column,
                               UnsignedDot (&dot)[M]) {
    for (int v = 0; v < 4; ++v) {
        const U8x64 pair = load_u8x64(vectors + v * 64);
        const U8x64 low = bits<0>(pair, 15), high = bits<4>(pair, 15);
        for (int m = 0; m < M; ++m) {
            const int8_t* from = x.bytes(rows[m]) + column + v * 8;
            dot[m].add(low, four(from));
            dot[m].add(high, four(from + 4));
        }
    }
}

template <int M>
static void matvec_q4_0(const Matrix& w, const uint8_t* data, const Operand& x, const int32_t* rows, F32x16 (&out)[M]) {
    for (int m = 0; m < M; ++m) out[m] = zero();
    const int64_t blocks = round_up(w.columns, kColumnPad) / 32;
    for (int64_t b = 0; b < blocks; ++b, data += kQ4Bytes) {
        const F32x16 scale = load_f16(data);
        UnsignedDot dot[M];
        dot_nibbles(data + 32, x, rows, b * 32, dot);
        for (int m = 0; m < M; ++m) {
            const int32_t* sums = x.sums(rows[m]) + b * 2;
            const F32x16 exact = to_float(iadd(dot[m].finish(), isplat(-8 * (sums[0] + sums[1]))));
            out[m] = fma(exact, mul(scale, splat(x.scales(rows[m])[b])), out[m]);
        }
    }
}

template <int M>
static void matvec_q4_k(const Matrix& w, const uint8_t* data, const Operand& x, const int32_t* rows, F32x16 (&out)[M]) {
    for (int m = 0; m < M; ++m) out[m] = zero();
    for (int64_t super = 0; super < w.columns / kSuper; ++super, data += kQ4KBytes) {
        const F32x16 d = load_f16(data), dmin = load_f16(data + 32);
        for (int j = 0; j < 8; ++j) {
            const uint8_t* part = data + 64 + j * kQ4KPart;
            const F32x16 scale = mul(d, load_u8(part)), min = mul(dmin, load_u8(part + 16));
            const int64_t b = super * 8 + j;
            UnsignedDot dot[M];
            dot_nibbles(part + 32, x, rows, b * 32, dot);
            for (int m = 0; m < M; ++m) {
                const int32_t* sums = x.sums(rows[m]) + b * 2;
                const float x_scale = x.scales(rows[m])[b];
                out[m] = fma(to_float(dot[m].finish()), mul(scale, splat(x_scale)), out[m]);
                out[m] = fma(min, splat(-x_scale * static_cast<float>(sums[0] + sums[1])), out[m]);
            }
        }
    }
}

template <int M>
static void matvec_q6_k(const Matrix& w, const uint8_t* data, const Operand& x, const int32_t* rows, F32x16 (&out)[M]) {
    for (int m = 0; m < M; ++m) out[m] = zero();
    for (int64_t super = 0; super < w.columns / kSuper; ++super, data += kQ6KBytes) {
        const F32x16 d = load_f16(data);
        for (int j = 0; j < 8; ++j) {
            const uint8_t* part = data + 32 + j * kQ6KPart;
            const int64_t b = super * 8 + j;
            for (int half = 0; half < 2; ++half) {
                const F32x16 scale = mul(d, load_s8(part + half * 16));
                const U8x64 high = load_u8x64(part + 32 + 256 + half * 64);
                I32x16 exact[M];
                for (int m = 0; m < M; ++m) exact[m] = isplat(-32 * x.sums(rows[m])[b * 2 + half]);
                for (int v = 0; v < 2; ++v) {
                    const U8x64 pair = load_u8x64(part + 32 + (half * 2 + v) * 64);
                    const U8x64 first = join_bits(bits<0>(pair, 15), v ? bits<4>(high, 3) : bits<0>(high, 3));
                    const U8x64 second = join_bits(bits<4>(pair, 15), v ? bits<6>(high, 3) : bits<2>(high, 3));
                    for (int m = 0; m < M; ++m) {
                        const int8_t* from = x.bytes(rows[m]) + b * 32 + half * 16 + v * 8;
                        UnsignedDot dot;
                        dot.add(first, four(from));
                        dot.add(second, four(from + 4));
                        exact[m] = iadd(exact[m], dot.finish());
                    }
                }
                for (int m = 0; m < M; ++m)
                    out[m] = fma(to_float(exact[m]), mul(scale, splat(x.scales(rows[m])[b])), out[m]);
            }
        }
    }
}

// Row-major weights, mapped from disk as they are: sixteen rows one after the other, sixteen columns at a time, and one
// sum across at the end of each row. Slower than tiles; for models that do not fit in memory.
template <int M>
static void matvec_rows(const Matrix& w, int64_t tile, const Operand& x, const int32_t* rows, F32x16 (&out)[M]) {
    alignas(64) float result[M][16] = {};
    for (int64_t r = 0; r < 16 && tile * 16 + r < w.rows; ++r) {
        const uint8_t* row = w.data + (tile * 16 + r) * w.tile_bytes;
        F32x16 acc[M];
        for (int m = 0; m < M; ++m) acc[m] = zero();
        int64_t k = 0;
        for (; k + 16 <= w.columns; k += 16) {
            const F32x16 a = w.format == Format::rows_f32 ? load(reinterpret_cast<const float*>(row) + k)
                                                          : load_bf16(reinterpret_cast<const uint16_t*>(row) + k);
            for (int m = 0; m < M; ++m) acc[m] = fma(a, load(x.x(rows[m]) + k), acc[m]);
        }
        for (int m = 0; m < M; ++m) {
            float total = sum(acc[m]);
            for (int64_t j = k; j < w.columns; ++j)
                total += source_value(w.format == Format::rows_f32 ? 0 : 1,
                                      row + j * (w.format == Format::rows_f32 ? 4 : 2)) * x.x(rows[m])[j];
            result[m][r] = total;
        }
    }
    for (int m = 0; m < M; ++m) out[m] = load(result[m]);
}

template <int M>
static void matvec(const Matrix& w, int64_t tile, const Operand& x, const int32_t* rows, F32x16 (&out)[M]) {
    const uint8_t* data = w.data + tile * w.tile_bytes;
    switch (w.format) {
        case Format::f32: matvec_f32<M>(w, data, x, rows, out); break;
        case Format::bf16: matvec_bf16<M>(w, data, x, rows, out); break;
        case Format::fp8: matvec_fp8<M>(w, data, x, rows, out); break;
        case Format::q8_0: matvec_q8_0<M>(w, data, x, rows, out); break;
        case Format::q4_0: matvec_q4_0<M>(w, data, x, rows, out); break;
        case Format::q4_k: matvec_q4_k<M>(w, data, x, rows, out); break;
        case Format::q6_k: matvec_q6_k<M>(w, data, x, rows, out); break;
        default: matvec_rows<M>(w, tile, x, rows, out);
    }
    if (w.bias)
        for (int m = 0; m < M; ++m) out[m] = add(out[m], load(w.bias + tile * 16));
}

}  // namespace CUEVA_ISA
