// A product for the rows of a step, tile by tile: decode rows by `matvec.hpp`, prompt rows by `gemm.hpp`.

#pragma once

#include "../native/team.hpp"
#include "gemm.hpp"

namespace CUEVA_ISA {

// The rows that a product is for: indices into the operand, decode rows first.
struct RowList {
    const int32_t* rows;
    int64_t decode;   // so many of them are decoded or verified
    int64_t count;
};

// Calls take(i, result) with the sixteen results of row i of the list, for each of them.
template <class Take>
static inline void product_tile(const Matrix& w, int64_t tile, const Operand& x, const RowList& list, float* scratch,
                                Take take) {
    int64_t i = 0;
    for (; i + kMatvecRows <= list.decode; i += kMatvecRows) {
        F32x16 out[kMatvecRows];
        matvec<kMatvecRows>(w, tile, x, list.rows + i, out);
        for (int m = 0; m < kMatvecRows; ++m) take(i + m, out[m]);
    }
    for (; i + 2 <= list.decode; i += 2) {
        F32x16 out[2];
        matvec<2>(w, tile, x, list.rows + i, out);
        take(i, out[0]);
        take(i + 1, out[1]);
    }
    if (i < list.decode) {
        F32x16 out[1];
        matvec<1>(w, tile, x, list.rows + i, out);
        take(i, out[0]);
    }
    // Prompt rows, some at a time, so that their results stay in the first cache until they are taken.
    constexpr int64_t kAtOnce = 96;
    float* results = scratch + kGemmColumns * 16;
    for (i = list.decode; i < list.count; i += kAtOnce) {
        const int64_t here = list.count - i < kAtOnce ? list.count - i : kAtOnce;
        gemm(w, tile, x, list.rows + i, here, results, 16, scratch);
        for (int64_t m = 0; m < here; ++m) take(i + m, load(results + m * 16));
    }
}

constexpr int64_t kProductScratch = kGemmColumns * 16 + 96 * 16;  // floats, for each thread

// Tiles [0, tiles) shared out in contiguous ranges; results to out + row * stride + 16 tile.
static inline void product(const Matrix& w, const Operand& x, const RowList& list, float* out, int64_t stride,
                           const Range& tiles, float* scratch) {
    for (int64_t tile = tiles.first; tile < tiles.stop; ++tile)
        product_tile(w, tile, x, list, scratch,
                     [&](int64_t i, F32x16 y) { store(out + list.rows[i] * stride + tile * 16, y); });
}

}  // namespace CUEVA_ISA
