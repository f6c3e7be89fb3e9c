// Everything that is compiled once for each instruction set; CUEVA_ISA is its namespace, CUEVA_TABLE its table's name.
//
// No standard containers or algorithms in here or below: the linker keeps one copy of an inline function, and that copy
// could be one with instructions that the processor does not have.

#include "../linear/tiles.hpp"
#include "step.hpp"

namespace CUEVA_ISA {

static bool quantise(Format format, const float* from_OI, int64_t rows, int64_t columns, uint8_t* out, int threads) {
    int64_t bytes = 0;
    void (*row)(const float*, int64_t, uint8_t*) = nullptr;
    switch (format) {
        case Format::q8_0: row = quantise_row_q8_0, bytes = columns / 32 * 34; break;
        case Format::q4_0: row = quantise_row_q4_0, bytes = columns / 32 * 18; break;
        case Format::q4_k: row = quantise_row_q4_k, bytes = columns / 256 * 144; break;
        case Format::q6_k: row = quantise_row_q6_k, bytes = columns / 256 * 210; break;
        default: return false;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; ++i) row(from_OI + i * columns, columns, out + i * bytes);
    return true;
}

// One product by itself, for tests and measurements.
static void linear(const Matrix& matrix, const float* x_TI, int64_t rows, bool prefill, float* out_TO, uint8_t* memory,
                   int threads) {
    const Operand x = operand_in(memory, rows, matrix.columns);
    const int64_t after = round_up(operand_bytes(rows, matrix.columns), 64);
    int32_t* identity = reinterpret_cast<int32_t*>(memory + after);
    float* scratch = reinterpret_cast<float*>(memory + after + round_up(rows * 4, 64));
    for (int64_t t = 0; t < rows; ++t) {
        identity[t] = static_cast<int32_t>(t);
        prepare(x, t, x_TI + t * matrix.columns, matrix.columns, needs(matrix, prefill));
    }
#pragma omp parallel num_threads(threads)
    {
        const Team team = {thread_number(), team_size()};
        const Range tiles = team.share(matrix.tiles());
        float* own = scratch + team.thread * kProductScratch;
        for (int64_t tile = tiles.first; tile < tiles.stop; ++tile)
            product_tile(matrix, tile, x, RowList{identity, prefill ? 0 : rows, rows}, own, [&](int64_t t, F32x16 y) {
                alignas(64) float values[16];
                store(values, y);
                for (int64_t r = 0; r < 16 && tile * 16 + r < matrix.rows; ++r)
                    out_TO[t * matrix.rows + tile * 16 + r] = values[r];
            });
    }
}

static int64_t linear_bytes(const Matrix& matrix, int64_t rows, int threads) {
    return round_up(operand_bytes(rows, matrix.columns), 64) + round_up(rows * 4, 64) + threads * kProductScratch * 4 + 64;
}

static int64_t step_bytes(const Model& model, const Batch& batch, int threads) {
    Arena arena = {nullptr};
    carve(arena, model, batch, threads);
    return arena.used;
}

}  // namespace CUEVA_ISA

extern "C" const cueva::Kernels CUEVA_TABLE;
const cueva::Kernels CUEVA_TABLE = {
    CUEVA_ISA_NAME,          CUEVA_ISA::tile_bytes,   CUEVA_ISA::pack,       CUEVA_ISA::unpack, CUEVA_ISA::linear,
    CUEVA_ISA::linear_bytes, CUEVA_ISA::quantise,     CUEVA_ISA::step_bytes, CUEVA_ISA::step,
};
