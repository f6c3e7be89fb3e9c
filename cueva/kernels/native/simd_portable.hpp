// Sixteen lanes in plain C++ with GCC's and Clang's vector types: any processor, SSE2 and NEON among them.

#pragma once

namespace CUEVA_ISA {

constexpr int kMatvecRows = 2;
constexpr int kGemmRows = 4;
constexpr bool kBf16Dot = false;

typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourInt __attribute__((vector_size(16)));

struct F32x16 { Four v[4]; };
struct I32x16 { FourInt v[4]; };
struct S8x64 { int8_t v[64]; };
struct U8x64 { uint8_t v[64]; };

#define CUEVA_EACH for (int i = 0; i < 4; ++i)

static inline F32x16 splat(float x) { F32x16 r; CUEVA_EACH r.v[i] = Four{x, x, x, x}; return r; }
static inline F32x16 zero() { return splat(0.0f); }
static inline F32x16 load(const float* p) { F32x16 r; memcpy(&r, p, 64); return r; }
static inline void store(float* p, F32x16 x) { memcpy(p, &x, 64); }
static inline F32x16 add(F32x16 x, F32x16 y) { F32x16 r; CUEVA_EACH r.v[i] = x.v[i] + y.v[i]; return r; }
static inline F32x16 sub(F32x16 x, F32x16 y) { F32x16 r; CUEVA_EACH r.v[i] = x.v[i] - y.v[i]; return r; }
static inline F32x16 mul(F32x16 x, F32x16 y) { F32x16 r; CUEVA_EACH r.v[i] = x.v[i] * y.v[i]; return r; }
static inline F32x16 div(F32x16 x, F32x16 y) { F32x16 r; CUEVA_EACH r.v[i] = x.v[i] / y.v[i]; return r; }
static inline F32x16 max(F32x16 x, F32x16 y) { F32x16 r; CUEVA_EACH r.v[i] = x.v[i] > y.v[i] ? x.v[i] : y.v[i]; return r; }
static inline F32x16 min(F32x16 x, F32x16 y) { F32x16 r; CUEVA_EACH r.v[i] = x.v[i] < y.v[i] ? x.v[i] : y.v[i]; return r; }
static inline F32x16 fma(F32x16 x, F32x16 y, F32x16 z) { F32x16 r; CUEVA_EACH r.v[i] = x.v[i] * y.v[i] + z.v[i]; return r; }
static inline F32x16 absolute(F32x16 x) {
    F32x16 r;
    CUEVA_EACH r.v[i] = (Four)((FourInt)x.v[i] & FourInt{0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff});
    return r;
}
// Adding and taking away 1.5 * 2^23 leaves the nearest whole number, for |x| < 2^22.
static inline F32x16 round(F32x16 x) { const F32x16 magic = splat(12582912.0f); return sub(add(x, magic), magic); }
static inline F32x16 scale_by_power(F32x16 x, F32x16 n) {
    F32x16 r;
    CUEVA_EACH {
        const FourInt whole = __builtin_convertvector(n.v[i], FourInt);
        r.v[i] = x.v[i] * (Four)((whole + 127) << 23);
    }
    return r;
}
static inline F32x16 where_greater(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
    F32x16 r;
    CUEVA_EACH r.v[i] = a.v[i] > b.v[i] ? x.v[i] : y.v[i];
    return r;
}
static inline bool any_greater(F32x16 a, F32x16 b) {
    FourInt any = {0, 0, 0, 0};
    CUEVA_EACH any |= a.v[i] > b.v[i];
    return any[0] || any[1] || any[2] || any[3];
}

// --- stored formats to float32 ---

static inline void load_bf16_pairs(const uint8_t* p, F32x16& even, F32x16& odd) {
    I32x16 w;
    memcpy(&w, p, 64);
    CUEVA_EACH {
        even.v[i] = (Four)(w.v[i] << 16);
        odd.v[i] = (Four)(w.v[i] & FourInt{-65536, -65536, -65536, -65536});
    }
}
static inline F32x16 load_bf16(const uint16_t* p) {
    uint32_t w[16];
    for (int i = 0; i < 16; ++i) w[i] = static_cast<uint32_t>(p[i]) << 16;
    F32x16 r;
    memcpy(&r, w, 64);
    return r;
}
static inline float half_to_float(uint16_t half);
static inline F32x16 load_f16(const uint8_t* p) {
    float w[16];
    for (int i = 0; i < 16; ++i) {
        uint16_t half;
        memcpy(&half, p + 2 * i, 2);
        w[i] = half_to_float(half);
    }
    return load(w);
}
// 16 e4m3 codes, times 2^-8; see simd_avx2.hpp.
static inline F32x16 load_e4m3(const uint8_t* p) {
    float w[16];
    for (int i = 0; i < 16; ++i) w[i] = half_to_float(static_cast<uint16_t>((p[i] & 0x80) << 8 | (p[i] & 0x7f) << 7));
    return load(w);
}
static inline F32x16 load_u8(const uint8_t* p) {
    float w[16];
    for (int i = 0; i < 16; ++i) w[i] = static_cast<float>(p[i]);
    return load(w);
}
static inline F32x16 load_s8(const uint8_t* p) {
    float w[16];
    for (int i = 0; i < 16; ++i) w[i] = static_cast<float>(static_cast<int8_t>(p[i]));
    return load(w);
}

// --- integers ---

static inline I32x16 isplat(int32_t x) { I32x16 r; CUEVA_EACH r.v[i] = FourInt{x, x, x, x}; return r; }
static inline I32x16 izero() { return isplat(0); }
static inline I32x16 iadd(I32x16 x, I32x16 y) { I32x16 r; CUEVA_EACH r.v[i] = x.v[i] + y.v[i]; return r; }
static inline F32x16 to_float(I32x16 x) { F32x16 r; CUEVA_EACH r.v[i] = __builtin_convertvector(x.v[i], Four); return r; }
static inline void store_s8(int8_t* p, F32x16 x) {
    float w[16];
    store(w, round(x));
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(w[i]);
}
static inline S8x64 load_s8x64(const uint8_t* p) { S8x64 r; memcpy(&r, p, 64); return r; }
static inline U8x64 load_u8x64(const uint8_t* p) { U8x64 r; memcpy(&r, p, 64); return r; }
template <int Shift>
static inline U8x64 bits(U8x64 w, int mask) {
    U8x64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>((w.v[i] >> Shift) & mask);
    return r;
}
static inline U8x64 join_bits(U8x64 low, U8x64 high) {
    U8x64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>(low.v[i] | high.v[i] << 4);
    return r;
}

// Byte j of each of the sixteen groups of four, as float32.
static inline F32x16 unsigned_column(const U8x64& w, int j) {
    float v[16];
    for (int row = 0; row < 16; ++row) v[row] = static_cast<float>(w.v[4 * row + j]);
    return load(v);
}
static inline F32x16 signed_column(const S8x64& w, int j) {
    float v[16];
    for (int row = 0; row < 16; ++row) v[row] = static_cast<float>(w.v[4 * row + j]);
    return load(v);
}

template <class Bytes>
static inline void dot_four(int32_t (&total)[16], const Bytes& w, int32_t x4) {
    int8_t x[4];
    memcpy(x, &x4, 4);
    for (int row = 0; row < 16; ++row)
        total[row] += w.v[4 * row] * x[0] + w.v[4 * row + 1] * x[1] + w.v[4 * row + 2] * x[2] + w.v[4 * row + 3] * x[3];
}
struct SignedDot {
    int32_t total[16] = {};
    inline void add(const S8x64& w, int32_t x4) { dot_four(total, w, x4); }
    inline I32x16 finish(int32_t) const { I32x16 r; memcpy(&r, total, 64); return r; }
};
struct UnsignedDot {
    int32_t total[16] = {};
    inline void add(const U8x64& w, int32_t x4) { dot_four(total, w, x4); }
    inline I32x16 finish() const { I32x16 r; memcpy(&r, total, 64); return r; }
};

#undef CUEVA_EACH

}  // namespace CUEVA_ISA
