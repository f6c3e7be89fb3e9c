// Activations as the products want them.
//
// One row of activations may be needed as float32 (float32, bf16 and fp8 weights), as bf16 pairs (on processors that
// multiply those), or as signed bytes with a scale for each 32 columns (GGUF's block formats). `prepare` makes, for one
// row, whichever a product asks for. Rows are padded with zeros as weights are.

#pragma once

#include "tiles.hpp"

namespace CUEVA_ISA {

enum Need : unsigned { kNeedFloat = 1, kNeedPairs = 2, kNeedBytes = 4 };

// T rows; an array that nobody asked for is never read.
struct Operand {
    float* x_TI = nullptr;
    uint32_t* pairs_TI = nullptr;  // two bf16 columns each
    int8_t* bytes_TI = nullptr;
    float* scale_TI = nullptr;     // for each 32 columns
    int32_t* sum_TI = nullptr;     // of the bytes, for each 16 columns
    int64_t padded = 0;            // columns of a row, a multiple of 32

    inline const float* x(int64_t row) const { return x_TI + row * padded; }
    inline const uint32_t* pairs(int64_t row) const { return pairs_TI + row * (padded / 2); }
    inline const int8_t* bytes(int64_t row) const { return bytes_TI + row * padded; }
    inline const float* scales(int64_t row) const { return scale_TI + row * (padded / 32); }
    inline const int32_t* sums(int64_t row) const { return sum_TI + row * (padded / 16); }
};

static int64_t operand_bytes(int64_t rows, int64_t columns) {
    const int64_t padded = round_up(columns, kColumnPad);
    return rows * (padded * 7 + padded / 32 * 4 + padded / 16 * 4) + 5 * 64;
}

static Operand operand_in(uint8_t* memory, int64_t rows, int64_t columns) {
    Operand operand;
    operand.padded = round_up(columns, kColumnPad);
    const int64_t cells = rows * operand.padded;
    operand.x_TI = reinterpret_cast<float*>(memory);
    memory += round_up(cells * 4, 64);
    operand.pairs_TI = reinterpret_cast<uint32_t*>(memory);
    memory += round_up(cells * 2, 64);
    operand.bytes_TI = reinterpret_cast<int8_t*>(memory);
    memory += round_up(cells, 64);
    operand.scale_TI = reinterpret_cast<float*>(memory);
    memory += round_up(cells / 32 * 4, 64);
    operand.sum_TI = reinterpret_cast<int32_t*>(memory);
    return operand;
}

// Which forms a product with this matrix reads. Prompt rows meet widened weights, never bytes.
static inline unsigned needs(const Matrix& w, bool prefill) {
    if (!w) return 0;
    switch (w.format) {
        case Format::f32:
        case Format::rows_f32:
        case Format::rows_bf16: return kNeedFloat;
        case Format::bf16: return kBf16Dot ? kNeedPairs : kNeedFloat;
        case Format::fp8: return kBf16Dot ? kNeedPairs : kNeedFloat;
        default: return !prefill ? kNeedBytes : kBf16Dot ? kNeedPairs : kNeedFloat;
    }
}

// Blocks whose largest activation is no larger count as zeros: its inverse would overflow.
constexpr float kSmallestLargest = 0x1p-118f;

// Row `row` of the operand from `columns` floats. Bytes: scale = largest magnitude / 127, rounded to nearest.
static void prepare(const Operand& to, int64_t row, const float* from, int64_t columns, unsigned need) {
    float* x = to.x_TI + row * to.padded;
    const bool copy = x != from;
    if (copy && (need & (kNeedFloat | kNeedBytes | kNeedPairs))) {
        memcpy(x, from, columns * 4);
        if (to.padded > columns) memset(x + columns, 0, (to.padded - columns) * 4);
    }
    if (need & kNeedPairs) {
        uint16_t* halves = reinterpret_cast<uint16_t*>(to.pairs_TI + row * (to.padded / 2));
        for (int64_t k = 0; k < to.padded; ++k) halves[k] = float_to_bf16(x[k]);
    }
    if (need & kNeedBytes) {
        int8_t* bytes = to.bytes_TI + row * to.padded;
        float* scales = to.scale_TI + row * (to.padded / 32);
        int32_t* sums = to.sum_TI + row * (to.padded / 16);
        for (int64_t block = 0; block < to.padded / 32; ++block) {
            const F32x16 low = load(x + block * 32), high = load(x + block * 32 + 16);
            const float most = largest(max(absolute(low), absolute(high)));
            const float scale = most / 127.0f;
            const F32x16 by = splat(most > kSmallestLargest ? 127.0f / most : 0.0f);
            store_s8(bytes + block * 32, mul(low, by));
            store_s8(bytes + block * 32 + 16, mul(high, by));
            scales[block] = scale;
            for (int half = 0; half < 2; ++half) {
                int32_t sum = 0;
                for (int k = 0; k < 16; ++k) sum += bytes[block * 32 + half * 16 + k];
                sums[block * 2 + half] = sum;
            }
        }
    }
}

}  // namespace CUEVA_ISA
