// The arrays that a step works in, carved out of one block of memory that outlives it.

#pragma once

#include "../attend/lanes.hpp"
#include "../linear/product.hpp"
#include "../route/native.hpp"

namespace CUEVA_ISA {

using cueva::Batch;
using cueva::Depth;
using cueva::Layer;
using cueva::Model;
using cueva::Segment;

// Hands out pieces of a block, each on a cache line; without a block it only adds up what is needed.
struct Arena {
    uint8_t* base;
    int64_t used = 0;

    uint8_t* bytes(int64_t count) {
        uint8_t* piece = base ? base + used : nullptr;
        used += round_up(count, 64) + 64;  // a vector may read past the end of an array, never past the block
        return piece;
    }
    float* floats(int64_t count) { return reinterpret_cast<float*>(bytes(count * 4)); }
    int32_t* ints(int64_t count) { return reinterpret_cast<int32_t*>(bytes(count * 4)); }
    Operand operand(int64_t rows, int64_t columns) {
        uint8_t* memory = bytes(operand_bytes(rows, columns));
        return memory ? operand_in(memory, rows, columns) : Operand{};
    }
};

// A segment's part of the attention of one layer: which form, and where its queries lie among the lanes.
struct Span {
    bool absorbed;
    int64_t first_group;  // its first group of sixteen lanes (absorbed)
    int64_t groups;
    int64_t first_part;   // its first partial mixture (absorbed, chunks shared out)
    int64_t chunks;
};

struct State {
    int64_t T, width_stride, q_stride, o_stride, inner_stride, slot_stride;
    float* x_TD;        // the residual stream
    float* y_TD;        // what a feed-forward adds to it
    float* h_TD;        // after a norm
    float* join_TD;     // MTP: embedding beside state
    Operand width_op, query_op, head_op, mix_op, value_op, inner_op, slot_op;
    float *qa_TQ, *kva_TX, *q_TY, *o_TY;
    float *cos_TJ, *sin_TJ;
    float *router_TE, *route_scratch, *weight_TK;
    int32_t* expert_TK;
    ExpertRows rows_of;
    float *act_TF, *act_SF;
    int32_t* identity;  // 0, 1, 2, ...
    Span* spans;
    int64_t groups, parts;
    bool share_chunks;  // few queries: threads take chunks of the cache, folded afterwards
    float* lanes_q;     // (groups, X, 16)
    float* lanes_limit; // (groups, 16)
    float* part_sums;   // a mixture for each part
    float** lanes_out;  // (groups, 16): where a lane's mixture goes
    uint8_t** scratch;  // one for each thread
};

struct Sizes {
    int64_t columns_in, query, heads, nope, rope, value, latent, inner, slot_inner, experts, chosen, span;
};

static inline int64_t more(int64_t a, int64_t b) { return a > b ? a : b; }

// Length of `identity`: every list of rows that some product walks.
static int64_t numbers_needed(const Sizes& s, int64_t T) { return T * more(1, more(s.heads, s.chosen)); }

static Sizes sizes_of(const Depth& depth) {
    Sizes s = {};
    for (int64_t i = 0; i < depth.layer_count; ++i) {
        const Layer& layer = depth.layers[i];
        const cueva::Attention& a = layer.attention;
        s.query = a.query_latent, s.heads = a.heads, s.nope = a.nope, s.rope = a.rope, s.value = a.value;
        s.latent = a.latent;
        s.inner = more(s.inner, layer.dense.inner);
        if (layer.routed) {
            s.experts = layer.router.experts;
            s.chosen = layer.router.chosen;
            s.slot_inner = layer.experts[0].inner;
        }
    }
    return s;
}

// Whether a prompt segment attends in the absorbed form: see kernels/attend/reference.py, `absorbed_is_cheaper`.
static bool absorbed_is_cheaper(const Model& model, const Sizes& s, int64_t fresh, int64_t held) {
    const double pairs = static_cast<double>(fresh) * held + 0.5 * fresh * (fresh + 1);
    return pairs * (2 * s.latent - s.nope - s.value)
           < static_cast<double>(held) * s.latent * (s.nope + s.value) * model.expand_factor;
}

constexpr int64_t kRaisedKeys = 1024;  // keys that the expanded form raises at once, for each thread

static int64_t thread_scratch_floats(const Sizes& s, int64_t longest_prompt) {
    const int64_t width = round_up(s.nope + s.rope, 16) + 16, value = round_up(s.value, 16);
    const int64_t nope = round_up(s.nope, 16), groups = (longest_prompt + 15) / 16;
    int64_t floats = kProductScratch + kBlock * 16 + 64;                       // products; scores
    floats += kBlock * round_up(s.latent + s.rope, 16) + 2 * mixture_floats(s.latent);  // absorbed: a block of rows, mixtures
    if (longest_prompt)
        floats += (nope + value) * round_up(s.latent, kColumnPad) + kRaisedKeys * (width + value)
                  + groups * (16 * (s.nope + s.rope) + mixture_floats(s.value)) + 256 * 16;
    return floats;
}

// Carve everything for one step. The order is fixed, so that a dry run says how much memory a step needs.
static State carve(Arena& arena, const Model& model, const Batch& batch, int threads) {
    const Depth& depth = model.depths[batch.depth];
    const Sizes s = sizes_of(depth);
    const int64_t T = batch.rows, D = model.width;
    State st = {};
    st.T = T;
    st.width_stride = round_up(D, 16);
    st.q_stride = round_up(s.heads * (s.nope + s.rope), 16) + 32;
    st.o_stride = s.heads * round_up(s.value, 16);
    st.inner_stride = round_up(more(s.inner, 1), 16);
    st.slot_stride = round_up(more(s.slot_inner, 1), 16);
    st.x_TD = arena.floats(T * st.width_stride);
    st.y_TD = arena.floats(T * st.width_stride);
    st.h_TD = arena.floats(T * st.width_stride);
    if (depth.eh_proj) st.join_TD = arena.floats(T * 2 * D + 32);
    st.width_op = arena.operand(T, depth.eh_proj ? 2 * D : D);
    st.query_op = arena.operand(T, more(s.query, 1));
    st.value_op = arena.operand(T, s.heads * s.value);
    st.inner_op = arena.operand(T, more(s.inner, 1));
    st.slot_op = arena.operand(T * more(s.chosen, 1), more(s.slot_inner, 1));
    st.qa_TQ = arena.floats(T * round_up(more(s.query, 1), 16));
    st.kva_TX = arena.floats(T * round_up(s.latent + s.rope, 16));
    st.q_TY = arena.floats(T * st.q_stride);
    st.o_TY = arena.floats(T * st.o_stride);
    st.cos_TJ = arena.floats(T * s.rope / 2);
    st.sin_TJ = arena.floats(T * s.rope / 2);
    st.router_TE = arena.floats(T * round_up(more(s.experts, 1), 16));
    st.route_scratch = arena.floats(threads * route_scratch_floats(s.experts));
    st.weight_TK = arena.floats(T * more(s.chosen, 1));
    st.expert_TK = arena.ints(T * more(s.chosen, 1));
    st.rows_of.first = arena.ints(s.experts + 1);
    st.rows_of.decode = arena.ints(s.experts + 1);
    st.rows_of.row = arena.ints(T * more(s.chosen, 1));
    st.rows_of.weight = arena.floats(T * more(s.chosen, 1));
    st.act_TF = arena.floats(T * st.inner_stride);
    st.act_SF = arena.floats(T * more(s.chosen, 1) * st.slot_stride);
    st.identity = arena.ints(numbers_needed(s, T) + 1);

    // Attention: absorbed segments put their (row, head) pairs into lanes.
    Span* spans = reinterpret_cast<Span*>(arena.bytes(batch.segment_count * static_cast<int64_t>(sizeof(Span))));
    int64_t longest_prompt = 0, absorbed_rows = 0;
    for (int64_t i = 0; i < batch.segment_count; ++i) {
        const Segment& segment = batch.segments[i];
        const int64_t fresh = segment.stop - segment.start;
        Span span = {};
        span.absorbed = !segment.prefill || absorbed_is_cheaper(model, s, fresh, segment.held);
        if (span.absorbed) {
            span.first_group = st.groups;
            span.groups = (fresh * s.heads + 15) / 16;
            span.chunks = (segment.held + fresh + cueva::kChunkRows - 1) / cueva::kChunkRows;
            span.first_part = st.parts;
            st.groups += span.groups;
            st.parts += span.groups * span.chunks;
            absorbed_rows += fresh;
        } else {
            longest_prompt = more(longest_prompt, fresh);
        }
        if (spans) spans[i] = span;
    }
    st.spans = spans;
    st.share_chunks = st.groups < 4 * threads;
    st.head_op = arena.operand(T * s.heads, s.nope);
    st.mix_op = arena.operand(absorbed_rows ? T * s.heads : 0, s.latent);
    st.lanes_q = arena.floats(st.groups * (s.latent + s.rope) * 16);
    st.lanes_limit = arena.floats(st.groups * 16);
    st.lanes_out = reinterpret_cast<float**>(arena.bytes(st.groups * 16 * 8));
    st.part_sums = arena.floats(st.share_chunks ? st.parts * mixture_floats(s.latent) : 0);
    st.scratch = reinterpret_cast<uint8_t**>(arena.bytes(threads * 8));
    for (int i = 0; i < threads; ++i) {
        uint8_t* own = arena.bytes(thread_scratch_floats(s, longest_prompt) * 4 + 4096);
        if (st.scratch) st.scratch[i] = own;
    }
    return st;
}

}  // namespace CUEVA_ISA
