// One step of the model for any mix of rows: a list of sub-blocks with barriers between them, in the order of
// cueva/model/block.py. Prompt chunks, decoded rows and rows under verification of any sequences go through together.

#pragma once

#include "../attend/expanded.hpp"
#include "../experts/native.hpp"
#include "../quant/native.hpp"

namespace CUEVA_ISA {

// --- rows ----------------------------------------------------------------------------------------------------------------

static void look_up(const cueva::Table& table, int64_t id, int64_t width, float* out) {
    const uint8_t* row = table.data + id * table.row_bytes;
    switch (table.format) {
        case Format::rows_f32: memcpy(out, row, width * 4); return;
        case Format::rows_bf16:
            for (int64_t k = 0; k < width; ++k) out[k] = source_value(1, row + 2 * k);
            return;
        case Format::q8_0: dequantise_row_q8_0(row, width, out); return;
        case Format::q4_0: dequantise_row_q4_0(row, width, out); return;
        case Format::q4_k: dequantise_row_q4_k(row, width, out); return;
        default: dequantise_row_q6_k(row, width, out);
    }
}

// Rows enter: embeddings; for an MTP module, joined with the states of the depth before. And every row's rotation.
CUEVA_PHASE enter(const Model& model, const Depth& depth, const Batch& batch, State& st, const Team& team) {
    const int64_t D = model.width;
    const cueva::Attention& a = depth.layers[0].attention;
    const Range rows = team.share(st.T);
    for (int64_t i = 0; i < batch.segment_count; ++i) {
        const Segment& segment = batch.segments[i];
        for (int64_t t = more(segment.start, rows.first); t < segment.stop && t < rows.stop; ++t)
            rotation_at(segment.held + t - segment.start, a.inv_freq, a.rope / 2, a.rope_factor,
                        st.cos_TJ + t * a.rope / 2, st.sin_TJ + t * a.rope / 2);
    }
    for (int64_t t = rows.first; t < rows.stop; ++t) {
        float* x = st.x_TD + t * st.width_stride;
        for (int64_t k = D; k < st.width_stride; ++k) x[k] = 0.0f;
        look_up(depth.embedding, batch.ids_T[t], D, x);
        if (depth.eh_proj) {
            float* join = st.join_TD + t * 2 * D;
            rms_norm(x, depth.enorm, D, model.norm_eps, join);
            rms_norm(batch.state_TD + t * D, depth.hnorm, D, model.norm_eps, join + D);
            prepare(st.width_op, t, join, 2 * D, needs(depth.eh_proj, t >= batch.decode_rows));
        }
    }
    const Range numbers = team.share(numbers_needed(sizes_of(depth), st.T));
    for (int64_t i = numbers.first; i < numbers.stop; ++i) st.identity[i] = static_cast<int32_t>(i);
}

CUEVA_PHASE join(const Depth& depth, const Batch& batch, State& st, const Team& team) {
    const RowList list = {st.identity, batch.decode_rows, st.T};
    product(depth.eh_proj, st.width_op, list, st.x_TD, st.width_stride, team.share(depth.eh_proj.tiles()),
            reinterpret_cast<float*>(st.scratch[team.thread]));
}

// --- attention -------------------------------------------------------------------------------------------------------------

CUEVA_PHASE norm_input(const Model& model, const Layer& layer, const Batch& batch, State& st, const Team& team) {
    const cueva::Attention& a = layer.attention;
    const Range rows = team.share(st.T);
    st.width_op.padded = round_up(model.width, kColumnPad);
    for (int64_t t = rows.first; t < rows.stop; ++t) {
        float* h = st.h_TD + t * st.width_stride;
        rms_norm(st.x_TD + t * st.width_stride, layer.input_norm, model.width, model.norm_eps, h);
        const bool prefill = t >= batch.decode_rows;
        prepare(st.width_op, t, h, model.width,
                needs(a.q_a ? a.q_a : a.q_b, prefill) | needs(a.kv_a, prefill));
    }
}

// Down to the narrow latents of queries and of keys and values; without a query latent, straight to the queries.
CUEVA_PHASE narrow(const Layer& layer, const Batch& batch, State& st, const Team& team) {
    const cueva::Attention& a = layer.attention;
    const RowList list = {st.identity, batch.decode_rows, st.T};
    float* scratch = reinterpret_cast<float*>(st.scratch[team.thread]);
    const Matrix& query = a.q_a ? a.q_a : a.q_b;
    const Range mine = team.share(query.tiles() + a.kv_a.tiles());
    product(query, st.width_op, list, a.q_a ? st.qa_TQ : st.q_TY, a.q_a ? round_up(a.query_latent, 16) : st.q_stride,
            within(mine, 0, query.tiles()), scratch);
    product(a.kv_a, st.width_op, list, st.kva_TX, round_up(a.latent + a.rope, 16),
            within(mine, query.tiles(), a.kv_a.tiles()), scratch);
}

// The query latent through its norm; the key/value latent through its norm, the rotary key turned, both into the cache.
CUEVA_PHASE norm_latents(const Model& model, const Layer& layer, int64_t layer_place, const Batch& batch, State& st,
                         const Team& team) {
    const cueva::Attention& a = layer.attention;
    const Range rows = team.share(st.T);
    const int64_t X = a.latent + a.rope, kva_stride = round_up(X, 16), qa_stride = round_up(more(a.query_latent, 1), 16);
    for (int64_t i = 0; i < batch.segment_count; ++i) {
        const Segment& segment = batch.segments[i];
        for (int64_t t = more(segment.start, rows.first); t < segment.stop && t < rows.stop; ++t) {
            if (a.q_a) {
                float* q = st.qa_TQ + t * qa_stride;
                rms_norm(q, a.q_norm, a.query_latent, a.latent_eps, q);
                prepare(st.query_op, t, q, a.query_latent, needs(a.q_b, segment.prefill));
            }
            float* kva = st.kva_TX + t * kva_stride;
            rms_norm(kva, a.kv_norm, a.latent, a.latent_eps, kva);
            rotate(kva + a.latent, a.rope / 2, a.interleave, st.cos_TJ + t * a.rope / 2, st.sin_TJ + t * a.rope / 2,
                   kva + a.latent);
            const int64_t position = segment.held + t - segment.start;
            uint8_t* page = segment.pages[position / kPageRows] + layer_place * model.layer_page_bytes();
            const int64_t cell = position % kPageRows * X;
            if (model.cache_f32) {
                memcpy(reinterpret_cast<float*>(page) + cell, kva, X * 4);
            } else {
                uint16_t* to = reinterpret_cast<uint16_t*>(page) + cell;
                for (int64_t k = 0; k < X; ++k) to[k] = float_to_bf16(kva[k]);
            }
        }
    }
}

CUEVA_PHASE raise_queries(const Layer& layer, const Batch& batch, State& st, const Team& team) {
    const cueva::Attention& a = layer.attention;
    const RowList list = {st.identity, batch.decode_rows, st.T};
    product(a.q_b, st.query_op, list, st.q_TY, st.q_stride, team.share(a.q_b.tiles()),
            reinterpret_cast<float*>(st.scratch[team.thread]));
}

CUEVA_PHASE prepare_values(const Layer& layer, const Batch& batch, State& st, const Team& team) {
    const cueva::Attention& a = layer.attention;
    const int64_t padded = round_up(a.value, 16);
    const Range rows = team.share(st.T);
    for (int64_t t = rows.first; t < rows.stop; ++t) {
        float* o = st.o_TY + t * st.o_stride;
        if (padded != a.value)
            for (int64_t h = 1; h < a.heads; ++h) memmove(o + h * a.value, o + h * padded, a.value * 4);
        prepare(st.value_op, t, o, a.heads * a.value, needs(a.o, t >= batch.decode_rows));
    }
}

CUEVA_PHASE add_attention(const Layer& layer, const Batch& batch, State& st, const Team& team) {
    const cueva::Attention& a = layer.attention;
    const RowList list = {st.identity, batch.decode_rows, st.T};
    float* scratch = reinterpret_cast<float*>(st.scratch[team.thread]);
    const Range tiles = team.share(a.o.tiles());
    for (int64_t tile = tiles.first; tile < tiles.stop; ++tile)
        product_tile(a.o, tile, st.value_op, list, scratch, [&](int64_t t, F32x16 y) {
            float* x = st.x_TD + t * st.width_stride + tile * 16;
            store(x, add(load(x), y));
        });
}

CUEVA_PHASE norm_post(const Model& model, const Layer& layer, const Batch& batch, State& st, const Team& team) {
    const Range rows = team.share(st.T);
    for (int64_t t = rows.first; t < rows.stop; ++t) {
        float* h = st.h_TD + t * st.width_stride;
        rms_norm(st.x_TD + t * st.width_stride, layer.post_norm, model.width, model.norm_eps, h);
        const bool prefill = t >= batch.decode_rows;
        unsigned need = needs(layer.dense.gate_up, prefill);
        if (layer.routed) need |= kNeedFloat | needs(layer.experts[0].gate_up, prefill);
        prepare(st.width_op, t, h, model.width, need);
    }
}

// --- the end ---------------------------------------------------------------------------------------------------------------

CUEVA_PHASE norm_final(const Model& model, const Depth& depth, const Batch& batch, State& st, const Team& team) {
    const Range rows = team.share(st.T);
    for (int64_t t = rows.first; t < rows.stop; ++t)
        rms_norm(st.x_TD + t * st.width_stride, depth.final_norm, model.width, model.norm_eps,
                 batch.out_TD + t * model.width);
    if (!batch.head_count) return;
    Team::barrier();
    const Matrix& head = batch.head ? *batch.head : depth.head;
    const Range asked = team.share(batch.head_count);
    for (int64_t i = asked.first; i < asked.stop; ++i)
        prepare(st.width_op, i, batch.out_TD + batch.head_rows[i] * model.width, model.width, needs(head, false));
}

// Logits are always computed as decode rows are: a prompt's last row is the first to be decoded from.
CUEVA_PHASE give_logits(const Depth& depth, const Batch& batch, State& st, const Team& team) {
    const Matrix& head = batch.head ? *batch.head : depth.head;
    const RowList list = {st.identity, batch.head_count, batch.head_count};
    float* scratch = reinterpret_cast<float*>(st.scratch[team.thread]);
    const Range tiles = team.share(head.tiles());
    for (int64_t tile = tiles.first; tile < tiles.stop; ++tile)
        product_tile(head, tile, st.width_op, list, scratch, [&](int64_t i, F32x16 y) {
            float* to = batch.logits + i * head.rows + tile * 16;
            if (tile * 16 + 16 <= head.rows) return store(to, y);
            alignas(64) float last[16];
            store(last, y);
            memcpy(to, last, (head.rows - tile * 16) * 4);
        });
}

static void run_layer(const Model& model, const Depth& depth, int64_t index, const Batch& batch, State& st,
                      const Team& team, int32_t* routes) {
    const Layer& layer = depth.layers[index];
    const int64_t place = depth.first_cache_layer + index;
    norm_input(model, layer, batch, st, team);
    Team::barrier();
    narrow(layer, batch, st, team);
    Team::barrier();
    norm_latents(model, layer, place, batch, st, team);
    Team::barrier();
    if (layer.attention.q_a) {
        raise_queries(layer, batch, st, team);
        Team::barrier();
    }
    if (st.groups) {
        absorb_queries(model, layer, batch, st, team);
        Team::barrier();
        attend_absorbed(model, layer, place, batch, st, team);
    }
    attend_expanded(model, layer, place, batch, st, team);
    Team::barrier();
    prepare_values(layer, batch, st, team);
    Team::barrier();
    add_attention(layer, batch, st, team);
    Team::barrier();
    norm_post(model, layer, batch, st, team);
    Team::barrier();
    score_and_gate(layer, batch, st, team);
    Team::barrier();
    if (layer.routed) {
        choose_experts(layer, batch, st, team, routes);
        Team::barrier();
        gate_experts(layer, st, team);
        Team::barrier();
    }
    prepare_inner(layer, batch, st, team);
    Team::barrier();
    add_experts(model, layer, batch, st, team);
    Team::barrier();
}

static void step(const Model& model, const Batch& batch, uint8_t* memory, int threads) {
    const Depth& depth = model.depths[batch.depth];
    Arena arena = {memory};
    const State shared = carve(arena, model, batch, threads);
#pragma omp parallel num_threads(threads)
    {
        const Team team = {thread_number(), team_size()};
        State st = shared;
        enter(model, depth, batch, st, team);
        Team::barrier();
        if (depth.eh_proj) {
            join(depth, batch, st, team);
            Team::barrier();
        }
        if (batch.latents_only) {
            norm_input(model, depth.layers[0], batch, st, team);
            Team::barrier();
            narrow(depth.layers[0], batch, st, team);
            Team::barrier();
            norm_latents(model, depth.layers[0], depth.first_cache_layer, batch, st, team);
        }
        int32_t* routes = batch.routes;
        for (int64_t i = 0; i < depth.layer_count && !batch.latents_only; ++i) {
            run_layer(model, depth, i, batch, st, team, routes);
            if (routes && depth.layers[i].routed) routes += st.T * depth.layers[i].router.chosen;
        }
        if (!batch.latents_only) norm_final(model, depth, batch, st, team);
        if (batch.head_count) {
            Team::barrier();
            give_logits(depth, batch, st, team);
        }
    }
}

}  // namespace CUEVA_ISA
