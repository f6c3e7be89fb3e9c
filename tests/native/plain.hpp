// Number formats in the plainest words, to hold the kernels against: no tiles, no vectors, one number at a time.
//
// Facts of the formats: E4M3 has 4 bits of exponent (bias 7) and 3 of fraction; a GGUF block of Q8_0 is a float16 scale
// and 32 signed bytes, of Q4_0 a scale and 16 bytes of two 4-bit numbers (offset 8); a super-block of 256 numbers is, for
// Q4_K, two float16 (scale, minimum), 12 bytes of eight 6-bit scales and minima and 128 bytes of 4-bit numbers, and for
// Q6_K, 128 bytes of low halves, 64 bytes of upper two bits, 16 signed scales and a float16 scale.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../../cueva/kernels/native/plan.hpp"

namespace plain {

using cueva::Format;
using Bytes = std::vector<uint8_t>;
using Floats = std::vector<float>;

// The same numbers on every machine: xorshift, and a sum of twelve for something like a normal distribution.
struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15ull + 1) {}
    uint64_t next() {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return state;
    }
    double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
    float normal() {
        double total = -6.0;
        for (int i = 0; i < 12; ++i) total += uniform();
        return static_cast<float>(total);
    }
    Floats normals(int64_t count, float scale = 1.0f) {
        Floats all(count);
        for (float& one : all) one = normal() * scale;
        return all;
    }
};

inline uint32_t bits(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    return b;
}
inline float from_bits(uint32_t b) {
    float x;
    memcpy(&x, &b, 4);
    return x;
}

inline float bf16(uint16_t code) { return from_bits(static_cast<uint32_t>(code) << 16); }
inline uint16_t to_bf16(float x) {  // nearest, ties to even; finite numbers only
    return static_cast<uint16_t>((bits(x) + 0x7fffu + (bits(x) >> 16 & 1)) >> 16);
}
inline float half(uint16_t code) {
    const int exponent = code >> 10 & 31, fraction = code & 1023;
    const double size = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    return static_cast<float>(code >> 15 ? -size : size);
}
inline float half_at(const uint8_t* p) { return half(static_cast<uint16_t>(p[0] | p[1] << 8)); }
inline float e4m3(uint8_t code) {
    const int exponent = code >> 3 & 15, fraction = code & 7;
    const double size = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
    return static_cast<float>(code >> 7 ? -size : size);
}

inline int64_t block_values(Format f) { return f == Format::q8_0 || f == Format::q4_0 ? 32 : 256; }
inline int64_t block_bytes(Format f) {
    return f == Format::q8_0 ? 34 : f == Format::q4_0 ? 18 : f == Format::q4_k ? 144 : 210;
}

// Number `i` of a block.
inline float block_value(Format f, const uint8_t* block, int i) {
    if (f == Format::q8_0) return half_at(block) * static_cast<float>(static_cast<int8_t>(block[2 + i]));
    if (f == Format::q4_0) {
        const int q = i < 16 ? block[2 + i] & 15 : block[2 + i - 16] >> 4;
        return half_at(block) * static_cast<float>(q - 8);
    }
    if (f == Format::q4_k) {
        const int part = i / 32;
        const uint8_t* packed = block + 4;
        const int scale = part < 4 ? packed[part] & 63 : (packed[part + 4] & 15) | packed[part - 4] >> 6 << 4;
        const int minimum = part < 4 ? packed[part + 4] & 63 : packed[part + 4] >> 4 | packed[part] >> 6 << 4;
        const uint8_t pair = block[16 + part / 2 * 32 + i % 32];
        const int q = part % 2 ? pair >> 4 : pair & 15;
        return half_at(block) * static_cast<float>(scale) * static_cast<float>(q)
               - half_at(block + 2) * static_cast<float>(minimum);
    }
    const int side = i / 128, within = i % 128, quarter = within / 32;
    const uint8_t low = block[side * 64 + within % 64], high = block[128 + side * 32 + within % 32];
    const int q = (within < 64 ? low & 15 : low >> 4) | (high >> 2 * quarter & 3) << 4;
    const int scale = static_cast<int8_t>(block[192 + i / 16]);
    return half_at(block + 208) * static_cast<float>(scale) * static_cast<float>(q - 32);
}

// A row of activations as signed bytes with a scale for each 32, and back.
inline Floats through_bytes(const float* x, int64_t columns) {
    Floats out(columns);
    for (int64_t k0 = 0; k0 < columns; k0 += 32) {
        const int64_t stop = k0 + 32 < columns ? k0 + 32 : columns;
        float most = 0.0f;
        for (int64_t k = k0; k < stop; ++k) most = std::fmax(most, std::fabs(x[k]));
        const float by = most > 0.0f ? 127.0f / most : 0.0f, scale = most / 127.0f;
        for (int64_t k = k0; k < stop; ++k) out[k] = std::nearbyint(x[k] * by) * scale;
    }
    return out;
}

inline uint64_t fingerprint(const Bytes& bytes) {  // FNV-1a
    uint64_t hash = 0xcbf29ce484222325ull;
    for (uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001b3ull;
    return hash;
}

}  // namespace plain
