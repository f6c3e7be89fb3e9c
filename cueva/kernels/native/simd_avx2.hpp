// Sixteen lanes as two AVX2 registers (with FMA and F16C).

#pragma once

#include <immintrin.h>

namespace CUEVA_ISA {

constexpr int kMatvecRows = 3;  // tokens that share one pass over a tile: 2 chains x 2 registers each, of 16
constexpr int kGemmRows = 6;
constexpr bool kBf16Dot = false;

struct F32x16 { __m256 a, b; };
struct I32x16 { __m256i a, b; };
struct S8x64 { __m256i a, b; };
struct U8x64 { __m256i a, b; };

static inline F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline F32x16 splat(float x) { const __m256 v = _mm256_set1_ps(x); return {v, v}; }
static inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, F32x16 x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
static inline F32x16 add(F32x16 x, F32x16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline F32x16 sub(F32x16 x, F32x16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline F32x16 mul(F32x16 x, F32x16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline F32x16 div(F32x16 x, F32x16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline F32x16 max(F32x16 x, F32x16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline F32x16 min(F32x16 x, F32x16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline F32x16 absolute(F32x16 x) {
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
static inline F32x16 round(F32x16 x) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}
// x times 2^n, n whole and within the exponents of normal numbers.
static inline F32x16 scale_by_power(F32x16 x, F32x16 n) {
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256i a = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.a), bias), 23);
    const __m256i b = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.b), bias), 23);
    return {_mm256_mul_ps(x.a, _mm256_castsi256_ps(a)), _mm256_mul_ps(x.b, _mm256_castsi256_ps(b))};
}
// Where `a` > `b` take x, else y.
static inline F32x16 where_greater(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
    return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ)),
            _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ))};
}
static inline bool any_greater(F32x16 a, F32x16 b) {
    const __m256 greater = _mm256_or_ps(_mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ), _mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ));
    return _mm256_movemask_ps(greater) != 0;
}

// --- stored formats to float32 ---

// 16 dwords, each the bf16 numbers of two neighbouring columns.
static inline void load_bf16_pairs(const uint8_t* p, F32x16& even, F32x16& odd) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    even = {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
    odd = {_mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high))};
}
static inline F32x16 load_bf16(const uint16_t* p) {
    const __m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i b = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
}
static inline F32x16 load_f16(const uint8_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
}
// 16 e4m3 codes, times 2^-8: the bits of a half whose exponent is biased by 15 instead of 7. Exact, subnormals too; the
// two NaN codes become 480 * 2^-8 and must be refused before.
static inline F32x16 load_e4m3(const uint8_t* p) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), none = _mm_setzero_si128();
    // seeeemmm in a high byte; one place to the right the sign is there twice, and its second copy has to go.
    const __m128i keep = _mm_set1_epi16(static_cast<short>(0xbfff));
    const __m128i low = _mm_and_si128(_mm_srai_epi16(_mm_unpacklo_epi8(none, codes), 1), keep);
    const __m128i high = _mm_and_si128(_mm_srai_epi16(_mm_unpackhi_epi8(none, codes), 1), keep);
    return {_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)};
}
static inline F32x16 load_u8(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8))))};
}
static inline F32x16 load_s8(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8))))};
}

// --- integers ---

static inline I32x16 izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline I32x16 isplat(int32_t x) { const __m256i v = _mm256_set1_epi32(x); return {v, v}; }
static inline I32x16 iadd(I32x16 x, I32x16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline F32x16 to_float(I32x16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
// Sixteen floats, rounded to nearest, as signed bytes.
static inline void store_s8(int8_t* p, F32x16 x) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

static inline S8x64 load_s8x64(const uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
static inline U8x64 load_u8x64(const uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
template <int Shift>
static inline U8x64 bits(U8x64 w, int mask) {  // (w >> Shift) & mask, byte by byte; mask keeps neighbours' bits out
    const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_and_si256(_mm256_srli_epi16(w.a, Shift), m), _mm256_and_si256(_mm256_srli_epi16(w.b, Shift), m)};
}
static inline U8x64 join_bits(U8x64 low, U8x64 high) {  // low | high << 4
    return {_mm256_or_si256(low.a, _mm256_slli_epi16(high.a, 4)), _mm256_or_si256(low.b, _mm256_slli_epi16(high.b, 4))};
}

// Byte j of each of the sixteen groups of four, as float32.
static inline F32x16 unsigned_column(U8x64 w, int j) {
    const __m128i by = _mm_cvtsi32_si128(8 * j);
    const __m256i mask = _mm256_set1_epi32(255);
    return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(w.a, by), mask)),
            _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(w.b, by), mask))};
}
static inline F32x16 signed_column(S8x64 w, int j) {
    const __m128i by = _mm_cvtsi32_si128(24 - 8 * j);
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sll_epi32(w.a, by), 24)),
            _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sll_epi32(w.b, by), 24))};
}

// Signed weights times signed activations, four columns at a time, exact in int32.
// |w| as unsigned and x with the sign of w: two products of at most 128 * 127 fit 16 bits.
struct SignedDot {
    I32x16 total = izero();
    inline void add(S8x64 w, int32_t x4) {
        const __m256i x = _mm256_set1_epi32(x4), ones = _mm256_set1_epi16(1);
        const __m256i a = _mm256_maddubs_epi16(_mm256_abs_epi8(w.a), _mm256_sign_epi8(x, w.a));
        const __m256i b = _mm256_maddubs_epi16(_mm256_abs_epi8(w.b), _mm256_sign_epi8(x, w.b));
        total = iadd(total, {_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones)});
    }
    inline I32x16 finish(int32_t) const { return total; }  // other sets correct by the activations' sum
};

// Unsigned weights. The caller keeps the products summed between `finish` calls below 32768 a pair:
// 8 quads of 4-bit weights (8 * 2 * 15 * 127 = 30480) or 2 of 6-bit ones (2 * 2 * 63 * 127 = 32004).
struct UnsignedDot {
    __m256i a = _mm256_setzero_si256(), b = _mm256_setzero_si256();
    inline void add(U8x64 w, int32_t x4) {
        const __m256i x = _mm256_set1_epi32(x4);
        a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w.a, x));
        b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w.b, x));
    }
    inline I32x16 finish() const {
        const __m256i ones = _mm256_set1_epi16(1);
        return {_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones)};
    }
};

}  // namespace CUEVA_ISA
