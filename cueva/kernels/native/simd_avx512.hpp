// Sixteen lanes as one AVX-512 register (F, BW, VL, DQ); with CUEVA_ISA_BF16 also BF16, VNNI and VBMI.

#pragma once

#if defined(CUEVA_SIMDE)  // emulation, for testing on processors without these instructions
#include "simd_emulated.hpp"
#else
#include <immintrin.h>
#endif

namespace CUEVA_ISA {

constexpr int kMatvecRows = 8;
constexpr int kGemmRows = 16;
#if defined(CUEVA_ISA_BF16)
constexpr bool kBf16Dot = true;
#else
constexpr bool kBf16Dot = false;
#endif

struct F32x16 { __m512 v; };
struct I32x16 { __m512i v; };
struct S8x64 { __m512i v; };
struct U8x64 { __m512i v; };

static inline F32x16 zero() { return {_mm512_setzero_ps()}; }
static inline F32x16 splat(float x) { return {_mm512_set1_ps(x)}; }
static inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, F32x16 x) { _mm512_storeu_ps(p, x.v); }
static inline F32x16 add(F32x16 x, F32x16 y) { return {_mm512_add_ps(x.v, y.v)}; }
static inline F32x16 sub(F32x16 x, F32x16 y) { return {_mm512_sub_ps(x.v, y.v)}; }
static inline F32x16 mul(F32x16 x, F32x16 y) { return {_mm512_mul_ps(x.v, y.v)}; }
static inline F32x16 div(F32x16 x, F32x16 y) { return {_mm512_div_ps(x.v, y.v)}; }
static inline F32x16 max(F32x16 x, F32x16 y) { return {_mm512_max_ps(x.v, y.v)}; }
static inline F32x16 min(F32x16 x, F32x16 y) { return {_mm512_min_ps(x.v, y.v)}; }
static inline F32x16 fma(F32x16 x, F32x16 y, F32x16 z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
static inline F32x16 absolute(F32x16 x) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff)))};
}
static inline F32x16 round(F32x16 x) { return {_mm512_roundscale_ps(x.v, 0)}; }
static inline F32x16 scale_by_power(F32x16 x, F32x16 n) { return {_mm512_scalef_ps(x.v, n.v)}; }
static inline F32x16 where_greater(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), y.v, x.v)};
}
static inline bool any_greater(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) != 0; }

// --- stored formats to float32 ---

static inline void load_bf16_pairs(const uint8_t* p, F32x16& even, F32x16& odd) {
    const __m512i w = _mm512_loadu_si512(p);
    even = {_mm512_castsi512_ps(_mm512_slli_epi32(w, 16))};
    odd = {_mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
static inline F32x16 load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
static inline F32x16 load_f16(const uint8_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// 16 e4m3 codes, times 2^-8; see simd_avx2.hpp.
static inline F32x16 load_e4m3(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
    const __m256i rest = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7);
    return {_mm512_cvtph_ps(_mm256_or_si256(sign, rest))};
}
static inline F32x16 load_u8(const uint8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
static inline F32x16 load_s8(const uint8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

// --- integers ---

static inline I32x16 izero() { return {_mm512_setzero_si512()}; }
static inline I32x16 isplat(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline I32x16 iadd(I32x16 x, I32x16 y) { return {_mm512_add_epi32(x.v, y.v)}; }
static inline F32x16 to_float(I32x16 x) { return {_mm512_cvtepi32_ps(x.v)}; }
static inline void store_s8(int8_t* p, F32x16 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x.v)));
}
static inline S8x64 load_s8x64(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline U8x64 load_u8x64(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int Shift>
static inline U8x64 bits(U8x64 w, int mask) {
    return {_mm512_and_si512(_mm512_srli_epi16(w.v, Shift), _mm512_set1_epi8(static_cast<char>(mask)))};
}
static inline U8x64 join_bits(U8x64 low, U8x64 high) {
    return {_mm512_or_si512(low.v, _mm512_slli_epi16(high.v, 4))};
}

// Byte j of each of the sixteen groups of four, as float32.
static inline F32x16 unsigned_column(U8x64 w, int j) {
    const __m512i byte = _mm512_and_si512(_mm512_srl_epi32(w.v, _mm_cvtsi32_si128(8 * j)), _mm512_set1_epi32(255));
    return {_mm512_cvtepi32_ps(byte)};
}
static inline F32x16 signed_column(S8x64 w, int j) {
    const __m512i top = _mm512_sll_epi32(w.v, _mm_cvtsi32_si128(24 - 8 * j));
    return {_mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24))};
}

#if defined(CUEVA_ISA_BF16)

// u8 x s8 with int32 sums in one instruction; signed weights go in as w + 128, corrected by 128 times the sum of x.
struct SignedDot {
    __m512i total = _mm512_setzero_si512();
    inline void add(S8x64 w, int32_t x4) {
        total = _mm512_dpbusd_epi32(total, _mm512_xor_si512(w.v, _mm512_set1_epi8(-128)), _mm512_set1_epi32(x4));
    }
    inline I32x16 finish(int32_t sum_x) const { return {_mm512_sub_epi32(total, _mm512_set1_epi32(128 * sum_x))}; }
};
struct UnsignedDot {
    __m512i total = _mm512_setzero_si512();
    inline void add(U8x64 w, int32_t x4) { total = _mm512_dpbusd_epi32(total, w.v, _mm512_set1_epi32(x4)); }
    inline I32x16 finish() const { return {total}; }
};

// Two columns at once: acc += even * x_even + odd * x_odd, on the bf16 pairs as they are stored.
static inline F32x16 dot_bf16(F32x16 acc, __m512i w, uint32_t x2) {
    return {_mm512_dpbf16_ps(acc.v, (__m512bh)w, (__m512bh)_mm512_set1_epi32(static_cast<int>(x2)))};
}

// The high bytes of bf16 numbers for the 128 codes of e4m3 without sign, their low bytes, and an order of bytes.
struct E4m3Bytes {
    alignas(64) uint8_t high[128], low[128], order[64];
    constexpr E4m3Bytes() : high(), low(), order() {
        for (int code = 0; code < 128; ++code) {
            int exponent = code >> 3, fraction = code & 7;  // (1 + fraction / 8) 2^(exponent - 7), times 2^-8
            if (exponent == 0 && fraction) {                // fraction 2^-9, times 2^-8: as a normal number
                for (exponent = 1; fraction < 8; --exponent) fraction *= 2;
                fraction -= 8;
            }
            const int bf16 = code ? (exponent + 127 - 7 - 8) << 7 | fraction << 4 : 0;
            high[code] = static_cast<uint8_t>(bf16 >> 8);
            low[code] = static_cast<uint8_t>(bf16 & 255);
        }
        // From 4 columns x 16 rows to, in each of 4 lanes, 4 rows x columns (0, 1), then 4 rows x columns (2, 3).
        for (int lane = 0; lane < 4; ++lane)
            for (int i = 0; i < 16; ++i) {
                const int row = lane * 4 + i % 8 / 2, column = i / 8 * 2 + i % 2;
                order[lane * 16 + i] = static_cast<uint8_t>(column * 16 + row);
            }
    }
};
static constexpr E4m3Bytes e4m3_bytes;

// e4m3 codes to bf16 by table, the sign put back. Exact, subnormals too; values are times 2^-8 as in `load_e4m3`, so that
// one stored scale serves every instruction set.
struct E4m3Table {
    __m512i high[2], low[2], interleave;
    E4m3Table() {
        for (int half = 0; half < 2; ++half) {
            high[half] = _mm512_load_si512(e4m3_bytes.high + half * 64);
            low[half] = _mm512_load_si512(e4m3_bytes.low + half * 64);
        }
        interleave = _mm512_load_si512(e4m3_bytes.order);
    }
    // 64 codes, four columns of sixteen rows, as two vectors of bf16 pairs: columns (0, 1) and (2, 3).
    inline void pairs(const uint8_t* codes, __m512i& first, __m512i& second) const {
        const __m512i c = _mm512_permutexvar_epi8(interleave, _mm512_loadu_si512(codes));
        const __m512i sign = _mm512_and_si512(c, _mm512_set1_epi8(-128));
        const __m512i hi = _mm512_or_si512(_mm512_permutex2var_epi8(high[0], c, high[1]), sign);
        const __m512i lo = _mm512_permutex2var_epi8(low[0], c, low[1]);
        first = _mm512_unpacklo_epi8(lo, hi);
        second = _mm512_unpackhi_epi8(lo, hi);
    }
};

#else

// Without VNNI: |w| as unsigned and x with the sign of w, as in simd_avx2.hpp; a mask takes the place of vpsignb.
struct SignedDot {
    __m512i total = _mm512_setzero_si512();
    inline void add(S8x64 w, int32_t x4) {
        const __m512i x = _mm512_set1_epi32(x4);
        const __m512i signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w.v), _mm512_setzero_si512(), x);
        const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w.v), signed_x);
        total = _mm512_add_epi32(total, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
    inline I32x16 finish(int32_t) const { return {total}; }
};
struct UnsignedDot {
    __m512i pairs = _mm512_setzero_si512();
    inline void add(U8x64 w, int32_t x4) {
        pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(w.v, _mm512_set1_epi32(x4)));
    }
    inline I32x16 finish() const { return {_mm512_madd_epi16(pairs, _mm512_set1_epi16(1))}; }
};

#endif

}  // namespace CUEVA_ISA
