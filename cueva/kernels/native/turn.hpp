// Sixteen rows of sixteen dwords, turned: what was row by row becomes column by column.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(CUEVA_ISA_AVX2) || (defined(CUEVA_ISA_AVX512) && !defined(CUEVA_SIMDE))
#include <immintrin.h>
#define CUEVA_TURN_AVX2 1
#endif

namespace CUEVA_ISA {

#if defined(CUEVA_TURN_AVX2)

// Eight rows of eight dwords, to lines `stride` dwords apart.
static inline void turn8(const uint32_t* from, int64_t from_stride, uint32_t* to, int64_t to_stride) {
    __m256 r[8], t[8];
    for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(from + i * from_stride));
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(reinterpret_cast<float*>(to + i * to_stride), _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(reinterpret_cast<float*>(to + (i + 4) * to_stride), _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

static inline void turn16(const uint32_t* from, int64_t from_stride, uint32_t* to) {
    turn8(from, from_stride, to, 16);
    turn8(from + 8, from_stride, to + 128, 16);
    turn8(from + 8 * from_stride, from_stride, to + 8, 16);
    turn8(from + 8 * from_stride + 8, from_stride, to + 136, 16);
}

#else

static inline void turn16(const uint32_t* from, int64_t from_stride, uint32_t* to) {
    for (int word = 0; word < 16; ++word)
        for (int row = 0; row < 16; ++row) memcpy(to + word * 16 + row, from + row * from_stride + word, 4);
}

#endif

}  // namespace CUEVA_ISA
