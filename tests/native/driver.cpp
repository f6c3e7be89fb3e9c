// The kernels without Python: packs, products, quantisers and steps of every instruction set that this program was built
// with and that the processor runs, each against straightforward loops. Built for another architecture it runs under an
// emulator (`python -m tools.aarch64`), and with emulated instructions it proves the AVX-512 sets on any x86-64 machine.
//
// Prints what was checked, fingerprints of quantised blocks (the same bytes on every machine) and some results of steps,
// which whoever runs it elsewhere compares; exits with 1 when anything failed.

#include <cinttypes>
#include <cstdio>
#include <string>

#include "../../cueva/kernels/native/isa.hpp"
#include "plain.hpp"
#include "small_model.hpp"

using namespace plain;

static int64_t checks = 0, failures = 0;

static void check(bool good, const std::string& what) {
    ++checks;
    if (good) return;
    if (++failures <= 40) printf("FAILED %s\n", what.c_str());
}

static const char* name_of(Format f) {
    static const char* names[] = {"f32", "bf16", "fp8", "q8_0", "q4_0", "q4_k", "q6_k", "rows_f32", "rows_bf16"};
    return names[static_cast<int>(f)];
}
static bool is_block(Format f) { return f >= Format::q8_0 && f <= Format::q6_k; }

// A stored matrix: the numbers it stands for, and the tiles (or rows) that hold them.
struct Stored {
    Floats numbers;
    Bytes source, tiles;
    Floats scales;  // FP8: one for each 128 x 128
    Matrix matrix;
};

static Stored stored(const Kernels& kernels, Format f, int source, int64_t rows, int64_t columns, Random& random) {
    Stored s;
    const Floats x = random.normals(rows * columns, 0.3f);
    s.numbers = x;
    int64_t row_bytes = columns * 4, cell = 4, scale_stride = (columns + 127) / 128;
    if (f == Format::fp8) {
        row_bytes = columns, cell = 1;
        s.scales.resize(scale_stride * ((rows + 127) / 128));
        for (float& scale : s.scales) scale = 0.01f + static_cast<float>(random.uniform());
        s.source.resize(rows * columns);
        for (int64_t i = 0; i < rows * columns; ++i) {
            const uint8_t code = static_cast<uint8_t>(random.next());
            s.source[i] = (code & 127) == 127 ? 0 : code;  // no NaN
            s.numbers[i] = e4m3(s.source[i]) * s.scales[i / columns / 128 * scale_stride + i % columns / 128];
        }
    } else if (is_block(f)) {
        row_bytes = columns / block_values(f) * block_bytes(f);
        s.source.resize(rows * row_bytes);
        check(kernels.quantise(f, x.data(), rows, columns, s.source.data(), 1), "quantise knows the format");
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t k = 0; k < columns; ++k)
                s.numbers[r * columns + k] =
                    block_value(f, s.source.data() + r * row_bytes + k / block_values(f) * block_bytes(f),
                                static_cast<int>(k % block_values(f)));
    } else if (source == 0) {
        s.source.resize(rows * row_bytes);
        memcpy(s.source.data(), x.data(), s.source.size());
        if (f == Format::bf16)
            for (float& one : s.numbers) one = bf16(to_bf16(one));
    } else {
        row_bytes = columns * 2, cell = 2;
        s.source.resize(rows * row_bytes);
        for (int64_t i = 0; i < rows * columns; ++i) {
            // bf16, or float16 by its bits: any code whose number is finite.
            uint16_t code = source == 1 ? to_bf16(x[i]) : static_cast<uint16_t>(random.next());
            if (source == 2 && (code & 0x7c00) == 0x7c00) code &= 0x83ff;
            memcpy(s.source.data() + 2 * i, &code, 2);
            s.numbers[i] = source == 1 ? bf16(code) : half(code);
            if (f == Format::bf16) s.numbers[i] = bf16(to_bf16(s.numbers[i]));
        }
    }
    s.matrix.format = f, s.matrix.rows = rows, s.matrix.columns = columns;
    if (f == Format::rows_f32 || f == Format::rows_bf16) {
        s.matrix.data = s.source.data(), s.matrix.tile_bytes = row_bytes;
        return s;
    }
    s.matrix.tile_bytes = kernels.tile_bytes(f, columns);
    s.tiles.assign(s.matrix.tile_bytes * s.matrix.tiles() + 64, 0xa5);
    const int from = f == Format::fp8 || is_block(f) ? -1 : source;
    kernels.pack(f, from, s.source.data(), row_bytes, cell, rows, columns, s.scales.data(), scale_stride, 0, 0,
                 s.tiles.data(), s.matrix.tile_bytes, 2);
    s.matrix.data = s.tiles.data();
    for (int i = 0; i < 64; ++i)
        check(s.tiles[s.tiles.size() - 64 + i] == 0xa5, std::string("packing stays within its tiles: ") + name_of(f));
    return s;
}

static Floats product(const Kernels& kernels, const Matrix& m, const Floats& x, int64_t rows, bool prefill, int threads) {
    Bytes memory(kernels.linear_bytes(m, rows, threads) + 128);
    const uintptr_t start = (reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64;
    Floats out(rows * m.rows, NAN);
    kernels.linear(m, x.data(), rows, prefill, out.data(), reinterpret_cast<uint8_t*>(start), threads);
    return out;
}

// What the kernels promise to round: activations to bytes (blocks, when decoding) or, where bf16 is multiplied, both sides.
static void check_products(const Kernels& kernels, const Stored& s, const std::string& what, Random& random) {
    const Matrix& m = s.matrix;
    const bool pairs = std::string(kernels.name) == "avx512bf16" && m.format != Format::f32
                       && m.format != Format::rows_f32 && m.format != Format::rows_bf16;
    for (const bool prefill : {false, true}) {
        const int64_t most = prefill ? 101 : 19;
        const Floats x = random.normals(most * m.columns);
        const Floats all = product(kernels, m, x, most, prefill, 1);
        for (int64_t t = 0; t < most; ++t) {
            const float* row = x.data() + t * m.columns;
            Floats seen(row, row + m.columns);
            if (is_block(m.format) && !prefill) seen = through_bytes(row, m.columns);
            if (pairs && (prefill || !is_block(m.format)))
                for (float& one : seen) one = bf16(to_bf16(one));
            for (int64_t r = 0; r < m.rows; ++r) {
                double want = 0.0, size = 0.0;
                for (int64_t k = 0; k < m.columns; ++k) {
                    float w = s.numbers[r * m.columns + k];
                    if (pairs && prefill) w = bf16(to_bf16(w));
                    want += static_cast<double>(w) * seen[k];
                    size += std::fabs(static_cast<double>(w) * seen[k]);
                }
                const double got = all[t * m.rows + r];
                check(std::fabs(got - want) <= 4e-6 * size + 1e-30,
                      what + (prefill ? " prompt" : " decode") + " row " + std::to_string(t) + " result "
                          + std::to_string(r) + ": " + std::to_string(got) + " for " + std::to_string(want));
            }
        }
        // A row has the same bits alone, among others, and whatever the number of threads.
        for (const int64_t rows : {1, 2, 3, 4, 5, 8, 9, 16, 17}) {
            const Floats few = product(kernels, m, x, rows, prefill, rows % 2 ? 2 : 1);
            check(memcmp(few.data(), all.data(), few.size() * 4) == 0,
                  what + (prefill ? " prompt" : " decode") + ": the same bits for " + std::to_string(rows) + " rows");
        }
    }
}

static void check_matrices(const Kernels& kernels) {
    Random random(11);
    const Format formats[] = {Format::f32, Format::bf16, Format::fp8, Format::q8_0, Format::q4_0,
                              Format::q4_k, Format::q6_k, Format::rows_f32, Format::rows_bf16};
    for (const Format f : formats) {
        const bool wide = f == Format::q4_k || f == Format::q6_k, mapped = f >= Format::rows_f32;
        const int64_t odd[] = {1, 37, 129, 300}, thirty_twos[] = {32, 96, 160, 1056}, supers[] = {256, 512, 768, 1280};
        const int64_t* columns = wide ? supers : is_block(f) ? thirty_twos : odd;
        for (int i = 0; i < 4; ++i) {
            const int64_t rows = i == 3 ? 19 : 1 + 16 * i;
            const int first = f == Format::rows_bf16 ? 1 : 0;
            const int last = f == Format::f32 || f == Format::bf16 ? 2 : first;
            for (int source = first; source <= last; ++source) {
                const Stored s = stored(kernels, f, source, rows, columns[i], random);
                const std::string what = std::string(kernels.name) + " " + name_of(f) + " " + std::to_string(rows) + "x"
                                         + std::to_string(columns[i]) + " source " + std::to_string(source);
                if (!mapped) {
                    Floats back(rows * columns[i], NAN);
                    kernels.unpack(s.matrix, back.data(), columns[i]);
                    check(memcmp(back.data(), s.numbers.data(), back.size() * 4) == 0 || back == s.numbers,
                          what + ": unpacked numbers are those that were packed");
                }
                check_products(kernels, s, what, random);
            }
        }
    }
}

static void check_quantisers(const Kernels& kernels) {
    // Root of the mean squared error over that of the numbers, for normal ones; measured 0.0056, 0.090, 0.072, 0.018.
    const struct { Format format; double most; } bounds[] = {
        {Format::q8_0, 0.007}, {Format::q4_0, 0.1}, {Format::q4_k, 0.08}, {Format::q6_k, 0.021}};
    for (const auto& bound : bounds) {
        Random random(23);
        const int64_t rows = 6, columns = 1024;
        Floats x = random.normals(rows * columns);
        for (int64_t k = 0; k < columns; ++k) x[k] = k < 512 ? 0.0f : 1e-12f;  // a row of next to nothing
        const int64_t row_bytes = columns / block_values(bound.format) * block_bytes(bound.format);
        Bytes blocks(rows * row_bytes);
        kernels.quantise(bound.format, x.data(), rows, columns, blocks.data(), 2);
        double error = 0.0, size = 0.0;
        for (int64_t i = 0; i < rows * columns; ++i) {
            const int64_t k = i % columns;
            const uint8_t* block = blocks.data() + i / columns * row_bytes
                                   + k / block_values(bound.format) * block_bytes(bound.format);
            const double off = block_value(bound.format, block, static_cast<int>(k % block_values(bound.format))) - x[i];
            error += off * off, size += static_cast<double>(x[i]) * x[i];
        }
        const double relative = std::sqrt(error / size);
        check(relative <= bound.most, std::string(kernels.name) + " " + name_of(bound.format) + ": error "
                                          + std::to_string(relative));
        printf("fingerprint %s %s %016" PRIx64 "\n", name_of(bound.format), kernels.name, fingerprint(blocks));
    }
}

// Prompts, then one step of everything at once: a decoded row over two chunks of cache, rows under verification, a fresh
// prompt, and the rest of a long one; then the MTP module on the states of the first rows. float32 with a cache of float32,
// bf16 with one of bf16.
static Floats steps(const Kernels& kernels, Format f, int threads) {
    SmallModel small(kernels, f);
    small.model.cache_f32 = f == Format::f32;
    Sequence a, b, c, d;
    run_step(small, {{&a, 270, true}, {&b, 5, true}, {&d, 260, true}}, 0, nullptr, threads);
    const std::vector<Piece> mixed = {{&a, 1, false}, {&b, 3, false}, {&c, 9, true}, {&d, 2, true}};
    Floats out = run_step(small, mixed, 0, nullptr, threads, true);
    const Floats mtp = run_step(small, {{&c, 4, true}}, 1, out.data(), threads);
    out.insert(out.end(), mtp.begin(), mtp.end());
    return out;
}

static void check_steps(const Kernels& kernels, const Kernels& portable) {
    for (const Format f : {Format::f32, Format::bf16}) {
        const std::string what = std::string(kernels.name) + " step " + name_of(f);
        const Floats got = steps(kernels, f, 1), want = steps(portable, f, 1), shared = steps(kernels, f, 2);
        check(memcmp(got.data(), shared.data(), got.size() * 4) == 0, what + ": the same bits on two threads");
        // A cache of bf16 has 8 bits: a last bit of float32 that tips one over moves results by parts in a thousand, and
        // activations rounded to bf16 as well by parts in a hundred.
        const bool rounds = std::string(kernels.name) == "avx512bf16";
        const float most = f == Format::f32 ? 2e-5f : rounds ? 0.1f : 0.02f;
        float off = 0.0f;
        bool finite = true;
        for (size_t i = 0; i < got.size(); ++i) {
            finite = finite && std::isfinite(got[i]);
            off = std::fmax(off, std::fabs(got[i] - want[i]) / (1.0f + std::fabs(want[i])));
        }
        check(finite, what + ": every number is finite");
        check(off <= most, what + ": differs from portable by " + std::to_string(off));
        printf("step %s %s (%.2g from portable)", name_of(f), kernels.name, static_cast<double>(off));
        for (size_t i = 0; i < got.size(); i += got.size() / 12) printf(" %.9g", static_cast<double>(got[i]));
        printf("\n");
    }
}

int main() {
    const std::vector<const Kernels*> sets = cueva::runnable_kernels();
    for (const Kernels* kernels : sets) {
        const int64_t before = checks, failed = failures;
        check_matrices(*kernels);
        check_quantisers(*kernels);
        check_steps(*kernels, *sets.back());
        printf("%s: %" PRId64 " checks, %" PRId64 " failed\n", kernels->name, checks - before, failures - failed);
    }
    return failures ? 1 : 0;
}
