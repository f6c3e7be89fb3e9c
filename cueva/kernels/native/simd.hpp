// Sixteen lanes: the vector that every kernel here is written in.
//
// A weight matrix is stored in tiles of sixteen rows, attention puts sixteen queries side by side, so sixteen float32
// lanes are the unit of work on every machine: one register with AVX-512, two with AVX2, four elsewhere. Each
// instruction set brings the same names in its own file; kernels are written once over them and compiled once for each
// set, in a namespace called as the set is (CUEVA_ISA).
//
// What a set has to bring: F32x16 and its arithmetic, I32x16, 64 bytes of weights (S8x64, U8x64), the integer dot
// products over them, and how a stored number format becomes float32.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(CUEVA_ISA_AVX512)
#include "simd_avx512.hpp"
#elif defined(CUEVA_ISA_AVX2)
#include "simd_avx2.hpp"
#else
#include "simd_portable.hpp"
#endif

namespace CUEVA_ISA {

// exp(x), relative error below 2e-7; 0 below -87 and at minus infinity, 1 at 0, and finite at 88 and above.
// 2^n times a polynomial on [-ln2/2, ln2/2] (Taylor to degree 6).
static inline F32x16 exp(F32x16 x) {
    const F32x16 least = splat(-87.0f);
    const F32x16 kept = min(max(x, least), splat(88.0f));
    const F32x16 n = round(mul(kept, splat(1.44269504f)));
    F32x16 r = fma(n, splat(-0.693359375f), kept);
    r = fma(n, splat(2.12194440e-4f), r);
    F32x16 p = splat(1.0f / 720);
    p = fma(p, r, splat(1.0f / 120));
    p = fma(p, r, splat(1.0f / 24));
    p = fma(p, r, splat(1.0f / 6));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
    return where_greater(x, least, scale_by_power(p, n), zero());
}

// x / (1 + exp(-x)).
static inline F32x16 silu(F32x16 x) {
    return div(x, add(splat(1.0f), exp(sub(zero(), x))));
}

static inline float bf16_to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

// Round to nearest, ties to even; a NaN stays one.
static inline uint16_t float_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    uint32_t bits = static_cast<uint32_t>(half & 0x7fffu) << 13;
    float value;
    memcpy(&value, &bits, 4);
    if ((half & 0x7c00u) == 0x7c00u) {  // infinity or NaN: the largest exponent of a float32 too
        bits |= 0x7f800000u;
        memcpy(&value, &bits, 4);
    } else {
        value *= 0x1p112f;  // the exponents' biases differ by 112; a subnormal half becomes a normal float32
    }
    uint32_t out;
    memcpy(&out, &value, 4);
    out |= sign;
    memcpy(&value, &out, 4);
    return value;
}

// The sum of sixteen lanes, in one fixed order: halves folded onto each other.
static inline float sum(F32x16 x) {
    float v[16];
    store(v, x);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; ++i) v[i] += v[i + width];
    return v[0];
}

static inline float largest(F32x16 x) {
    float v[16];
    store(v, x);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; ++i) v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
    return v[0];
}

}  // namespace CUEVA_ISA
