// The router's choice for one row, and the rows of each expert (reference: reference.py beside this file).

#pragma once

#include <cmath>

#include "../native/plan.hpp"
#include "../native/simd.hpp"

namespace CUEVA_ISA {

// Indices of the `count` largest values, best first, ties to the lower index. Values are overwritten.
static inline void best(float* value, int64_t size, int64_t count, int32_t* out) {
    for (int64_t i = 0; i < count; ++i) {
        int64_t winner = -1;
        for (int64_t e = 0; e < size; ++e)
            if (value[e] == value[e] && (winner < 0 || value[e] > value[winner])) winner = e;
        if (winner < 0) winner = i;  // nothing but NaN: any choice is as good
        out[i] = static_cast<int32_t>(winner);
        value[winner] = NAN;
    }
}

// Room for scores and choices of E experts, two numbers and a place in the order for each of at most E groups.
static inline int64_t route_scratch_floats(int64_t experts) { return 5 * experts + 64; }

// One row. `scratch` has `route_scratch_floats`; experts and weights of the row go to expert_K, weight_K.
static void route_row(const cueva::Router& router, const float* logit_E, float* scratch, int32_t* expert_K,
                      float* weight_K) {
    const int64_t experts = router.experts, groups = router.groups;
    float *score = scratch, *choice = scratch + experts, *group = choice + experts;

    // 1. Scores.
    if (router.softmax) {
        float most = logit_E[0], total = 0.0f;
        for (int64_t e = 1; e < experts; ++e) most = logit_E[e] > most ? logit_E[e] : most;
        for (int64_t e = 0; e < experts; ++e) total += score[e] = expf(logit_E[e] - most);
        for (int64_t e = 0; e < experts; ++e) score[e] /= total;
    } else {
        for (int64_t e = 0; e < experts; ++e) score[e] = 1.0f / (1.0f + expf(-logit_E[e]));
    }

    // 2. The choice, and only the choice, sees the bias.
    for (int64_t e = 0; e < experts; ++e) choice[e] = router.bias ? score[e] + router.bias[e] : score[e];

    // 3. Keep the best groups; the others are minus infinity.
    if (groups > 1) {
        const int64_t size = experts / groups;
        for (int64_t g = 0; g < groups; ++g) {
            const float* member = choice + g * size;
            float first = -INFINITY, second = -INFINITY;
            for (int64_t e = 0; e < size; ++e) {
                if (member[e] > first) {
                    second = first;
                    first = member[e];
                } else if (member[e] > second) {
                    second = member[e];
                }
            }
            group[g] = router.group_by_two ? first + second : first;
        }
        float* kept = group + groups;
        for (int64_t g = 0; g < groups; ++g) kept[g] = 0.0f;
        int32_t* order = reinterpret_cast<int32_t*>(kept + groups);
        best(group, groups, router.groups_kept, order);
        for (int64_t i = 0; i < router.groups_kept; ++i) kept[order[i]] = 1.0f;
        for (int64_t e = 0; e < experts; ++e)
            if (kept[e / size] == 0.0f) choice[e] = -INFINITY;
    }

    // 4. The best experts, weighed by their scores.
    best(choice, experts, router.chosen, expert_K);
    float total = 0.0f;
    for (int64_t k = 0; k < router.chosen; ++k) total += weight_K[k] = score[expert_K[k]];
    for (int64_t k = 0; k < router.chosen; ++k) {
        if (router.normalise) weight_K[k] /= total + 1e-20f;
        weight_K[k] *= router.scale;
    }
}

// Rows sorted by expert. Slot s of the sorted list is row row[s] with weight weight[s]; expert e has slots
// [first[e], first[e + 1]), of which the first decode[e] are decode rows.
struct ExpertRows {
    int32_t* first;   // (E + 1)
    int32_t* decode;  // (E)
    int32_t* row;     // (T K)
    float* weight;    // (T K)
};

static void group_rows(const int32_t* expert_TK, const float* weight_TK, int64_t rows, int64_t decode_rows,
                       int64_t chosen, int64_t experts, const ExpertRows& to) {
    for (int64_t e = 0; e <= experts; ++e) to.first[e] = 0;
    for (int64_t e = 0; e < experts; ++e) to.decode[e] = 0;
    for (int64_t i = 0; i < rows * chosen; ++i) ++to.first[expert_TK[i] + 1];
    for (int64_t e = 0; e < experts; ++e) to.first[e + 1] += to.first[e];
    for (int64_t t = 0; t < rows; ++t)
        for (int64_t k = 0; k < chosen; ++k) {
            const int32_t e = expert_TK[t * chosen + k];
            const int32_t slot = to.first[e]++;  // moved back below
            to.row[slot] = static_cast<int32_t>(t);
            to.weight[slot] = weight_TK[t * chosen + k];
            to.decode[e] += t < decode_rows;
        }
    for (int64_t e = experts; e > 0; --e) to.first[e] = to.first[e - 1];
    to.first[0] = 0;
}

}  // namespace CUEVA_ISA
