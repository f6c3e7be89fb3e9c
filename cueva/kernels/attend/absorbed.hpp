// The absorbed form: queries move into the latent space, all heads of a row share each cached row as key and value
// (reference: `attend_absorbed` in reference.py). For decoding, verification, and short prompts over a long cache.
//
// The cache is cut into chunks of 256 positions that start at multiples of 256. Each chunk is summed by itself and chunks
// are folded from the first to the last, so that threads may share the chunks of one sequence, or each take whole
// sequences, and get the same bits.

#pragma once

#include "../native/state.hpp"
#include "../norm/native.hpp"
#include "../rotary/native.hpp"

namespace CUEVA_ISA {

using cueva::kChunkRows;
using cueva::kPageRows;

// Whether attention over rows of X cached values runs on bf16 pairs.
static inline bool pair_cells(const Model& model, int64_t X) { return kBf16Dot && !model.cache_f32 && X % 2 == 0; }

// Queries of the heads that this thread owns: the key up-projection moves onto them, and they take their lanes.
CUEVA_PHASE absorb_queries(const Model& model, const Layer& layer, const Batch& batch, State& st, const Team& team) {
    const cueva::Attention& a = layer.attention;
    const Range heads = team.share(a.heads);
    const int64_t X = a.latent + a.rope;
    const bool pairs = pair_cells(model, X);
    float* scratch = reinterpret_cast<float*>(st.scratch[team.thread]);
    int32_t* rows = reinterpret_cast<int32_t*>(scratch + kProductScratch);  // sixteen floats for each of 64 keys: 1024
    for (int64_t i = 0; i < batch.segment_count; ++i) {
        const Segment& segment = batch.segments[i];
        const Span& span = st.spans[i];
        if (!span.absorbed) continue;
        for (int64_t h = heads.first; h < heads.stop; ++h) {
            const unsigned need = needs(a.k_up[h], segment.prefill);
            for (int64_t t0 = segment.start; t0 < segment.stop; t0 += kBlock) {
                const int64_t count = segment.stop - t0 < kBlock ? segment.stop - t0 : kBlock;
                for (int64_t j = 0; j < count; ++j) {
                    const int64_t t = t0 + j, lane = (t - segment.start) * a.heads + h;
                    const float* q = st.q_TY + t * st.q_stride + h * (a.nope + a.rope);
                    prepare(st.head_op, t * a.heads + h, q, a.nope, need);
                    rows[j] = static_cast<int32_t>(t * a.heads + h);
                    const int64_t group = span.first_group + lane / 16;
                    float* to = st.lanes_q + group * X * 16;
                    float turned[512];
                    rotate(q + a.nope, a.rope / 2, a.interleave, st.cos_TJ + t * a.rope / 2, st.sin_TJ + t * a.rope / 2,
                           turned);
                    for (int64_t r = 0; r < a.rope; ++r)
                        put_query(to, a.latent + r, lane % 16, turned[r] * a.scale, pairs);
                    st.lanes_limit[group * 16 + lane % 16] = static_cast<float>(segment.held + t - segment.start + 1);
                    st.lanes_out[group * 16 + lane % 16] = st.mix_op.x_TI + (t * a.heads + h) * st.mix_op.padded;
                }
                const RowList list = {rows, segment.prefill ? 0 : count, count};
                const F32x16 scale = splat(a.scale);
                for (int64_t tile = 0; tile < a.k_up[h].tiles(); ++tile)
                    product_tile(a.k_up[h], tile, st.head_op, list, scratch, [&](int64_t j, F32x16 ql) {
                        alignas(64) float values[16];
                        store(values, mul(ql, scale));
                        const int64_t lane = (t0 + j - segment.start) * a.heads + h;
                        float* to = st.lanes_q + (span.first_group + lane / 16) * X * 16;
                        const int64_t here = a.latent - tile * 16 < 16 ? a.latent - tile * 16 : 16;
                        for (int64_t c = 0; c < here; ++c) put_query(to, tile * 16 + c, lane % 16, values[c], pairs);
                    });
            }
        }
        // Lanes of the last group that no query fills.
        if (team.thread == 0)
            for (int64_t lane = (segment.stop - segment.start) * a.heads; lane < span.groups * 16; ++lane) {
                const int64_t group = span.first_group + lane / 16;
                for (int64_t k = 0; k < X; ++k) put_query(st.lanes_q + group * X * 16, k, lane % 16, 0.0f, pairs);
                st.lanes_limit[group * 16 + lane % 16] = 1.0f;
                st.lanes_out[group * 16 + lane % 16] = nullptr;
            }
    }
}

// Sum one chunk of cached rows for one group of lanes.
static void attend_chunk(const Model& model, const cueva::Attention& a, const Segment& segment, int64_t layer_place,
                         const float* q_X, const float* limit, int64_t chunk, const Mixture& mix, float* scratch) {
    const int64_t X = a.latent + a.rope, stride = round_up(X, 16);
    float *scores = scratch, *wide = scratch + kBlock * 16;
    clear(mix);
    float furthest = 0.0f;
    for (int lane = 0; lane < 16; ++lane) furthest = limit[lane] > furthest ? limit[lane] : furthest;
    int64_t stop = (chunk + 1) * kChunkRows;
    if (static_cast<int64_t>(furthest) < stop) stop = static_cast<int64_t>(furthest);
    for (int64_t first = chunk * kChunkRows; first < stop; first += kBlock) {
        const int64_t keys = stop - first < kBlock ? stop - first : kBlock;
        const uint8_t* page = segment.pages[first / kPageRows] + layer_place * model.layer_page_bytes();
        const uint16_t* cells = reinterpret_cast<const uint16_t*>(page);
#if defined(CUEVA_ISA_BF16)
        if (pair_cells(model, X)) {
            attend_block(q_X, X, Rows<uint16_t>{cells, X, cells, X}, first, keys, limit, mix, scores);
            continue;
        }
#endif
        // Values are read in whole vectors: past the latent lie the rotary key, the next row, and in the end scratch.
        for (int64_t key = 0; key < keys; ++key) {
            float* to = wide + key * stride;
            if (model.cache_f32) {
                memcpy(to, reinterpret_cast<const float*>(page) + key * X, X * 4);
                continue;
            }
            int64_t k = 0;
            for (; k + 16 <= X; k += 16) store(to + k, load_bf16(cells + key * X + k));
            for (; k < X; ++k) to[k] = bf16_to_float(cells[key * X + k]);
        }
        attend_block(q_X, X, Rows<float>{wide, stride, wide, stride}, first, keys, limit, mix, scores);
    }
}

CUEVA_PHASE attend_absorbed(const Model& model, const Layer& layer, int64_t layer_place, const Batch& batch, State& st,
                            const Team& team) {
    const cueva::Attention& a = layer.attention;
    const int64_t X = a.latent + a.rope, part_floats = mixture_floats(a.latent);
    float* scratch = reinterpret_cast<float*>(st.scratch[team.thread]);
    float* own = scratch + kBlock * 16 + kBlock * round_up(X, 16);
    const unsigned need_decode = needs(a.v_up[0], false), need_prefill = needs(a.v_up[0], true);

    const Range share = team.share(st.share_chunks ? st.parts : st.groups);
    int64_t offset = 0;
    for (int64_t i = 0; i < batch.segment_count; ++i) {
        const Span& span = st.spans[i];
        if (!span.absorbed) continue;
        const Segment& segment = batch.segments[i];
        const int64_t units = span.groups * (st.share_chunks ? span.chunks : 1);
        const Range mine = within(share, offset, units);
        offset += units;
        for (int64_t unit = mine.first; unit < mine.stop; ++unit) {
            const int64_t group = span.first_group + (st.share_chunks ? unit / span.chunks : unit);
            const float *q = st.lanes_q + group * X * 16, *limit = st.lanes_limit + group * 16;
            if (st.share_chunks) {
                float* part = st.part_sums + (span.first_part + unit) * part_floats;
                attend_chunk(model, a, segment, layer_place, q, limit, unit % span.chunks, mixture_at(part, a.latent),
                             scratch);
                continue;
            }
            const Mixture whole = mixture_at(own, a.latent), part = mixture_at(own + part_floats, a.latent);
            clear(whole);
            for (int64_t chunk = 0; chunk < span.chunks; ++chunk) {
                attend_chunk(model, a, segment, layer_place, q, limit, chunk, part, scratch);
                fold(whole, part);
            }
            finish(whole, a.latent, st.lanes_out + group * 16);
        }
    }
    if (st.share_chunks) {
        Team::barrier();
        const Range groups = team.share(st.groups);
        for (int64_t i = 0, seen = 0; i < batch.segment_count; ++i) {
            const Span& span = st.spans[i];
            if (!span.absorbed) continue;
            const Range mine = within(groups, seen, span.groups);
            seen += span.groups;
            for (int64_t g = mine.first; g < mine.stop; ++g) {
                const Mixture whole = mixture_at(own, a.latent);
                clear(whole);
                for (int64_t chunk = 0; chunk < span.chunks; ++chunk)
                    fold(whole, mixture_at(st.part_sums + (span.first_part + g * span.chunks + chunk) * part_floats,
                                           a.latent));
                finish(whole, a.latent, st.lanes_out + (span.first_group + g) * 16);
            }
        }
    }
    Team::barrier();

    // Only the mixture meets the value up-projection, head by head.
    const Range heads = team.share(a.heads);
    int32_t* rows = reinterpret_cast<int32_t*>(scratch + kProductScratch);
    for (int64_t i = 0; i < batch.segment_count; ++i) {
        if (!st.spans[i].absorbed) continue;
        const Segment& segment = batch.segments[i];
        for (int64_t h = heads.first; h < heads.stop; ++h)
            for (int64_t t0 = segment.start; t0 < segment.stop; t0 += kBlock) {
                const int64_t count = segment.stop - t0 < kBlock ? segment.stop - t0 : kBlock;
                for (int64_t j = 0; j < count; ++j) {
                    const int64_t row = (t0 + j) * a.heads + h;
                    rows[j] = static_cast<int32_t>(row);
                    float* mix = st.mix_op.x_TI + row * st.mix_op.padded;
                    for (int64_t k = a.latent; k < st.mix_op.padded; ++k) mix[k] = 0.0f;
                    prepare(st.mix_op, row, mix, a.latent, segment.prefill ? need_prefill : need_decode);
                }
                const RowList list = {rows, segment.prefill ? 0 : count, count};
                const int64_t padded = round_up(a.value, 16);
                for (int64_t tile = 0; tile < a.v_up[h].tiles(); ++tile)
                    product_tile(a.v_up[h], tile, st.mix_op, list, scratch, [&](int64_t j, F32x16 v) {
                        store(st.o_TY + (t0 + j) * st.o_stride + h * padded + tile * 16, v);
                    });
            }
    }
}

}  // namespace CUEVA_ISA
