// A model so small that its steps take no time, with everything in it: a query latent, a dense and a routed layer, shared
// experts, groups of experts, and one MTP module; widths that fill no vector. Weights are seeded and stored in one format.

#pragma once

#include <deque>
#include <memory>

#include "plain.hpp"

namespace plain {

using cueva::Kernels;
using cueva::Matrix;

struct SmallModel {
    static constexpr int64_t D = 72, H = 3, N = 40, R = 6, P = 36, C = 44, Q = 52, E = 6, K = 2, F = 40, A = 50;

    const Kernels& kernels;
    Format format;
    Random random;
    std::deque<Bytes> memory;
    std::deque<Floats> floats;
    std::deque<std::vector<Matrix>> lists;
    std::vector<cueva::Layer> layers;
    std::deque<std::vector<cueva::FeedForward>> experts;
    std::vector<cueva::Depth> depths;
    cueva::Model model = {};

    SmallModel(const Kernels& k, Format f) : kernels(k), format(f), random(7) {
        model.width = D, model.vocabulary = A, model.norm_eps = 1e-6f;
        model.cache_f32 = true, model.cache_layers = 3, model.cache_width = C + R, model.expand_factor = 1.0f;
        layers.push_back(layer(false));
        layers.push_back(layer(true));
        layers.push_back(layer(true));
        for (int64_t depth = 0; depth < 2; ++depth) {
            cueva::Depth d = {};
            d.layers = layers.data() + 2 * depth, d.layer_count = 2 - depth, d.first_cache_layer = 2 * depth;
            d.final_norm = vector(D, 1.0f);
            d.embedding.data = reinterpret_cast<const uint8_t*>(numbers(A * D, 1.0f)), d.embedding.row_bytes = D * 4;
            d.head = matrix(A, D);
            if (depth) d.enorm = vector(D, 1.0f), d.hnorm = vector(D, 1.0f), d.eh_proj = matrix(D, 2 * D);
            depths.push_back(d);
        }
        model.depths = depths.data(), model.depth_count = 2;
    }

    const float* numbers(int64_t count, float scale) { return floats.emplace_back(random.normals(count, scale)).data(); }
    const float* vector(int64_t count, float mean) {
        Floats all = random.normals(count, 0.1f);
        for (float& one : all) one += mean;
        return floats.emplace_back(all).data();
    }
    Matrix matrix(int64_t rows, int64_t columns) { return matrix(format, rows, columns, 1); }
    // `turns` matrices of the same shape, their tiles in turns.
    Matrix matrix(Format f, int64_t rows, int64_t columns, int64_t turns) {
        const int64_t tiles = (rows + 15) / 16, bytes = kernels.tile_bytes(f, columns);
        Bytes& to = memory.emplace_back(bytes * tiles * turns + 64);
        for (int64_t part = 0; part < turns; ++part) {
            const Floats from = random.normals(rows * columns, 1.0f / std::sqrt(static_cast<float>(columns)));
            kernels.pack(f, 0, reinterpret_cast<const uint8_t*>(from.data()), columns * 4, 4, rows, columns, nullptr, 0, 0,
                         0, to.data() + part * bytes, bytes * turns, 1);
        }
        Matrix m;
        m.data = to.data(), m.format = f, m.rows = turns == 1 ? rows : tiles * turns * 16, m.columns = columns;
        m.tile_bytes = bytes;
        return m;
    }
    const Matrix* matrices(int64_t count, int64_t rows, int64_t columns) {
        std::vector<Matrix>& list = lists.emplace_back();
        for (int64_t i = 0; i < count; ++i) list.push_back(matrix(rows, columns));
        return list.data();
    }
    cueva::FeedForward feed_forward(int64_t inner) {
        cueva::FeedForward f = {};
        f.inner = inner, f.gate_up = matrix(format, inner, D, 2), f.down = matrix(D, inner);
        return f;
    }
    cueva::Layer layer(bool routed) {
        cueva::Layer l = {};
        cueva::Attention& a = l.attention;
        a.heads = H, a.nope = N, a.rope = R, a.value = P, a.latent = C, a.query_latent = Q;
        a.scale = 1.0f / std::sqrt(static_cast<float>(N + R)), a.interleave = true, a.rope_factor = 1.0f;
        a.latent_eps = 1e-6f;
        Floats& frequency = floats.emplace_back();
        for (int64_t j = 0; j < R / 2; ++j) frequency.push_back(1.0f / static_cast<float>(1 << 2 * j));
        a.inv_freq = frequency.data();
        a.q_norm = vector(Q, 1.0f), a.kv_norm = vector(C, 1.0f);
        a.q_a = matrix(Q, D), a.q_b = matrix(H * (N + R), Q), a.kv_a = matrix(C + R, D);
        a.k_up = matrices(H, C, N), a.v_up = matrices(H, P, C), a.o = matrix(D, H * P);
        l.input_norm = vector(D, 1.0f), l.post_norm = vector(D, 1.0f);
        l.routed = routed;
        l.dense = feed_forward(routed ? F : 2 * F);
        if (!routed) return l;
        l.router.experts = E, l.router.chosen = K, l.router.groups = 2, l.router.groups_kept = 1;
        l.router.group_by_two = l.router.normalise = true, l.router.scale = 2.5f;
        l.router.weight = matrix(Format::f32, E, D, 1), l.router.bias = vector(E, 0.0f);
        std::vector<cueva::FeedForward>& list = experts.emplace_back();
        for (int64_t e = 0; e < E; ++e) list.push_back(feed_forward(F));
        l.experts = list.data();
        return l;
    }
};

// One sequence: its pages, and what it has read.
struct Sequence {
    std::vector<Floats> memory;
    std::vector<uint8_t*> pages;
    int64_t held = 0;

    void grow(const cueva::Model& model, int64_t positions) {
        while (static_cast<int64_t>(pages.size()) * cueva::kPageRows < positions) {
            memory.emplace_back(model.page_bytes() / 4, NAN);  // what was never written must never count
            pages.push_back(reinterpret_cast<uint8_t*>(memory.back().data()));
        }
    }
};

struct Piece {
    Sequence* sequence;
    int64_t rows;
    bool prefill;
};

// The given rows of each sequence through one depth: states, then logits of every row, in one list.
inline Floats run_step(SmallModel& small, const std::vector<Piece>& pieces, int64_t depth, const float* state, int threads,
                       bool keep = false) {
    std::vector<cueva::Segment> segments;
    std::vector<int32_t> ids, rows;
    int64_t total = 0, decode = 0;
    for (const Piece& piece : pieces) {
        piece.sequence->grow(small.model, piece.sequence->held + piece.rows);
        segments.push_back({total, total + piece.rows, piece.sequence->held, piece.sequence->pages.data(), piece.prefill});
        for (int64_t t = 0; t < piece.rows; ++t) {
            ids.push_back(static_cast<int32_t>((piece.sequence->held + t) * 7 % SmallModel::A));
            rows.push_back(static_cast<int32_t>(total + t));
        }
        total += piece.rows;
        if (!piece.prefill) decode = total;
    }
    Floats out(total * SmallModel::D), logits(total * SmallModel::A);
    cueva::Batch batch = {};
    batch.depth = depth, batch.rows = total, batch.decode_rows = decode, batch.ids_T = ids.data();
    batch.state_TD = state, batch.segments = segments.data(), batch.segment_count = static_cast<int64_t>(segments.size());
    batch.out_TD = out.data(), batch.head_rows = rows.data(), batch.head_count = total, batch.logits = logits.data();
    Bytes memory(small.kernels.step_bytes(small.model, batch, threads) + 128);
    const uintptr_t start = (reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64;
    small.kernels.step(small.model, batch, reinterpret_cast<uint8_t*>(start), threads);
    if (!keep)
        for (const Piece& piece : pieces) piece.sequence->held += piece.rows;
    out.insert(out.end(), logits.begin(), logits.end());
    return out;
}

}  // namespace plain
