// Sixteen results for many rows of activations: prompts.
//
// A tile is widened to float32 (or to bf16 pairs) once, a part of its columns at a time so that it stays in the second
// cache, and meets the rows in groups whose sums fit the registers. A result is one chain over its row's columns from
// the first to the last, whatever the number of rows: another order than `matvec.hpp`, which is why the two never serve
// the same position of a sequence.

#pragma once

#include "matvec.hpp"

namespace CUEVA_ISA {

constexpr int64_t kGemmColumns = 1024;  // of a tile, widened at once: 64 KiB

template <int M>
static inline void gemm_group(const float* wide, int64_t columns, const float* const* from, float* const* to, bool first) {
    F32x16 acc[M];
    for (int m = 0; m < M; ++m) acc[m] = first ? zero() : load(to[m]);
    for (int64_t k = 0; k < columns; ++k) {
        const F32x16 w = load(wide + k * 16);
        for (int m = 0; m < M; ++m) acc[m] = fma(w, splat(from[m][k]), acc[m]);
    }
    for (int m = 0; m < M; ++m) store(to[m], acc[m]);
}

#if defined(CUEVA_ISA_BF16)
// [column][16] floats to [column pair][16][2] bf16, in place.
static void round_to_pairs(float* wide, int64_t columns) {
    uint32_t* to = reinterpret_cast<uint32_t*>(wide);
    for (int64_t k = 0; k < columns; k += 2, to += 16) {
        const __m512 even = _mm512_loadu_ps(wide + k * 16), odd = _mm512_loadu_ps(wide + k * 16 + 16);
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
        const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
        _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

// The same with bf16 pairs: `wide` holds dwords, `from` rows of pairs.
template <int M>
static inline void gemm_group_pairs(const uint8_t* wide, int64_t columns, const uint32_t* const* from, float* const* to,
                                    bool first) {
    F32x16 acc[M];
    for (int m = 0; m < M; ++m) acc[m] = first ? zero() : load(to[m]);
    for (int64_t k = 0; k < columns / 2; ++k) {
        const __m512i w = _mm512_loadu_si512(wide + k * 64);
        for (int m = 0; m < M; ++m) acc[m] = dot_bf16(acc[m], w, from[m][k]);
    }
    for (int m = 0; m < M; ++m) store(to[m], acc[m]);
}
#endif

// One call for each number of rows that a group can have.
template <int M>
struct Groups {
    static inline void run(int rows, const float* wide, int64_t columns, const float* const* from, float* const* to,
                           bool first) {
        if (rows == M) return gemm_group<M>(wide, columns, from, to, first);
        if constexpr (M > 1) Groups<M - 1>::run(rows, wide, columns, from, to, first);
    }
#if defined(CUEVA_ISA_BF16)
    static inline void run_pairs(int rows, const uint8_t* wide, int64_t columns, const uint32_t* const* from,
                                 float* const* to, bool first) {
        if (rows == M) return gemm_group_pairs<M>(wide, columns, from, to, first);
        if constexpr (M > 1) Groups<M - 1>::run_pairs(rows, wide, columns, from, to, first);
    }
#endif
};

// A widened tile (queries side by side count as one) against rows that lie `stride` apart: sixteen results for each.
static inline void gemm_rows(const float* tile, int64_t columns, const float* rows, int64_t stride, int64_t count,
                             float* out, int64_t out_stride) {
    for (int64_t row = 0; row < count; row += kGemmRows) {
        const int here = static_cast<int>(count - row < kGemmRows ? count - row : kGemmRows);
        const float* from[kGemmRows];
        float* to[kGemmRows];
        for (int m = 0; m < here; ++m) from[m] = rows + (row + m) * stride, to[m] = out + (row + m) * out_stride;
        Groups<kGemmRows>::run(here, tile, columns, from, to, true);
    }
}

#if defined(CUEVA_ISA_BF16)
// The same with a tile of pairs and rows of bf16.
static inline void gemm_rows(const float* tile, int64_t columns, const uint16_t* rows, int64_t stride, int64_t count,
                             float* out, int64_t out_stride) {
    for (int64_t row = 0; row < count; row += kGemmRows) {
        const int here = static_cast<int>(count - row < kGemmRows ? count - row : kGemmRows);
        const uint32_t* from[kGemmRows];
        float* to[kGemmRows];
        for (int m = 0; m < here; ++m) {
            from[m] = reinterpret_cast<const uint32_t*>(rows + (row + m) * stride);
            to[m] = out + (row + m) * out_stride;
        }
        Groups<kGemmRows>::run_pairs(here, reinterpret_cast<const uint8_t*>(tile), columns, from, to, true);
    }
}
#endif

// Results of one tile: out[i] (16 floats) = sum over columns of W[tile] x[rows[i]], for `count` rows.
// `wide` is scratch for kGemmColumns x 16 floats.
static void gemm(const Matrix& w, int64_t tile, const Operand& x, const int32_t* rows, int64_t count, float* out,
                 int64_t out_stride, float* wide) {
    const int64_t columns = round_up(w.columns, kColumnPad);
    for (int64_t k0 = 0; k0 < columns; k0 += kGemmColumns) {
        const int64_t stop = k0 + kGemmColumns < columns ? k0 + kGemmColumns : columns;
#if defined(CUEVA_ISA_BF16)
        const bool pairs = needs(w, true) == kNeedPairs;
        const uint8_t* wide_pairs = nullptr;
        if (pairs && w.format == Format::bf16) {
            wide_pairs = w.data + tile * w.tile_bytes + k0 * 32;  // stored as they are wanted
        } else if (pairs) {
            widen(w, tile, k0, stop, wide);
            round_to_pairs(wide, stop - k0);
            wide_pairs = reinterpret_cast<const uint8_t*>(wide);
        } else
#endif
            widen(w, tile, k0, stop, wide);
        for (int64_t i = 0; i < count; i += kGemmRows) {
            const int here = static_cast<int>(count - i < kGemmRows ? count - i : kGemmRows);
            float* to[kGemmRows];
            for (int m = 0; m < here; ++m) to[m] = out + (i + m) * out_stride;
#if defined(CUEVA_ISA_BF16)
            if (pairs) {
                const uint32_t* from[kGemmRows];
                for (int m = 0; m < here; ++m) from[m] = x.pairs(rows[i + m]) + k0 / 2;
                Groups<kGemmRows>::run_pairs(here, wide_pairs, stop - k0, from, to, k0 == 0);
                continue;
            }
#endif
            const float* from[kGemmRows];
            for (int m = 0; m < here; ++m) from[m] = x.x(rows[i + m]) + k0;
            Groups<kGemmRows>::run(here, wide, stop - k0, from, to, k0 == 0);
        }
    }
    if (w.bias) {
        const F32x16 bias = load(w.bias + tile * 16);
        for (int64_t i = 0; i < count; ++i) store(out + i * out_stride, add(load(out + i * out_stride), bias));
    }
}

}  // namespace CUEVA_ISA
