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
            if (k_up.format == Format::rows_f32 || k_up.format == Format::rows_bf16)
                widen_rows(k_up, tile, n0, stop, wide);
            else
                widen(k_up, tile, n0, stop, wide);
            for (int64_t n = n0; n < nope && n < stop; ++n)
                for (int64_t r = 0; r < 16 && tile * 16 + r < latent; ++r)
                    out[(n / 16 * padded + tile * 16 + r) * 16 + n % 16] = wide[(n - n0) * 16 + r];
        }
}

CUEVA_PHASE attend_expanded(const Model& model, const Layer& layer, int64_t layer_place, const Batch& batch, State& st,
                            const Team& team) {
    const cueva::Attention& a = layer.attention;
    const int64_t C = a.latent, X = C + a.rope, head_width = a.nope + a.rope;
    const int64_t padded = round_up(C, kColumnPad), latent_stride = round_up(X, 16);
    const int64_t key_stride = round_up(head_width, 16) + 16, value_stride = round_up(a.value, 16);
    const int64_t nope_tiles = (a.nope + 15) / 16, value_tiles = (a.value + 15) / 16;
    float* wide = reinterpret_cast<float*>(st.scratch[team.thread]);
    float* scores = wide + kProductScratch;
    float* latents = scores + kBlock * 16;
    float* key_up = latents + kBlock * latent_stride;
    float* value_up = key_up + nope_tiles * padded * 16;
    float* keys = value_up + value_tiles * padded * 16;
    float* values = keys + kRaisedKeys * key_stride;
    float* queries = values + kRaisedKeys * value_stride;

    for (int64_t i = 0; i < batch.segment_count; ++i) {
        if (st.spans[i].absorbed) continue;
        const Segment& segment = batch.segments[i];
        const int64_t fresh = segment.stop - segment.start, groups = (fresh + 15) / 16;
        const int64_t query_floats = head_width * 16, mix_floats = (a.value + 2) * 16;
        float* mixtures = queries + groups * query_floats;
        const Range heads = team.share(a.heads);
        for (int64_t h = heads.first; h < heads.stop; ++h) {
            // 1. This head's up-projections, widened once for all positions.
            turn_key_up(a.k_up[h], a.nope, C, wide, key_up);
            for (int64_t tile = 0; tile < value_tiles; ++tile)
                for (int64_t k0 = 0; k0 < padded; k0 += 256) {
                    const int64_t stop = k0 + 256 < padded ? k0 + 256 : padded;
                    float* to = value_up + (tile * padded + k0) * 16;
                    if (a.v_up[h].format == Format::rows_f32 || a.v_up[h].format == Format::rows_bf16)
                        widen_rows(a.v_up[h], tile, k0, stop, to);
                    else
                        widen(a.v_up[h], tile, k0, stop, to);
                }

            // 2. Its queries, sixteen rows to a group.
            for (int64_t g = 0; g < groups; ++g) {
                float* q_X = queries + g * query_floats;
                for (int64_t lane = 0; lane < 16; ++lane) {
                    const int64_t row = g * 16 + lane, t = segment.start + (row < fresh ? row : fresh - 1);
                    const float* q = st.q_TY + t * st.q_stride + h * head_width;
                    float turned[512];
                    rotate(q + a.nope, a.rope / 2, a.interleave, st.cos_TJ + t * a.rope / 2, st.sin_TJ + t * a.rope / 2,
                           turned);
                    for (int64_t k = 0; k < a.nope; ++k) q_X[k * 16 + lane] = q[k] * a.scale;
                    for (int64_t r = 0; r < a.rope; ++r) q_X[(a.nope + r) * 16 + lane] = turned[r] * a.scale;
                }
                clear(mixture_at(mixtures + g * mix_floats), a.value);
            }

            // 3. A thousand keys at a time: raise them, and let every query that may see them do so.
            const int64_t end = segment.held + fresh;
            for (int64_t first = 0; first < end; first += kRaisedKeys) {
                const int64_t stop = first + kRaisedKeys < end ? first + kRaisedKeys : end;
                for (int64_t block = first; block < stop; block += kBlock) {
                    const int64_t count = stop - block < kBlock ? stop - block : kBlock;
                    const uint8_t* page = segment.pages[block / kPageRows] + layer_place * model.layer_page_bytes();
                    for (int64_t key = 0; key < count; ++key) {
                        float* row = latents + key * latent_stride;
                        if (model.cache_f32) {
                            memcpy(row, reinterpret_cast<const float*>(page) + key * X, X * 4);
                        } else {
                            const uint16_t* cells = reinterpret_cast<const uint16_t*>(page) + key * X;
                            for (int64_t k = 0; k < X; ++k) row[k] = bf16_to_float(cells[k]);
                        }
                    }
                    for (int64_t part = 0; part < nope_tiles + value_tiles; ++part) {
                        const bool is_key = part < nope_tiles;
                        const float* w = is_key ? key_up + part * padded * 16 : value_up + (part - nope_tiles) * padded * 16;
                        for (int64_t key = 0; key < count; key += kGemmRows) {
                            const int here = static_cast<int>(count - key < kGemmRows ? count - key : kGemmRows);
                            const float* from[kGemmRows];
                            float* to[kGemmRows];
                            for (int m = 0; m < here; ++m) {
                                const int64_t at = block - first + key + m;
                                from[m] = latents + (key + m) * latent_stride;
                                to[m] = is_key ? keys + at * key_stride + part * 16
                                               : values + at * value_stride + (part - nope_tiles) * 16;
                            }
                            Groups<kGemmRows>::run(here, w, C, from, to, true);
                        }
                    }
                    for (int64_t key = 0; key < count; ++key)
                        memcpy(keys + (block - first + key) * key_stride + a.nope, latents + key * latent_stride + C,
                               a.rope * 4);
                }
                for (int64_t g = 0; g < groups; ++g) {
                    alignas(64) float limit[16];
                    const int64_t last_row = g * 16 + 15 < fresh ? g * 16 + 15 : fresh - 1;
                    const int64_t seen = segment.held + last_row + 1 < stop ? segment.held + last_row + 1 : stop;
                    for (int64_t lane = 0; lane < 16; ++lane)
                        limit[lane] = static_cast<float>(segment.held + g * 16 + lane + 1);
                    for (int64_t block = first; block < seen; block += kBlock) {
                        const int64_t count = seen - block < kBlock ? seen - block : kBlock;
                        attend_block(queries + g * query_floats, head_width, keys + (block - first) * key_stride,
                                     key_stride, values + (block - first) * value_stride, value_stride, a.value, block,
                                     count, limit, mixture_at(mixtures + g * mix_floats), scores);
                    }
                }
            }

            // 4. Each row's mixture to its place among the heads.
            for (int64_t g = 0; g < groups; ++g) {
                float* out[16];
                for (int64_t lane = 0; lane < 16; ++lane) {
                    const int64_t row = g * 16 + lane;
                    out[lane] = row < fresh ? st.o_TY + (segment.start + row) * st.o_stride + h * value_stride : nullptr;
                }
                finish(mixture_at(mixtures + g * mix_floats), a.value, out);
            }
        }
    }
}

}  // namespace CUEVA_ISA
