// The threads of a step: one OpenMP region around all of it, contiguous shares, barriers between sub-blocks.

#pragma once

#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace CUEVA_ISA {

#if defined(_OPENMP)
static inline int thread_number() { return omp_get_thread_num(); }
static inline int team_size() { return omp_get_num_threads(); }
#else
static inline int thread_number() { return 0; }
static inline int team_size() { return 1; }
#endif

// A sub-block of a step: a function of its own in the binary too, so that a profiler can name it.
#define CUEVA_PHASE static __attribute__((noinline)) void

struct Range {
    int64_t first, stop;
};

struct Team {
    int thread, threads;

    // This thread's share of `count` equal units; shares are contiguous and differ by one at most.
    inline Range share(int64_t count) const { return {count * thread / threads, count * (thread + 1) / threads}; }

    static inline void barrier() {
#pragma omp barrier
    }
};

// The part of `whole` that lies in a list of units which starts at `offset`; for walking several lists as one.
static inline Range within(const Range& whole, int64_t offset, int64_t count) {
    const int64_t first = whole.first > offset ? whole.first - offset : 0;
    const int64_t stop = whole.stop - offset < count ? whole.stop - offset : count;
    return {first, stop > first ? stop : first};
}

}  // namespace CUEVA_ISA
