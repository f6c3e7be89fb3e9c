// Root-mean-square norm of one row (reference: cueva/model/norm.py), in float32 throughout.

#pragma once

#include "../native/simd.hpp"

namespace CUEVA_ISA {

// out = x / sqrt(mean(x^2) + eps) * weight. Widths need not divide by sixteen; the tail goes one by one.
static void rms_norm(const float* x, const float* weight, int64_t width, float eps, float* out) {
    F32x16 squares = zero();
    int64_t k = 0;
    for (; k + 16 <= width; k += 16) {
        const F32x16 v = load(x + k);
        squares = fma(v, v, squares);
    }
    float total = sum(squares);
    for (int64_t j = k; j < width; ++j) total += x[j] * x[j];
    const float scale = 1.0f / sqrtf(total / static_cast<float>(width) + eps);
    const F32x16 by = splat(scale);
    for (k = 0; k + 16 <= width; k += 16) store(out + k, mul(load(weight + k), mul(load(x + k), by)));
    for (; k < width; ++k) out[k] = weight[k] * (x[k] * scale);
}

}  // namespace CUEVA_ISA
