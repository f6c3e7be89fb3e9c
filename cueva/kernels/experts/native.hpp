// The feed-forward half of a layer: routed experts grouped by expert, shared experts, or a dense layer.
//
// Every expert that some row chose is read once, gate and up together, whatever the number of rows. A row's answers are
// added up by ascending expert, then the shared experts' answer, then the stream: an order that is the row's own.

#pragma once

#include "../native/state.hpp"

namespace CUEVA_ISA {

// act[slot] = silu(gate x) * (up x) for output tiles [tiles.first, tiles.stop) of F / 16.
static void gate_up(const cueva::FeedForward& ffn, const Operand& x, const RowList& list, float* act, int64_t stride,
                    const Range& tiles, float* scratch) {
    const Matrix& up_matrix = ffn.up ? ffn.up : ffn.gate_up;
    for (int64_t tile = tiles.first; tile < tiles.stop; ++tile) {
        product_tile(ffn.gate_up, ffn.up ? tile : 2 * tile, x, list, scratch,
                     [&](int64_t i, F32x16 gate) { store(act + i * stride + tile * 16, gate); });
        product_tile(up_matrix, ffn.up ? tile : 2 * tile + 1, x, list, scratch, [&](int64_t i, F32x16 up) {
            float* to = act + i * stride + tile * 16;
            store(to, mul(silu(load(to)), up));
        });
    }
}

// Router logits of every row, and the dense or shared half up to its activations: one phase, one list of tiles.
CUEVA_PHASE score_and_gate(const Layer& layer, const Batch& batch, State& st, const Team& team) {
    float* scratch = reinterpret_cast<float*>(st.scratch[team.thread]);
    const RowList list = {st.identity, batch.decode_rows, st.T};
    const int64_t dense_tiles = (layer.dense.inner + 15) / 16;
    // A tile pair of the feed-forward is about as much work as two of the router's; shares need not be exact.
    const int64_t router_tiles = layer.routed ? layer.router.weight.tiles() : 0;
    const Range mine = team.share(router_tiles + dense_tiles);
    product(layer.router.weight, st.width_op, list, st.router_TE, round_up(more(layer.router.experts, 1), 16),
            within(mine, 0, router_tiles), scratch);
    gate_up(layer.dense, st.width_op, list, st.act_TF, st.inner_stride, within(mine, router_tiles, dense_tiles), scratch);
}

CUEVA_PHASE choose_experts(const Layer& layer, const Batch& batch, State& st, const Team& team, int32_t* routes) {
    const cueva::Router& router = layer.router;
    const int64_t stride = round_up(router.experts, 16), K = router.chosen;
    const bool alone = st.T <= 8;  // so few rows are not worth a barrier
    const Range rows = alone ? Range{0, team.thread == 0 ? st.T : 0} : team.share(st.T);
    float* scratch = st.route_scratch + team.thread * route_scratch_floats(router.experts);
    for (int64_t t = rows.first; t < rows.stop; ++t)
        route_row(router, st.router_TE + t * stride, scratch, st.expert_TK + t * K, st.weight_TK + t * K);
    if (!alone) Team::barrier();
    if (team.thread == 0) {
        group_rows(st.expert_TK, st.weight_TK, st.T, batch.decode_rows, K, router.experts, st.rows_of);
        if (routes) memcpy(routes, st.expert_TK, st.T * K * 4);
    }
}

// Gate and up of every chosen expert; threads share the tiles by the work they mean.
CUEVA_PHASE gate_experts(const Layer& layer, State& st, const Team& team) {
    float* scratch = reinterpret_cast<float*>(st.scratch[team.thread]);
    const int64_t experts = layer.router.experts;
    const ExpertRows& of = st.rows_of;
    const int64_t tiles = (layer.experts[0].inner + 15) / 16;
    // Reading a tile weighs as much as a few rows of arithmetic.
    constexpr int64_t kReading = 4;
    int64_t work = 0;
    for (int64_t e = 0; e < experts; ++e)
        if (of.first[e + 1] > of.first[e]) work += tiles * (kReading + of.first[e + 1] - of.first[e]);
    const Range mine = team.share(work);
    int64_t before = 0;
    for (int64_t e = 0; e < experts; ++e) {
        const int64_t count = of.first[e + 1] - of.first[e];
        if (!count) continue;
        const int64_t weight = kReading + count;
        // A tile belongs to the thread in whose share its first unit of work lies.
        const Range units = {mine.first - before, mine.stop - before};
        before += tiles * weight;
        const int64_t first = units.first <= 0 ? 0 : (units.first + weight - 1) / weight;
        int64_t stop = units.stop <= 0 ? 0 : (units.stop + weight - 1) / weight;
        if (stop > tiles) stop = tiles;
        if (first >= stop) continue;
        const RowList list = {of.row + of.first[e], of.decode[e], count};
        gate_up(layer.experts[e], st.width_op, list, st.act_SF + of.first[e] * st.slot_stride, st.slot_stride,
                {first, stop}, scratch);
    }
}

// Activations of all experts as the down projections want them.
CUEVA_PHASE prepare_inner(const Layer& layer, const Batch& batch, State& st, const Team& team) {
    if (layer.routed) {
        const ExpertRows& of = st.rows_of;
        const Range slots = team.share(of.first[layer.router.experts]);
        const int64_t F = layer.experts[0].inner;
        const unsigned decode = needs(layer.experts[0].down, false), prefill = needs(layer.experts[0].down, true);
        for (int64_t s = slots.first; s < slots.stop; ++s)
            prepare(st.slot_op, s, st.act_SF + s * st.slot_stride, F, of.row[s] < batch.decode_rows ? decode : prefill);
    }
    if (layer.dense.inner) {
        const Range rows = team.share(st.T);
        for (int64_t t = rows.first; t < rows.stop; ++t)
            prepare(st.inner_op, t, st.act_TF + t * st.inner_stride, layer.dense.inner,
                    needs(layer.dense.down, t >= batch.decode_rows));
    }
}

// Each thread owns columns of the stream, so the sum over experts needs neither a reduction nor a barrier.
CUEVA_PHASE add_experts(const Model& model, const Layer& layer, const Batch& batch, State& st, const Team& team) {
    float* scratch = reinterpret_cast<float*>(st.scratch[team.thread]);
    const Range tiles = team.share((model.width + 15) / 16);
    const int64_t stride = st.width_stride;
    for (int64_t t = 0; t < st.T; ++t)
        for (int64_t tile = tiles.first; tile < tiles.stop; ++tile) store(st.y_TD + t * stride + tile * 16, zero());
    if (layer.routed) {
        const ExpertRows& of = st.rows_of;
        for (int64_t e = 0; e < layer.router.experts; ++e) {
            const int64_t first = of.first[e], count = of.first[e + 1] - first;
            if (!count) continue;
            const RowList list = {st.identity + first, of.decode[e], count};
            for (int64_t tile = tiles.first; tile < tiles.stop; ++tile)
                product_tile(layer.experts[e].down, tile, st.slot_op, list, scratch, [&](int64_t i, F32x16 answer) {
                    float* to = st.y_TD + of.row[first + i] * stride + tile * 16;
                    store(to, fma(answer, splat(of.weight[first + i]), load(to)));
                });
        }
    }
    if (layer.dense.inner) {
        const RowList list = {st.identity, batch.decode_rows, st.T};
        for (int64_t tile = tiles.first; tile < tiles.stop; ++tile)
            product_tile(layer.dense.down, tile, st.inner_op, list, scratch, [&](int64_t t, F32x16 answer) {
                float* to = st.y_TD + t * stride + tile * 16;
                store(to, add(load(to), answer));
            });
    }
    for (int64_t t = 0; t < st.T; ++t)
        for (int64_t tile = tiles.first; tile < tiles.stop; ++tile) {
            float* x = st.x_TD + t * stride + tile * 16;
            store(x, add(load(x), load(st.y_TD + t * stride + tile * 16)));
        }
}

}  // namespace CUEVA_ISA
