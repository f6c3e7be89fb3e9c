// The expanded form: keys and values of every head are raised from the cached latents, then ordinary attention
// (reference: `attend_expanded` in reference.py). For long prompts, where it needs less arithmetic.
//
// A thread owns whole heads. It raises a thousand keys at a time, so the memory it takes does not grow with the cache, and
// lets sixteen queries at once meet them; nothing of the size queries x keys is ever held.

#pragma once

#include "absorbed.hpp"

namespace CUEVA_ISA {

// A head's key up-projection as (N / 16) tiles of [C][16]: the matrix that is packed for queries, the other way round.
static void turn_key_up(const Matrix& k_up, int64_t nope, int64_t latent, float* wide, float* out) {
    const int64_t padded = round_up(latent, kColumnPad), columns = widened_columns(k_up);
    for (int64_t tile = 0; tile < k_up.tiles(); ++tile)
        for (int64_t n0 = 0; n0 < nope; n0 += 256) {
            const int64_t stop = n0 + 256 < columns ? n0 + 256 : columns;
            widen(k_up, tile, n0, stop, wide);
            for (int64_t n = n0; n < nope && n < stop; ++n)
                for (int64_t r = 0; r < 16 && tile * 16 + r < latent; ++r)
                    out[(n / 16 * padded + tile * 16 + r) * 16 + n % 16] = wide[(n - n0) * 16 + r];
        }
}

// Sixteen results for each of some keys, stored as cells: out = latents W.
static inline void raise_tile(const float* tile, int64_t latent, const float* latents, int64_t stride, int64_t count,
                              float* out, int64_t out_stride, float*) {
    gemm_rows(tile, latent, latents, stride, count, out, out_stride);
}

#if defined(CUEVA_ISA_BF16)
static inline void raise_tile(const float* tile, int64_t latent, const uint16_t* latents, int64_t stride, int64_t count,
                              uint16_t* out, int64_t out_stride, float* results) {
    gemm_rows(tile, latent, latents, stride, count, results, 16);
    for (int64_t key = 0; key < count; ++key)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + key * out_stride),
                            (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(results + key * 16)));
}
#endif

// A head's work on one prompt segment. Cells are float32, or bf16 on processors with a bf16 product.
template <class Cell>
struct HeadOfPrompt {
    const Model& model;
    const cueva::Attention& a;
    const Segment& segment;
    State& st;
    int64_t layer_place;
    float* scratch;

    static constexpr bool pairs = sizeof(Cell) == 2;
    const int64_t fresh = segment.stop - segment.start, groups = (fresh + 15) / 16;
    const int64_t C = a.latent, X = C + a.rope, width = a.nope + a.rope, padded = round_up(C, kColumnPad);
    const int64_t latent_stride = pairs ? X : round_up(X, 16);
    const int64_t key_stride = round_up(width, 16) + 16, value_stride = round_up(a.value, 16);
    const int64_t nope_tiles = (a.nope + 15) / 16, value_tiles = (a.value + 15) / 16;
    float* const wide = scratch;
    float* const scores = wide + kProductScratch;
    float* const latents = scores + kBlock * 16;
    float* const key_up = latents + kBlock * round_up(X, 16);
    float* const value_up = key_up + nope_tiles * padded * 16;
    Cell* const keys = reinterpret_cast<Cell*>(value_up + value_tiles * padded * 16);
    Cell* const values = keys + kRaisedKeys * key_stride;
    float* const queries = reinterpret_cast<float*>(keys) + kRaisedKeys * (key_stride + value_stride);
    float* const mixtures = queries + groups * width * 16;

    Mixture mixture(int64_t g) const { return mixture_at(mixtures + g * mixture_floats(a.value), a.value); }

    // 1. The head's up-projections, widened once for all positions.
    void widen_up(int64_t h) const {
        turn_key_up(a.k_up[h], a.nope, C, wide, key_up);
        for (int64_t tile = 0; tile < value_tiles; ++tile)
            for (int64_t k0 = 0; k0 < padded; k0 += 256) {
                const int64_t stop = k0 + 256 < padded ? k0 + 256 : padded;
                widen(a.v_up[h], tile, k0, stop, value_up + (tile * padded + k0) * 16);
            }
#if defined(CUEVA_ISA_BF16)
        if (pairs)
            for (int64_t tile = 0; tile < nope_tiles + value_tiles; ++tile) round_to_pairs(key_up + tile * padded * 16, padded);
#endif
    }

    // 2. Its queries, sixteen rows to a group.
    void take_queries(int64_t h) const {
        for (int64_t g = 0; g < groups; ++g) {
            float* q_X = queries + g * width * 16;
            for (int64_t lane = 0; lane < 16; ++lane) {
                const int64_t row = g * 16 + lane, t = segment.start + (row < fresh ? row : fresh - 1);
                const float* q = st.q_TY + t * st.q_stride + h * width;
                float turned[512];
                rotate(q + a.nope, a.rope / 2, a.interleave, st.cos_TJ + t * a.rope / 2, st.sin_TJ + t * a.rope / 2, turned);
                for (int64_t k = 0; k < a.nope; ++k) put_query(q_X, k, lane, q[k] * a.scale, pairs);
                for (int64_t r = 0; r < a.rope; ++r) put_query(q_X, a.nope + r, lane, turned[r] * a.scale, pairs);
            }
            clear(mixture(g));
        }
    }

    // 3. Keys and values of positions [first, stop), raised from the cache.
    void raise(int64_t first, int64_t stop) const {
        for (int64_t block = first; block < stop; block += kBlock) {
            const int64_t count = stop - block < kBlock ? stop - block : kBlock;
            const uint8_t* page = segment.pages[block / kPageRows] + layer_place * model.layer_page_bytes();
            const Cell* rows = reinterpret_cast<const Cell*>(latents);
            if constexpr (pairs) {
                rows = reinterpret_cast<const Cell*>(page);
            } else {
                for (int64_t key = 0; key < count; ++key) {
                    float* row = latents + key * latent_stride;
                    if (model.cache_f32) {
                        memcpy(row, reinterpret_cast<const float*>(page) + key * X, X * 4);
                        continue;
                    }
                    const uint16_t* cells = reinterpret_cast<const uint16_t*>(page) + key * X;
                    for (int64_t k = 0; k < X; ++k) row[k] = bf16_to_float(cells[k]);
                }
            }
            const int64_t at = block - first;
            for (int64_t tile = 0; tile < nope_tiles; ++tile)
                raise_tile(key_up + tile * padded * 16, C, rows, latent_stride, count,
                           keys + at * key_stride + tile * 16, key_stride, wide);
            for (int64_t tile = 0; tile < value_tiles; ++tile)
                raise_tile(value_up + tile * padded * 16, C, rows, latent_stride, count,
                           values + at * value_stride + tile * 16, value_stride, wide);
            for (int64_t key = 0; key < count; ++key)
                memcpy(keys + (at + key) * key_stride + a.nope, rows + key * latent_stride + C, a.rope * sizeof(Cell));
        }
    }

    // 4. Every query that may see those positions does.
    void attend(int64_t first, int64_t stop) const {
        for (int64_t g = 0; g < groups; ++g) {
            alignas(64) float limit[16];
            const int64_t last_row = g * 16 + 15 < fresh ? g * 16 + 15 : fresh - 1;
            const int64_t seen = segment.held + last_row + 1 < stop ? segment.held + last_row + 1 : stop;
            for (int64_t lane = 0; lane < 16; ++lane) limit[lane] = static_cast<float>(segment.held + g * 16 + lane + 1);
            for (int64_t block = first; block < seen; block += kBlock) {
                const int64_t count = seen - block < kBlock ? seen - block : kBlock, at = block - first;
                const Rows<Cell> rows = {keys + at * key_stride, key_stride, values + at * value_stride, value_stride};
                attend_block(queries + g * width * 16, width, rows, block, count, limit, mixture(g), scores);
            }
        }
    }

    void run(int64_t h) const {
        widen_up(h);
        take_queries(h);
        const int64_t end = segment.held + fresh;
        for (int64_t first = 0; first < end; first += kRaisedKeys) {  // a thousand keys at a time
            const int64_t stop = first + kRaisedKeys < end ? first + kRaisedKeys : end;
            raise(first, stop);
            attend(first, stop);
        }
        for (int64_t g = 0; g < groups; ++g) {
            float* out[16];
            for (int64_t lane = 0; lane < 16; ++lane) {
                const int64_t row = g * 16 + lane;
                out[lane] = row < fresh ? st.o_TY + (segment.start + row) * st.o_stride + h * value_stride : nullptr;
            }
            finish(mixture(g), a.value, out);
        }
    }
};

CUEVA_PHASE attend_expanded(const Model& model, const Layer& layer, int64_t layer_place, const Batch& batch, State& st,
                            const Team& team) {
    const cueva::Attention& a = layer.attention;
    const bool pairs = pair_cells(model, a.nope + a.rope) && a.latent % 2 == 0;
    float* scratch = reinterpret_cast<float*>(st.scratch[team.thread]);
    const Range heads = team.share(a.heads);
    for (int64_t i = 0; i < batch.segment_count; ++i) {
        if (st.spans[i].absorbed) continue;
        for (int64_t h = heads.first; h < heads.stop; ++h) {
#if defined(CUEVA_ISA_BF16)
            if (pairs) {
                HeadOfPrompt<uint16_t>{model, a, batch.segments[i], st, layer_place, scratch}.run(h);
                continue;
            }
#endif
            HeadOfPrompt<float>{model, a, batch.segments[i], st, layer_place, scratch}.run(h);
        }
    }
    (void)pairs;
}

}  // namespace CUEVA_ISA
