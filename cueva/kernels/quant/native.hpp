// Blocks from floats and floats from blocks in C++: the functions of reference.py and search.py, byte for byte.
//
// A file that includes this is compiled once per instruction set; CUEVA_ISA names the namespace of that build, and
// everything is static, so that no two builds share a function. Sub-blocks lie side by side as lanes, and every sum
// runs over the values of a sub-block from first to last; the same order in PyTorch gives the same bytes, provided that
// products and sums are not fused: compile with -ffp-contract=off (GCC fuses by default where it has FMA) and never
// with -ffast-math. Fused, the blocks are as good, but now and then a search takes another of two near equals.
// Dequantising is equal to the bit with and without fusing.
//
// K is a whole number of blocks, values are finite and within the format's limit (BlockFormat.largest): the callers
// check, `largest_magnitude` helps them. The scales of Q4_K and Q6_K are held to the float16 range all the same.
// Letters: K values of a row, W values of a sub-block, G sub-blocks of a block.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef CUEVA_ISA
#error "define CUEVA_ISA as the name of the instruction set this file is compiled for"
#endif

namespace CUEVA_ISA {
namespace quant {

// --- float16 and small arithmetic ------------------------------------------------------------------------------------

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Round to the nearest float16, halves to the even one; beyond the range, infinity.
static inline uint16_t half_of(float x) {
    const uint32_t bits = bits_of(x), size = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
    if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    // Below 2^-14 a float16 counts steps of 2^-24, the last bit of a float32 between 0.5 and 1: adding 0.5 rounds.
    if (size < 0x38800000u) return static_cast<uint16_t>(sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000u));
    return static_cast<uint16_t>(sign | (size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13);
}

static inline float float_of_half(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, size = half & 0x7fffu;
    if (size >= 0x7c00u) return float_of(sign | 0x7f800000u | (size & 0x3ffu) << 13);
    if (size < 0x400u) return float_of(sign | bits_of(static_cast<float>(size) * 0x1p-24f));
    return float_of(sign | ((size << 13) + 0x38000000u));
}

static inline void put_half(uint8_t* out, float x) {
    const uint16_t half = half_of(x);
    out[0] = static_cast<uint8_t>(half & 255), out[1] = static_cast<uint8_t>(half >> 8);
}

static inline float get_half(const uint8_t* in) { return float_of_half(static_cast<uint16_t>(in[0] | in[1] << 8)); }

static inline float smaller(float a, float b) { return a < b ? a : b; }
static inline float larger(float a, float b) { return a > b ? a : b; }
static inline float magnitude(float x) { return float_of(bits_of(x) & 0x7fffffffu); }

// The largest magnitude of n values; infinity or NaN if there is one (among bit patterns these are the largest).
static inline float largest_magnitude(const float* x_K, int64_t K) {
    uint32_t largest = 0;
    for (int64_t k = 0; k < K; ++k) {
        const uint32_t size = bits_of(x_K[k]) & 0x7fffffffu;
        largest = size > largest ? size : largest;
    }
    return float_of(largest);
}

// The float16, as a float, of which `largest` is `levels` times; with `reach` the next one up where the nearest falls
// short.
static inline float block_scale(float largest, float levels, bool reach) {
    uint16_t half = half_of(smaller(largest / levels, 65504.0f));
    if (reach && float_of_half(half) * (levels + 0.5f) < largest) ++half;
    return float_of_half(half);
}

// --- Q8_0 and Q4_0 ---------------------------------------------------------------------------------------------------

// An inverse that overflows belongs to a scale that is zero as a float16.
static inline float inverse_or_zero(float d) {
    const float inverted = 1.0f / d;
    return magnitude(inverted) <= 3.402823466e38f ? inverted : 0.0f;
}

static inline void quantise_row_q8_0(const float* x_K, int64_t K, uint8_t* out) {
    for (int64_t k = 0; k < K; k += 32, x_K += 32, out += 34) {
        const float d = largest_magnitude(x_K, 32) / 127.0f, id = inverse_or_zero(d);
        put_half(out, d);
        for (int w = 0; w < 32; ++w) {
            // Halves go away from zero, as C's roundf has it.
            const float scaled = x_K[w] * id, size = magnitude(scaled);
            const int whole = static_cast<int>(size);
            const int rounded = whole + (size - static_cast<float>(whole) >= 0.5f);
            out[2 + w] = static_cast<uint8_t>(scaled < 0.0f ? -rounded : rounded);
        }
    }
}

static inline void dequantise_row_q8_0(const uint8_t* row, int64_t K, float* y_K) {
    for (int64_t k = 0; k < K; k += 32, row += 34, y_K += 32) {
        const float d = get_half(row);
        for (int w = 0; w < 32; ++w) y_K[w] = static_cast<float>(static_cast<int8_t>(row[2 + w])) * d;
    }
}

static inline void quantise_row_q4_0(const float* x_K, int64_t K, uint8_t* out) {
    for (int64_t k = 0; k < K; k += 32, x_K += 32, out += 18) {
        // The value of largest magnitude, the first of equals, becomes -8.
        const float largest = largest_magnitude(x_K, 32);
        int first = 0;
        while (magnitude(x_K[first]) != largest) ++first;
        const float d = x_K[first] / -8.0f, id = inverse_or_zero(d);
        put_half(out, d);
        uint8_t q_K[32];
        for (int w = 0; w < 32; ++w) {
            const int q = static_cast<int>(x_K[w] * id + 8.5f);
            q_K[w] = static_cast<uint8_t>(q < 15 ? q : 15);
        }
        for (int w = 0; w < 16; ++w) out[2 + w] = static_cast<uint8_t>(q_K[w] | q_K[w + 16] << 4);
    }
}

static inline void dequantise_row_q4_0(const uint8_t* row, int64_t K, float* y_K) {
    for (int64_t k = 0; k < K; k += 32, row += 18, y_K += 32) {
        const float d = get_half(row);
        for (int w = 0; w < 16; ++w) {
            y_K[w] = static_cast<float>((row[2 + w] & 15) - 8) * d;
            y_K[w + 16] = static_cast<float>((row[2 + w] >> 4) - 8) * d;
        }
    }
}

// --- lanes -----------------------------------------------------------------------------------------------------------
// The searches look at several sub-blocks at once, one per lane of a vector of the compiler's own: GCC and Clang lower
// it to whatever the instruction set has, without intrinsics. No sum crosses lanes, so their number changes no result.

#if defined(__AVX__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif
typedef float Lanes __attribute__((vector_size(4 * lanes)));

static inline Lanes load(const float* from) {
    Lanes x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

static inline void store(float* to, Lanes x) { std::memcpy(to, &x, sizeof x); }
static inline Lanes all(float x) { return Lanes{} + x; }
static inline Lanes smaller(Lanes a, Lanes b) { return a < b ? a : b; }
static inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }
static inline Lanes clip(Lanes x, float low, float high) { return smaller(larger(x, all(low)), all(high)); }

// Round to nearest, halves to even, for magnitudes below 2^22: the sum has no room for a fraction.
static inline Lanes nearest(Lanes x) { return (x + 12582912.0f) - 12582912.0f; }

// The whole number of d nearest to x, none where d is zero.
static inline Lanes multiple(Lanes x, Lanes d, float lowest, float highest) {
    return nearest(clip(d > 0.0f ? x / d : Lanes{}, lowest, highest));
}

// 1 / x, and 0 for what no float16 reaches: SMALLEST_SCALE of search.py.
static inline Lanes inverse(Lanes x) { return larger(x, -x) > 0x1p-100f ? 1.0f / x : Lanes{}; }

// Lay G sub-blocks of W consecutive values side by side: vector [W * part + w] holds value w of `lanes` sub-blocks.
// Adding zero leaves no negative zero, which would otherwise reach the stored minimum.
static inline void side_by_side(const float* x_K, int G, int W, Lanes* x_W) {
    for (int part = 0; part < G / lanes; ++part) {
        for (int w = 0; w < W; ++w) {
            float column[lanes];
            for (int lane = 0; lane < lanes; ++lane) column[lane] = x_K[W * (lanes * part + lane) + w];
            x_W[W * part + w] = load(column) + 0.0f;
        }
    }
}

static inline float total_of(const float* error_G, int G) {
    float total = error_G[0];
    for (int g = 1; g < G; ++g) total += error_G[g];
    return total;
}

// Added to a stored number when its neighbours are tried; ties keep the earlier.
constexpr float neighbours[3] = {0.0f, -1.0f, 1.0f};

// --- Q4_K ------------------------------------------------------------------------------------------------------------
// Eight sub-blocks of 32 values: x = d scale q - m minimum.

struct Q4 {
    Lanes scale, minimum, error;
};

static inline Lanes nearest_q4(Lanes x, Lanes inverse_scale, Lanes minimum) {
    return nearest(clip((x + minimum) * inverse_scale, 0.0f, 15.0f));
}

// Assign levels by the given scale and minimum, then find the best of both for that assignment. What is fitted is the
// residual, which keeps float32 sums precise. The best minimum may not be negative: then it is zero and the scale is
// fitted alone.
static inline Q4 fit_q4(const Lanes* x_W, Lanes scale, Lanes minimum) {
    const Lanes inverted = inverse(scale);
    Lanes sum_q{}, sum_qq{}, sum_r{}, sum_rq{}, sum_rr{};
    for (int w = 0; w < 32; ++w) {
        const Lanes q = nearest_q4(x_W[w], inverted, minimum);
        const Lanes r = x_W[w] - (scale * q - minimum);
        sum_q += q;
        sum_qq += q * q;
        sum_r += r;
        sum_rq += r * q;
        sum_rr += r * r;
    }
    // 1. Both free. The determinant is a whole number below 2^24, so it is exact; zero if all levels are the same.
    const Lanes determinant = 32.0f * sum_qq - sum_q * sum_q;
    const Lanes free = (32.0f * sum_rq - sum_r * sum_q) / larger(determinant, all(1.0f));
    const Lanes step = determinant > 0.0f ? free : Lanes{};
    const Lanes shift = (step * sum_q - sum_r) / 32.0f;
    const Lanes error = sum_rr - step * sum_rq + shift * sum_r;
    // 2. The minimum held at zero: the residual is then r - minimum.
    const Lanes pulled = sum_rq - minimum * sum_q;
    const Lanes alone = pulled / larger(sum_qq, all(1.0f));
    const Lanes alone_error = sum_rr - 2.0f * minimum * sum_r + 32.0f * minimum * minimum - alone * pulled;
    const auto negative = minimum + shift < 0.0f;
    return {larger(scale + (negative ? alone : step), Lanes{}), negative ? Lanes{} : minimum + shift,
            negative ? alone_error : error};
}

static inline Lanes error_q4(const Lanes* x_W, Lanes scale, Lanes minimum) {
    const Lanes inverted = inverse(scale);
    Lanes sum_rr{};
    for (int w = 0; w < 32; ++w) {
        const Lanes r = x_W[w] - (scale * nearest_q4(x_W[w], inverted, minimum) - minimum);
        sum_rr += r * r;
    }
    return sum_rr;
}

// Start from several pairs of ends, each assignment fitting its own scale and minimum; assign once more, fit again.
static inline Q4 search_q4(const Lanes* x_W, Lanes low, Lanes high) {
    constexpr float ends[4] = {-0.02f, 0.01f, 0.04f, 0.07f};
    const Lanes range = high - low;
    Q4 best{range / 15.0f, 0.0f - low, all(float_of(0x7f800000u))};
    for (int a = 0; a < 4; ++a) {
        for (int b = 0; b < 4; ++b) {
            const Lanes from = smaller(low + ends[a] * range, Lanes{}), to = high - ends[b] * range;
            const Q4 fitted = fit_q4(x_W, larger((to - from) / 15.0f, Lanes{}), 0.0f - from);
            const auto wins = fitted.error < best.error;
            best.scale = wins ? fitted.scale : best.scale;
            best.minimum = wins ? fitted.minimum : best.minimum;
            best.error = wins ? fitted.error : best.error;
        }
    }
    return fit_q4(x_W, best.scale, best.minimum);
}

struct StoredQ4 {
    float d, m, scale_G[8], minimum_G[8], error_G[8];
};

// Round scales and minima to six bits of a common float16 each, and keep the best of their neighbours; with `plain`
// there are no neighbours and the float16 is the nearest, whether it reaches or not.
static inline void store_q4(const Lanes* x_W, const float* scale_G, const float* minimum_G, bool plain,
                            StoredQ4& best) {
    float largest_scale = scale_G[0], largest_minimum = minimum_G[0];
    for (int g = 1; g < 8; ++g) {
        largest_scale = larger(largest_scale, scale_G[g]);
        largest_minimum = larger(largest_minimum, minimum_G[g]);
    }
    best.d = block_scale(largest_scale, 63.0f, !plain);
    best.m = block_scale(largest_minimum, 63.0f, !plain);
    const Lanes d = all(best.d), m = all(best.m);
    for (int g = 0; g < 8; g += lanes, x_W += 32) {
        const Lanes first_scale = multiple(load(scale_G + g), d, 0.0f, 63.0f);
        const Lanes first_minimum = multiple(load(minimum_G + g), m, 0.0f, 63.0f);
        Q4 kept{first_scale, first_minimum, error_q4(x_W, d * first_scale, m * first_minimum)};
        for (int tried = 1; tried < (plain ? 1 : 9); ++tried) {
            const Lanes scale = clip(first_scale + neighbours[tried / 3], 0.0f, 63.0f);
            const Lanes minimum = clip(first_minimum + neighbours[tried % 3], 0.0f, 63.0f);
            const Lanes error = error_q4(x_W, d * scale, m * minimum);
            const auto wins = error < kept.error;
            kept.scale = wins ? scale : kept.scale;
            kept.minimum = wins ? minimum : kept.minimum;
            kept.error = wins ? error : kept.error;
        }
        store(best.scale_G + g, kept.scale);
        store(best.minimum_G + g, kept.minimum);
        store(best.error_G + g, kept.error);
    }
}

static inline void quantise_block_q4_k(const float* x_K, uint8_t* out) {
    Lanes x_W[8 / lanes * 32];
    side_by_side(x_K, 8, 32, x_W);
    // 1. Search, a vector of sub-blocks at a time.
    float scale_G[8], minimum_G[8], plain_scale_G[8], plain_minimum_G[8];
    for (int g = 0; g < 8; g += lanes) {
        const Lanes* mine_W = x_W + g / lanes * 32;
        Lanes low{}, high = mine_W[0];
        for (int w = 0; w < 32; ++w) low = smaller(mine_W[w], low), high = larger(mine_W[w], high);
        store(plain_scale_G + g, (high - low) / 15.0f);
        store(plain_minimum_G + g, 0.0f - low);
        const Q4 found = search_q4(mine_W, low, high);
        store(scale_G + g, found.scale);
        store(minimum_G + g, found.minimum);
    }
    // 2. Store in six bits; where plain rounding between the extremes leaves less error in the block, it stays.
    StoredQ4 found, plain;
    store_q4(x_W, scale_G, minimum_G, false, found);
    store_q4(x_W, plain_scale_G, plain_minimum_G, true, plain);
    if (total_of(plain.error_G, 8) < total_of(found.error_G, 8)) found = plain;
    // 3. Assign the levels.
    uint8_t q_GW[8][32];
    for (int g = 0; g < 8; g += lanes) {
        const Lanes inverted = inverse(found.d * load(found.scale_G + g));
        const Lanes minimum = found.m * load(found.minimum_G + g);
        for (int w = 0; w < 32; ++w) {
            const Lanes q = nearest_q4(x_W[g / lanes * 32 + w], inverted, minimum);
            for (int lane = 0; lane < lanes; ++lane) q_GW[g + lane][w] = static_cast<uint8_t>(q[lane]);
        }
    }
    // 4. Pack: two halves; twelve bytes of scales and minima; pairs of sub-blocks.
    put_half(out, found.d);
    put_half(out + 2, found.m);
    for (int g = 0; g < 4; ++g) {
        const int scale = static_cast<int>(found.scale_G[g]), later_scale = static_cast<int>(found.scale_G[g + 4]);
        const int minimum = static_cast<int>(found.minimum_G[g]), later = static_cast<int>(found.minimum_G[g + 4]);
        out[4 + g] = static_cast<uint8_t>(scale | later_scale >> 4 << 6);
        out[8 + g] = static_cast<uint8_t>(minimum | later >> 4 << 6);
        out[12 + g] = static_cast<uint8_t>((later_scale & 15) | (later & 15) << 4);
    }
    for (int g = 0; g < 8; g += 2)
        for (int w = 0; w < 32; ++w) out[16 + 16 * g + w] = static_cast<uint8_t>(q_GW[g][w] | q_GW[g + 1][w] << 4);
}

static inline void quantise_row_q4_k(const float* x_K, int64_t K, uint8_t* out) {
    for (int64_t k = 0; k < K; k += 256, x_K += 256, out += 144) quantise_block_q4_k(x_K, out);
}

static inline void dequantise_row_q4_k(const uint8_t* row, int64_t K, float* y_K) {
    for (int64_t k = 0; k < K; k += 256, row += 144, y_K += 256) {
        const float d = get_half(row), m = get_half(row + 2);
        for (int g = 0; g < 8; ++g) {
            const int scale = g < 4 ? row[4 + g] & 63 : (row[8 + g] & 15) | row[g] >> 6 << 4;
            const int minimum = g < 4 ? row[8 + g] & 63 : row[8 + g] >> 4 | row[4 + g] >> 6 << 4;
            // A half times six bits, then four: 21 bits, exact in float32, so fusing changes nothing.
            const float whole_scale = d * static_cast<float>(scale), whole_minimum = m * static_cast<float>(minimum);
            const uint8_t* q_W = row + 16 + 32 * (g / 2);
            const int shift = 4 * (g & 1);
            for (int w = 0; w < 32; ++w)
                y_K[32 * g + w] = whole_scale * static_cast<float>(q_W[w] >> shift & 15) - whole_minimum;
        }
    }
}

// --- Q6_K ------------------------------------------------------------------------------------------------------------
// Sixteen sub-blocks of 16 values: x = d scale (q - 32).

static inline Lanes nearest_q6(Lanes x, Lanes inverse_scale) { return nearest(clip(x * inverse_scale, -32.0f, 31.0f)); }

// The value of largest magnitude, sign and all, is tried as the levels -27, -27.5 ... -33; each assignment fits its own
// scale, and the best is returned.
static inline Lanes search_q6(const Lanes* x_W, Lanes extreme) {
    Lanes best{}, best_error = all(float_of(0x7f800000u));
    for (int level = 0; level < 13; ++level) {
        const Lanes scale = extreme / (-27.0f - 0.5f * static_cast<float>(level)), inverted = inverse(scale);
        Lanes sum_qq{}, sum_rq{}, sum_rr{};
        for (int w = 0; w < 16; ++w) {
            const Lanes q = nearest_q6(x_W[w], inverted);
            const Lanes r = x_W[w] - scale * q;
            sum_qq += q * q;
            sum_rq += r * q;
            sum_rr += r * r;
        }
        const Lanes step = sum_rq / larger(sum_qq, all(1.0f)), error = sum_rr - step * sum_rq;
        const auto wins = error < best_error;
        best = wins ? scale + step : best;
        best_error = wins ? error : best_error;
    }
    return best;
}

struct StoredQ6 {
    float d, scale_G[16], error_G[16];
};

// Round scales to whole numbers of a common float16, and keep the best of their neighbours; `plain` as in store_q4.
static inline void store_q6(const Lanes* x_W, const float* scale_G, bool plain, StoredQ6& best) {
    float largest = magnitude(scale_G[0]);
    for (int g = 1; g < 16; ++g) largest = larger(largest, magnitude(scale_G[g]));
    best.d = block_scale(largest, 127.0f, !plain);
    const Lanes d = all(best.d);
    for (int g = 0; g < 16; g += lanes, x_W += 16) {
        const Lanes first = multiple(load(scale_G + g), d, -127.0f, 127.0f);
        Lanes kept = first, kept_error = all(float_of(0x7f800000u));
        for (int tried = 0; tried < (plain ? 1 : 3); ++tried) {
            const Lanes stored = clip(first + neighbours[tried], -127.0f, 127.0f);
            const Lanes scale = d * stored, inverted = inverse(scale);
            Lanes error{};
            for (int w = 0; w < 16; ++w) {
                const Lanes r = x_W[w] - scale * nearest_q6(x_W[w], inverted);
                error += r * r;
            }
            const auto wins = error < kept_error;
            kept = wins ? stored : kept;
            kept_error = wins ? error : kept_error;
        }
        store(best.scale_G + g, kept);
        store(best.error_G + g, kept_error);
    }
}

static inline void quantise_block_q6_k(const float* x_K, uint8_t* out) {
    Lanes x_W[16 / lanes * 16];
    side_by_side(x_K, 16, 16, x_W);
    // 1. Search, a vector of sub-blocks at a time.
    float scale_G[16], plain_G[16];
    for (int g = 0; g < 16; g += lanes) {
        const Lanes* mine_W = x_W + g / lanes * 16;
        Lanes low = mine_W[0], high = mine_W[0];
        for (int w = 1; w < 16; ++w) low = smaller(mine_W[w], low), high = larger(mine_W[w], high);
        const Lanes extreme = -low > high ? low : high;
        store(plain_G + g, extreme / -32.0f);
        store(scale_G + g, search_q6(mine_W, extreme));
    }
    // 2. Store; plain rounding, the extreme at -32, stays where it leaves less error in the block.
    StoredQ6 found, plain;
    store_q6(x_W, scale_G, false, found);
    store_q6(x_W, plain_G, true, plain);
    if (total_of(plain.error_G, 16) < total_of(found.error_G, 16)) found = plain;
    // 3. Assign the levels.
    uint8_t q_K[256];
    for (int g = 0; g < 16; g += lanes) {
        const Lanes inverted = inverse(found.d * load(found.scale_G + g));
        for (int w = 0; w < 16; ++w) {
            const Lanes q = nearest_q6(x_W[g / lanes * 16 + w], inverted) + 32.0f;
            for (int lane = 0; lane < lanes; ++lane) q_K[16 * (g + lane) + w] = static_cast<uint8_t>(q[lane]);
        }
    }
    // 4. Pack: low four bits, high two, scales, d.
    for (int half = 0; half < 2; ++half) {
        const uint8_t* q = q_K + 128 * half;
        uint8_t* low = out + 64 * half;
        uint8_t* high = out + 128 + 32 * half;
        for (int w = 0; w < 64; ++w) low[w] = static_cast<uint8_t>((q[w] & 15) | (q[w + 64] & 15) << 4);
        for (int w = 0; w < 32; ++w)
            high[w] = static_cast<uint8_t>(q[w] >> 4 | q[w + 32] >> 4 << 2 | q[w + 64] >> 4 << 4 | q[w + 96] >> 4 << 6);
    }
    for (int g = 0; g < 16; ++g) out[192 + g] = static_cast<uint8_t>(static_cast<int8_t>(found.scale_G[g]));
    put_half(out + 208, found.d);
}

static inline void quantise_row_q6_k(const float* x_K, int64_t K, uint8_t* out) {
    for (int64_t k = 0; k < K; k += 256, x_K += 256, out += 210) quantise_block_q6_k(x_K, out);
}

static inline void dequantise_row_q6_k(const uint8_t* row, int64_t K, float* y_K) {
    for (int64_t k = 0; k < K; k += 256, row += 210, y_K += 256) {
        const float d = get_half(row + 208);
        for (int g = 0; g < 16; ++g) {
            const float scale = d * static_cast<float>(static_cast<int8_t>(row[192 + g]));
            const int half = g / 8, within = 16 * (g % 8);  // where the sub-block begins in its half of 128 values
            const uint8_t* low = row + 64 * half + within % 64;
            const uint8_t* high = row + 128 + 32 * half + within % 32;
            const int low_shift = within / 64 * 4, high_shift = within / 32 * 2;
            for (int w = 0; w < 16; ++w) {
                const int q = (low[w] >> low_shift & 15) | (high[w] >> high_shift & 3) << 4;
                y_K[16 * g + w] = scale * static_cast<float>(q - 32);
            }
        }
    }
}

}  // namespace quant

// What the extension calls; each is (row of K floats, K, row of blocks) or back.
using quant::dequantise_row_q4_0;
using quant::dequantise_row_q4_k;
using quant::dequantise_row_q6_k;
using quant::dequantise_row_q8_0;
using quant::quantise_row_q4_0;
using quant::quantise_row_q4_k;
using quant::quantise_row_q6_k;
using quant::quantise_row_q8_0;

}  // namespace CUEVA_ISA
