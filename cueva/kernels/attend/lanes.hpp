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

// What sixteen lanes have seen so far: the largest score, the sum of weights, and the weighted sums of values, lane by
// lane, (16, stride).
struct Mixture {
    float* most;     // (16)
    float* total;    // (16)
    float* sum_P;    // (16, stride)
    int64_t stride;  // value width, padded to whole vectors
};

static inline int64_t mixture_floats(int64_t width) { return 32 + 16 * round_up(width, 16); }
static inline Mixture mixture_at(float* memory, int64_t width) {
    return {memory, memory + 16, memory + 32, round_up(width, 16)};
}

static inline void clear(const Mixture& mix) {
    store(mix.most, splat(-INFINITY));
    store(mix.total, zero());
    memset(mix.sum_P, 0, mix.stride * 64);
}

// Keys and values as the kernel reads them. With a bf16 product the cells are bf16 and queries are packed in pairs of
// columns, (X / 2, 16, 2); otherwise float32 and (X, 16).
template <class Cell>
struct Rows {
    const Cell* keys;
    int64_t key_stride;
    const Cell* values;
    int64_t value_stride;
};

static inline void put_query(float* q_X, int64_t k, int64_t lane, float value, bool pairs) {
    if (pairs)
        reinterpret_cast<uint16_t*>(q_X)[(k / 2 * 16 + lane) * 2 + k % 2] = float_to_bf16(value);
    else
        q_X[k * 16 + lane] = value;
}

// Sums of M lanes for sixteen columns: sum = sum * factor + weight[key][lane] * value[key][column], key after key.
template <int M>
static inline void add_values(const float* weights, const float* values, int64_t stride, int64_t count,
                              const float* factor, float* sum, int64_t sum_stride) {
    F32x16 acc[M];
    for (int m = 0; m < M; ++m) acc[m] = mul(load(sum + m * sum_stride), splat(factor[m]));
    for (int64_t key = 0; key < count; ++key) {
        const F32x16 value = load(values + key * stride);
        for (int m = 0; m < M; ++m) acc[m] = fma(value, splat(weights[key * 16 + m]), acc[m]);
    }
    for (int m = 0; m < M; ++m) store(sum + m * sum_stride, acc[m]);
}

static inline void mix_values(const float* weights, const float* values, int64_t stride, int64_t count,
                              const float* factor, const Mixture& mix) {
    for (int64_t column = 0; column < mix.stride; column += 16) {
        int lane = 0;
        for (; lane + kGemmRows <= 16; lane += kGemmRows)
            add_values<kGemmRows>(weights + lane, values + column, stride, count, factor + lane,
                                  mix.sum_P + lane * mix.stride + column, mix.stride);
        constexpr int rest = 16 % kGemmRows;
        if constexpr (rest > 0)
            add_values<rest>(weights + lane, values + column, stride, count, factor + lane,
                             mix.sum_P + lane * mix.stride + column, mix.stride);
    }
}

#if defined(CUEVA_ISA_BF16)

// Two keys at a time: their values interleaved to (first, second) of each column, their weights as bf16 pairs. The lane
// of an odd last key meets a zero. The next block's lines are asked for while this one is computed.
static inline void mix_values(const float* weights, const uint16_t* values, int64_t stride, int64_t count,
                              const float* factor, const Mixture& mix) {
    alignas(64) uint32_t pair_of[kBlock / 2][16];
    for (int64_t key = 0; key < count; key += 2) {
        const __m512 first = _mm512_loadu_ps(weights + key * 16);
        const __m512 second = key + 1 < count ? _mm512_loadu_ps(weights + key * 16 + 16) : _mm512_setzero_ps();
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(first));
        const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second));
        _mm512_store_si512(pair_of[key / 2], _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
    for (int64_t column = 0; column < mix.stride; column += 16) {
        F32x16 acc[16];
        for (int m = 0; m < 16; ++m) acc[m] = mul(load(mix.sum_P + m * mix.stride + column), splat(factor[m]));
        for (int64_t key = 0; key < count; key += 2) {
            const uint16_t* at = values + key * stride + column;
            const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
            const __m256i second =
                key + 1 < count ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + stride)) : _mm256_setzero_si256();
            _mm_prefetch(reinterpret_cast<const char*>(at + kBlock * stride), _MM_HINT_T0);
            const __m512i pair = _mm512_or_si512(_mm512_cvtepu16_epi32(first),
                                                 _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
            const uint32_t* weight = pair_of[key / 2];
            for (int m = 0; m < 16; ++m) acc[m] = dot_bf16(acc[m], pair, weight[m]);
        }
        for (int m = 0; m < 16; ++m) store(mix.sum_P + m * mix.stride + column, acc[m]);
    }
}

#endif

// One block of at most 64 keys at positions `first` .. first + count - 1.
//   q_X       queries, scaled and packed
//   limit     (16): a lane sees positions below its limit
//   scores    scratch, (64, 16)
template <class Cell>
static inline void attend_block(const float* q_X, int64_t width, const Rows<Cell>& rows, int64_t first, int64_t count,
                                const float* limit, const Mixture& mix, float* scores) {
    gemm_rows(q_X, width, rows.keys, rows.key_stride, count, scores, 16);

    const F32x16 limits = load(limit), lowest = splat(-INFINITY), before = load(mix.most);
    F32x16 block_most = lowest;
    const bool all_see = !any_greater(splat(static_cast<float>(first + count)), limits);
    for (int64_t key = 0; key < count; ++key) {
        F32x16 score = load(scores + key * 16);
        if (!all_see) {
            score = where_greater(limits, splat(static_cast<float>(first + key)), score, lowest);
            store(scores + key * 16, score);
        }
        block_most = max(block_most, score);
    }
    const F32x16 most = max(before, block_most);
    const F32x16 shift = where_greater(most, lowest, most, zero());  // a lane that has seen nothing yet
    const F32x16 factor = exp(sub(before, shift));
    F32x16 total = mul(load(mix.total), factor);
    for (int64_t key = 0; key < count; ++key) {
        const F32x16 weight = exp(sub(load(scores + key * 16), shift));
        total = add(total, weight);
        store(scores + key * 16, weight);
    }
    store(mix.most, most);
    store(mix.total, total);
    alignas(64) float factors[16];
    store(factors, factor);
    mix_values(scores, rows.values, rows.value_stride, count, factors, mix);
}

// Add what a later stretch of keys gave: the two largest scores decide how much each side still counts.
static inline void fold(const Mixture& into, const Mixture& part) {
    const F32x16 lowest = splat(-INFINITY), a = load(into.most), b = load(part.most);
    const F32x16 most = max(a, b);
    const F32x16 shift = where_greater(most, lowest, most, zero());
    alignas(64) float keep[16], gain[16];
    store(keep, exp(sub(a, shift)));
    store(gain, exp(sub(b, shift)));
    store(into.most, most);
    store(into.total, fma(load(part.total), load(gain), mul(load(into.total), load(keep))));
    for (int lane = 0; lane < 16; ++lane) {
        const F32x16 kept = splat(keep[lane]), gained = splat(gain[lane]);
        float* to = into.sum_P + lane * into.stride;
        const float* from = part.sum_P + lane * into.stride;
        for (int64_t c = 0; c < into.stride; c += 16) store(to + c, fma(load(from + c), gained, mul(load(to + c), kept)));
    }
}

// Divide by the sums of weights; lane i to out[i], for the lanes that have a place.
static inline void finish(const Mixture& mix, int64_t width, float* const* out) {
    for (int lane = 0; lane < 16; ++lane) {
        if (!out[lane]) continue;
        const F32x16 by = splat(1.0f / mix.total[lane]);
        const float* from = mix.sum_P + lane * mix.stride;
        int64_t c = 0;
        for (; c + 16 <= width; c += 16) store(out[lane] + c, mul(load(from + c), by));
        for (; c < width; ++c) out[lane][c] = from[c] * (1.0f / mix.total[lane]);
    }
}

}  // namespace CUEVA_ISA
