// What a step works on: plain structs that every instruction set and the Python module share.
//
// Letters as in the Python code: T rows of a step, D width, H heads, N/R/P head widths (plain, rotary, value), C latent,
// Q query latent, E experts, K chosen, F inner width of an expert, A vocabulary.

#pragma once

#include <cstdint>

namespace cueva {

constexpr int64_t kTileRows = 16;      // rows of a weight tile, lanes of a vector
constexpr int64_t kColumnPad = 32;     // weights and activations are padded with zeros to whole blocks of columns
constexpr int64_t kPageRows = 64;      // positions of a cache page
constexpr int64_t kChunkRows = 256;    // positions that are summed before chunks are merged, in order

// Functions here are inlined always: a shared copy could be one that was compiled for another instruction set.
#define CUEVA_INLINE inline __attribute__((always_inline))

CUEVA_INLINE constexpr int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

enum class Format : int32_t { f32, bf16, fp8, q8_0, q4_0, q4_k, q6_k, rows_f32, rows_bf16 };

// y_O = W_OI x_I, stored in tiles of sixteen rows (linear/tiles.hpp) or, for the last two formats, row by row as on disk.
struct Matrix {
    const uint8_t* data = nullptr;
    Format format = Format::f32;
    int64_t rows = 0;
    int64_t columns = 0;
    int64_t tile_bytes = 0;   // from one tile to the next; for rows_*: bytes of one row
    const float* bias = nullptr;  // padded to whole tiles, or none

    CUEVA_INLINE int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
    CUEVA_INLINE int64_t padded_rows() const { return round_up(rows, kTileRows); }
    CUEVA_INLINE explicit operator bool() const { return data != nullptr; }
};

// A token embedding: rows as they are stored, looked up and never multiplied.
struct Table {
    const uint8_t* data = nullptr;
    Format format = Format::rows_f32;  // rows_f32, rows_bf16, or GGUF blocks row by row (q8_0, q4_0, q4_k, q6_k)
    int64_t row_bytes = 0;
};

struct Attention {
    int64_t heads, nope, rope, value, latent, query_latent;  // query_latent 0: queries straight from the stream
    float scale;
    bool interleave;       // rotary pairs are neighbours; otherwise halves
    const float* inv_freq; // (R/2) radians per position
    float rope_factor;     // multiplies cosines and sines
    float latent_eps;
    const float* q_norm;   // (Q)
    const float* kv_norm;  // (C)
    Matrix q_a;            // (Q, D) or, without a query latent, none
    Matrix q_b;            // (H (N + R), Q) or (H (N + R), D)
    Matrix kv_a;           // (C + R, D)
    const Matrix* k_up;    // H of (C, N): the key up-projection, as it moves onto queries
    const Matrix* v_up;    // H of (P, C)
    Matrix o;              // (D, H P)
};

// Gate and up projections have their tiles in turns, so that both halves of one output lie in one stream.
struct FeedForward {
    int64_t inner;    // F
    Matrix gate_up;   // tiles 2i: gate rows 16i..; 2i + 1: up rows 16i..
    Matrix up;        // only where weights lie as on disk: then `gate_up` is the gate alone
    Matrix down;      // (D, F)
};

struct Router {
    int64_t experts, chosen, groups, groups_kept;
    bool group_by_two;      // a group counts by its two best, otherwise by its best
    bool softmax;           // otherwise sigmoid
    bool normalise;
    float scale;
    Matrix weight;          // (E, D), float32
    const float* bias;      // (E) or none
};

struct Layer {
    Attention attention;
    const float* input_norm;  // (D)
    const float* post_norm;   // (D)
    bool routed;
    FeedForward dense;        // a dense layer, or the shared experts as one; inner 0: none
    Router router;
    const FeedForward* experts;  // E of them
};

// A stack of layers with its ends: the main model, one MTP module, or, to be timed, one layer alone.
struct Depth {
    const Layer* layers;
    int64_t layer_count;
    int64_t first_cache_layer;  // the first layer's place in a cache page
    const float* final_norm;    // (D)
    Table embedding;
    Matrix head;                // (A, D)
    const float* enorm;         // MTP only, (D), as are the next two
    const float* hnorm;
    Matrix eh_proj;             // (D, 2D)
};

struct Model {
    int64_t width;             // D
    int64_t vocabulary;        // A
    float norm_eps;
    bool cache_f32;            // otherwise bf16
    int64_t cache_layers;      // layers of a page: main ones, then MTP modules
    int64_t cache_width;       // C + R
    float expand_factor;       // how many times dearer an operation of the expanded form is here; measured, then fixed
    const Depth* depths;
    int64_t depth_count;

    CUEVA_INLINE int64_t cell_bytes() const { return cache_f32 ? 4 : 2; }
    CUEVA_INLINE int64_t layer_page_bytes() const { return kPageRows * cache_width * cell_bytes(); }
    CUEVA_INLINE int64_t page_bytes() const { return layer_page_bytes() * cache_layers; }
};

// Rows [start, stop) of a step continue one sequence, at positions from `held` on.
struct Segment {
    int64_t start, stop;
    int64_t held;
    uint8_t* const* pages;     // page i holds positions 64 i .. 64 i + 63 of all layers
    bool prefill;              // prompt rows: other kernels, whose sums have an order of their own
};

struct Batch {
    int64_t depth;
    int64_t rows;              // T
    int64_t decode_rows;       // rows before this one are decoded or verified, the others belong to prompts
    const int32_t* ids_T;
    const float* state_TD;     // MTP: the states of the depth before
    const Segment* segments;   // in the order of their rows
    int64_t segment_count;
    float* out_TD;             // states after the final norm
    const int32_t* head_rows;  // rows whose logits are asked for
    int64_t head_count;
    const Matrix* head;        // a head of fewer rows, or none: the depth's own
    float* logits;             // (head_count, rows of the head)
    int32_t* routes;           // (routed layers, T, K) chosen experts, or none
    bool latents_only;         // fill the cache of the first layer and leave: nobody reads the states
};

// What one instruction set offers.
struct Kernels {
    const char* name;
    int64_t (*tile_bytes)(Format format, int64_t columns);
    // Rows [0, rows) of a dense source (0 f32, 1 bf16, 2 f16) or of GGUF blocks (`source` = -1) into tiles from `out` on.
    // With fp8, `source` is -1 too: codes row by row; `scales` has one float32 for each 128 x 128, `scale_stride` a row.
    void (*pack)(Format format, int source, const uint8_t* from, int64_t row_stride, int64_t column_stride, int64_t rows,
                 int64_t columns, const float* scales, int64_t scale_stride, int64_t first_row, int64_t first_column,
                 uint8_t* out, int64_t tile_stride, int threads);
    void (*unpack)(const Matrix& matrix, float* out_OI, int64_t stride);
    void (*linear)(const Matrix& matrix, const float* x_TI, int64_t rows, bool prefill, float* out_TO, uint8_t* memory,
                   int threads);
    int64_t (*linear_bytes)(const Matrix& matrix, int64_t rows, int threads);
    bool (*quantise)(Format format, const float* from_OI, int64_t rows, int64_t columns, uint8_t* out, int threads);
    int64_t (*step_bytes)(const Model& model, const Batch& batch, int threads);
    void (*step)(const Model& model, const Batch& batch, uint8_t* memory, int threads);
};

}  // namespace cueva
