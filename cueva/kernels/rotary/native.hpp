// Rotary turns of one head's rotary part (reference: cueva/model/rotary.py).

#pragma once

#include "../native/simd.hpp"

namespace CUEVA_ISA {

// Cosines and sines of one position: (R/2) each.
static void rotation_at(int64_t position, const float* inv_freq, int64_t pairs, float factor, float* cos_J, float* sin_J) {
    for (int64_t j = 0; j < pairs; ++j) {
        const float angle = static_cast<float>(position) * inv_freq[j];
        cos_J[j] = cosf(angle) * factor;
        sin_J[j] = sinf(angle) * factor;
    }
}

// (a, b) to (a cos - b sin, b cos + a sin); pairs are neighbours (interleave) or halves. `out` may be `x`.
static inline void rotate(const float* x, int64_t pairs, bool interleave, const float* cos_J, const float* sin_J, float* out) {
    for (int64_t j = 0; j < pairs; ++j) {
        const int64_t first = interleave ? 2 * j : j, second = interleave ? 2 * j + 1 : j + pairs;
        const float a = x[first], b = x[second];
        out[first] = a * cos_J[j] - b * sin_J[j];
        out[second] = b * cos_J[j] + a * sin_J[j];
    }
}

}  // namespace CUEVA_ISA
