// Attention for sixteen queries side by side: the inner loop of both forms.
//
// Lanes are queries: the heads of one row (absorbed, where all heads share the cached row as key and value) or sixteen
// rows of one head (expanded). A lane never looks at another, so what else is computed beside it changes no bit of it.
//
// The order of summation: keys in blocks of 64 that start at multiples of 64; within a block scores first, then the
// largest, then weights and values from the first key to the last; blocks from the first to the last, earlier sums
// rescaled when the largest score grows. Keys that a lane may not see weigh exactly 0 and leave its sums as they are.

#pragma once

#include <cmath>

#include "../linear/gemm.hpp"

namespace CUEVA_ISA {

constexpr int64_t kBlock = 64;

// What a lane has seen so far: the largest score, the sum of weights, and the weighted sum of values, (P, 16).
struct Mixture {
    float* most;   // (16)
    float* total;  // (16)
    float* sum_P;  // (P, 16)
};

static inline void clear(const Mixture& mix, int64_t width) {
    store(mix.most, splat(-INFINITY));
    store(mix.total, zero());
    memset(mix.sum_P, 0, width * 64);
}

// Values of one block: sum[c] = sum[c] * factor + sum over keys of weight[key] * value[key][c], for M columns.
template <int M>
static inline void value_group(const float* weights, int64_t keys, const float* values, int64_t stride, F32x16 factor,
                               bool rescale, float* sum) {
    F32x16 acc[M];
    for (int m = 0; m < M; ++m) {
        acc[m] = load(sum + m * 16);
        if (rescale) acc[m] = mul(acc[m], factor);
    }
    for (int64_t key = 0; key < keys; ++key) {
        const F32x16 weight = load(weights + key * 16);
        for (int m = 0; m < M; ++m) acc[m] = fma(weight, splat(values[key * stride + m]), acc[m]);
    }
    for (int m = 0; m < M; ++m) store(sum + m * 16, acc[m]);
}

// One block of at most 64 keys at positions `first` .. first + keys - 1.
//   q_X       (X, 16): queries, scaled
//   limit     (16): a lane sees positions below its limit
//   scores    scratch, (64, 16)
static inline void attend_block(const float* q_X, int64_t width, const float* key_rows, int64_t key_stride,
                                const float* value_rows, int64_t value_stride, int64_t value_width, int64_t first,
                                int64_t keys, const float* limit, const Mixture& mix, float* scores) {
    for (int64_t key = 0; key < keys; key += kGemmRows) {
        const int here = static_cast<int>(keys - key < kGemmRows ? keys - key : kGemmRows);
        const float* from[kGemmRows];
        float* to[kGemmRows];
        for (int m = 0; m < here; ++m) {
            from[m] = key_rows + (key + m) * key_stride;
            to[m] = scores + (key + m) * 16;
        }
        Groups<kGemmRows>::run(here, q_X, width, from, to, true);
    }

    const F32x16 limits = load(limit), lowest = splat(-INFINITY), before = load(mix.most);
    F32x16 block_most = lowest;
    const bool all_see = !any_greater(splat(static_cast<float>(first + keys)), limits);
    for (int64_t key = 0; key < keys; ++key) {
        F32x16 score = load(scores + key * 16);
        if (!all_see) {
            score = where_greater(limits, splat(static_cast<float>(first + key)), score, lowest);
            store(scores + key * 16, score);
        }
        block_most = max(block_most, score);
    }
    const bool rescale = any_greater(block_most, before);
    const F32x16 most = max(before, block_most);
    const F32x16 shift = where_greater(most, lowest, most, zero());  // a lane that has seen nothing yet
    const F32x16 factor = exp(sub(before, shift));
    F32x16 total = load(mix.total);
    if (rescale) total = mul(total, factor);
    for (int64_t key = 0; key < keys; ++key) {
        const F32x16 weight = exp(sub(load(scores + key * 16), shift));
        total = add(total, weight);
        store(scores + key * 16, weight);
    }
    store(mix.most, most);
    store(mix.total, total);

    int64_t column = 0;
    for (; column + kGemmRows <= value_width; column += kGemmRows)
        value_group<kGemmRows>(scores, keys, value_rows + column, value_stride, factor, rescale, mix.sum_P + column * 16);
    for (; column < value_width; ++column)
        value_group<1>(scores, keys, value_rows + column, value_stride, factor, rescale, mix.sum_P + column * 16);
}

// Add what a later stretch of keys gave: the two largest scores decide how much each side still counts.
static inline void fold(const Mixture& into, const Mixture& part, int64_t width) {
    const F32x16 lowest = splat(-INFINITY), a = load(into.most), b = load(part.most);
    const F32x16 most = max(a, b);
    const F32x16 shift = where_greater(most, lowest, most, zero());
    const F32x16 keep = exp(sub(a, shift)), gain = exp(sub(b, shift));
    store(into.most, most);
    store(into.total, fma(load(part.total), gain, mul(load(into.total), keep)));
    for (int64_t c = 0; c < width; ++c)
        store(into.sum_P + c * 16, fma(load(part.sum_P + c * 16), gain, mul(load(into.sum_P + c * 16), keep)));
}

// Divide by the sum of weights and turn (P, 16) into rows: lane i to out[i], for the lanes that have a place.
static inline void finish(const Mixture& mix, int64_t width, float* const* out) {
    const F32x16 inverse = div(splat(1.0f), load(mix.total));
    alignas(64) float square[16][16];
    for (int64_t c = 0; c < width; c += 16) {
        const int64_t here = width - c < 16 ? width - c : 16;
        for (int64_t j = 0; j < here; ++j) store(square[j], mul(load(mix.sum_P + (c + j) * 16), inverse));
        for (int lane = 0; lane < 16; ++lane)
            if (out[lane])
                for (int64_t j = 0; j < here; ++j) out[lane][c + j] = square[j][lane];
    }
}

}  // namespace CUEVA_ISA
