// Which instruction sets this build has, and which of them this processor runs. CMake defines CUEVA_BUILT_<set>.

#pragma once

#include <vector>

#include "plan.hpp"

extern "C" {
extern const cueva::Kernels cueva_portable;
#if defined(CUEVA_BUILT_AVX2)
extern const cueva::Kernels cueva_avx2;
#endif
#if defined(CUEVA_BUILT_AVX512)
extern const cueva::Kernels cueva_avx512;
#endif
#if defined(CUEVA_BUILT_AVX512BF16)
extern const cueva::Kernels cueva_avx512bf16;
#endif
}

namespace cueva {

struct Built {
    const Kernels* kernels;
    bool runs;
};

inline std::vector<Built> built_with_support() {
    std::vector<Built> all;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
                        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")
                      && __builtin_cpu_supports("avx512vbmi");
#if defined(CUEVA_BUILT_AVX512BF16)
    all.push_back({&cueva_avx512bf16, bf16 || CUEVA_EMULATED});
#endif
#if defined(CUEVA_BUILT_AVX512)
    all.push_back({&cueva_avx512, avx512 || CUEVA_EMULATED});
#endif
#if defined(CUEVA_BUILT_AVX2)
    all.push_back({&cueva_avx2, avx2});
#endif
    (void)avx2, (void)avx512, (void)bf16;
#endif
    all.push_back({&cueva_portable, true});
    return all;
}

inline std::vector<const Kernels*> built_kernels() {
    std::vector<const Kernels*> names;
    for (const Built& one : built_with_support()) names.push_back(one.kernels);
    return names;
}

inline std::vector<const Kernels*> runnable_kernels() {
    std::vector<const Kernels*> names;
    for (const Built& one : built_with_support())
        if (one.runs) names.push_back(one.kernels);
    return names;
}

}  // namespace cueva
