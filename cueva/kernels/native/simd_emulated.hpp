// AVX-512 on processors that do not have it, for tests alone: SIMDe's emulation (the headers simde/x86), and what its
// release 0.7.4 leaves out or names wrongly. Results are those of the instructions to the bit, with one exception:
// dpbf16 rounds after every product and keeps subnormal numbers, where processors round once less and flush them.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

namespace CUEVA_ISA {
namespace emulated {

// Sixteen numbers of one kind into sixteen of another, lane by lane.
template <class Out, class From, class To, class In, class Each>
static inline Out lanes(In x, Each each) {
    From from[16];
    To to[16];
    static_assert(sizeof(from) == sizeof(x) && sizeof(to) == sizeof(Out), "sixteen lanes");
    memcpy(from, &x, sizeof(from));
    for (int i = 0; i < 16; ++i) to[i] = each(from[i]);
    Out out;
    memcpy(&out, to, sizeof(to));
    return out;
}

static inline simde__m512i cvtepi8_epi32(__m128i x) {
    return lanes<simde__m512i, int8_t, int32_t>(x, [](int8_t v) { return static_cast<int32_t>(v); });
}
static inline simde__m512i cvtepu8_epi32(__m128i x) {
    return lanes<simde__m512i, uint8_t, int32_t>(x, [](uint8_t v) { return static_cast<int32_t>(v); });
}
static inline simde__m512i cvtepu16_epi32(__m256i x) {
    return lanes<simde__m512i, uint16_t, int32_t>(x, [](uint16_t v) { return static_cast<int32_t>(v); });
}
static inline simde__m512 cvtepi32_ps(simde__m512i x) {
    return lanes<simde__m512, int32_t, float>(x, [](int32_t v) { return static_cast<float>(v); });
}
static inline simde__m512i cvtps_epi32(simde__m512 x) {  // to nearest, ties to even; what does not fit is the least
    return lanes<simde__m512i, float, int32_t>(x, [](float v) {
        return v >= -2147483648.0f && v < 2147483648.0f ? static_cast<int32_t>(nearbyintf(v)) : INT32_MIN;
    });
}
static inline simde__m512i srai_epi32(simde__m512i x, int by) {
    return lanes<simde__m512i, int32_t, int32_t>(x, [by](int32_t v) { return v >> by; });
}
static inline simde__m512 cvtph_ps(__m256i x) {
    const __m256 halves[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
    simde__m512 out;
    memcpy(&out, halves, sizeof(out));
    return out;
}
static inline __m256i cvtneps_pbh(simde__m512 x) {  // to nearest, ties to even; subnormal numbers to zero
    return lanes<__m256i, uint32_t, uint16_t>(x, [](uint32_t v) {
        const uint32_t size = v & 0x7fffffffu, sign = v & 0x80000000u;
        const uint32_t kept = size > 0x7f800000u ? v | 0x400000u : size < 0x800000u ? sign : v + 0x7fffu + (v >> 16 & 1u);
        return static_cast<uint16_t>(kept >> 16);
    });
}

}  // namespace emulated
}  // namespace CUEVA_ISA

#define _mm512_cvtepi8_epi32(x) emulated::cvtepi8_epi32(x)
#define _mm512_cvtepu8_epi32(x) emulated::cvtepu8_epi32(x)
#define _mm512_cvtepu16_epi32(x) emulated::cvtepu16_epi32(x)
#define _mm512_cvtepi32_ps(x) emulated::cvtepi32_ps(x)
#define _mm512_cvtps_epi32(x) emulated::cvtps_epi32(x)
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps(x) emulated::cvtph_ps(x)
#define _mm512_cvtneps_pbh(x) emulated::cvtneps_pbh(x)
#undef _mm512_madd_epi16  // SIMDe's alias has the arguments of the masked one
#define _mm512_madd_epi16(x, y) simde_mm512_madd_epi16(x, y)
#undef _mm512_srai_epi32
#define _mm512_srai_epi32(x, by) emulated::srai_epi32(x, by)
