// How weights lie in memory: tiles of sixteen rows, columns in order, so that a thread reads one stream from end to end
// and sixteen results grow side by side without a horizontal sum.
//
// Columns are padded with zeros to a multiple of 32, rows to a multiple of 16. A tile holds, for I columns:
//
//   f32    for each column                     16 x float32
//   bf16   for each two columns                16 x (w[k], w[k+1])
//   fp8    for each 128 columns (or the rest)  16 x float32 scale times 2^8, then for each column 16 x e4m3
//   q8_0   for each 32 columns                 16 x float16 scale, then for each 4 columns 16 x 4 signed bytes
//   q4_0   for each 32 columns                 16 x float16 scale, then 4 x 64 bytes: vector v has columns 8v .. 8v+3 of
//                                              its row in the low halves of 4 bytes, columns 8v+4 .. 8v+7 in the high
//   q4_k   for each 256 columns                16 x float16 d, 16 x float16 dmin, then for each 32 columns
//                                              16 x scale, 16 x min (6 bits each), 4 x 64 bytes as in q4_0
//   q6_k   for each 256 columns                16 x float16 d, then for each 32 columns 2 x 16 signed scales (one for 16
//                                              columns), 4 x 64 bytes of low halves as in q4_0, 2 x 64 bytes: vector u has
//                                              bits 4-5 of columns 16u+j, 16u+4+j, 16u+8+j, 16u+12+j of its row in byte j
//
// Numbers are those of the source, whichever way they are laid out: nothing is rounded here.

#pragma once

#include "../native/plan.hpp"
#include "../native/simd.hpp"
#include "../native/turn.hpp"

namespace CUEVA_ISA {

using cueva::Format;
using cueva::kColumnPad;
using cueva::kTileRows;
using cueva::Matrix;
using cueva::round_up;

constexpr int64_t kFp8Block = 128;
constexpr int64_t kSuper = 256;  // columns of a K-quant's super-block

constexpr int64_t kQ8Bytes = 32 + 512;
constexpr int64_t kQ4Bytes = 32 + 256;
constexpr int64_t kQ4KPart = 32 + 256, kQ4KBytes = 64 + 8 * kQ4KPart;
constexpr int64_t kQ6KPart = 32 + 256 + 128, kQ6KBytes = 32 + 8 * kQ6KPart;

static int64_t tile_bytes(Format format, int64_t columns) {
    const int64_t padded = round_up(columns, kColumnPad);
    switch (format) {
        case Format::f32: return padded * 64;
        case Format::bf16: return padded * 32;
        case Format::fp8: return padded * 16 + (padded + kFp8Block - 1) / kFp8Block * 64;
        case Format::q8_0: return padded / 32 * kQ8Bytes;
        case Format::q4_0: return padded / 32 * kQ4Bytes;
        case Format::q4_k: return round_up(columns, kSuper) / kSuper * kQ4KBytes;
        case Format::q6_k: return round_up(columns, kSuper) / kSuper * kQ6KBytes;
        default: return 0;
    }
}

// --- packing -----------------------------------------------------------------------------------------------------------

static inline float source_value(int source, const uint8_t* at) {
    if (source == 0) {
        float value;
        memcpy(&value, at, 4);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, at, 2);
    return source == 1 ? bf16_to_float(bits) : half_to_float(bits);
}

// 32 columns of one row as float32 or bf16 bits, zeros beyond `there`.
static inline void take_columns(Format format, int source, const uint8_t* in, int64_t column_stride, int64_t there,
                                uint32_t* out) {
    const bool wide = format == Format::f32;
    if (there < 32) memset(out, 0, wide ? 128 : 64);
    uint16_t* halves = reinterpret_cast<uint16_t*>(out);
    if (column_stride == (source == 0 ? 4 : 2)) {  // neighbours in memory: whole blocks at once
        if (source == 0 && wide) {
            memcpy(out, in, there * 4);
            return;
        }
        if (source == 1 && !wide) {  // bf16 to bf16: bits as they are
            memcpy(out, in, there * 2);
            return;
        }
        if (source == 0) {
            float values[32] = {};
            memcpy(values, in, there * 4);
            for (int k = 0; k < 32; ++k) halves[k] = float_to_bf16(values[k]);
            return;
        }
    }
    for (int64_t k = 0; k < there; ++k) {
        const uint8_t* at = in + k * column_stride;
        const float value = source_value(source, at);
        if (wide)
            memcpy(out + k, &value, 4);
        else if (source == 1)
            memcpy(halves + k, at, 2);
        else
            halves[k] = float_to_bf16(value);
    }
}

// Sixteen rows of a dense source; rows beyond `present` are zeros. 32 columns at a time, turned in the first cache.
static void pack_dense_tile(Format format, int source, const uint8_t* from, int64_t row_stride, int64_t column_stride,
                            int64_t present, int64_t columns, uint8_t* out) {
    const int words = format == Format::f32 ? 32 : 16;
    alignas(64) uint32_t block[16][32] = {};
    uint32_t* to = reinterpret_cast<uint32_t*>(out);
    const bool as_is = present == 16 && row_stride % 4 == 0
                       && ((source == 1 && format == Format::bf16 && column_stride == 2)
                           || (source == 0 && format == Format::f32 && column_stride == 4));
    int64_t k0 = 0;
    if (as_is)
        for (; k0 + 32 <= columns; k0 += 32, to += words * 16)
            for (int word = 0; word < words; word += 16)
                turn16(reinterpret_cast<const uint32_t*>(from + k0 * column_stride) + word, row_stride / 4, to + word * 16);
    for (; k0 < columns; k0 += 32, to += words * 16) {
        const int64_t there = columns - k0 < 32 ? columns - k0 : 32;
        for (int64_t row = 0; row < present; ++row)
            take_columns(format, source, from + row * row_stride + k0 * column_stride, column_stride, there, block[row]);
        for (int word = 0; word < words; word += 16) turn16(block[0] + word, 32, to + word * 16);
    }
}

static void pack_fp8_tile(const uint8_t* codes, int64_t row_stride, int64_t column_stride, int64_t present,
                          int64_t columns, const float* scales, int64_t scale_stride, int64_t first_row,
                          int64_t first_column, uint8_t* out) {
    const int64_t padded = round_up(columns, kColumnPad);
    for (int64_t k0 = 0; k0 < padded; k0 += kFp8Block) {
        const int64_t width = padded - k0 < kFp8Block ? padded - k0 : kFp8Block;
        float* scale = reinterpret_cast<float*>(out);
        uint8_t* to = out + 64;
        memset(to, 0, width * 16);
        for (int64_t row = 0; row < 16; ++row)
            scale[row] = row < present && k0 < columns
                             ? 256.0f * scales[(first_row + row) / kFp8Block * scale_stride
                                               + (first_column + k0) / kFp8Block]
                             : 0.0f;
        const int64_t there = columns - k0 < width ? columns - k0 : width;
        for (int64_t k1 = 0; k1 < there; k1 += 16) {  // 16 x 16 codes at a time, so that lines are read once
            const int64_t end = there - k1 < 16 ? there : k1 + 16;
            for (int64_t row = 0; row < present; ++row)
                for (int64_t k = k1; k < end; ++k) to[k * 16 + row] = codes[row * row_stride + (k0 + k) * column_stride];
        }
        out += 64 + width * 16;
    }
}

// The 6-bit scale and min of part j of a Q4_K super-block: bytes 0-3 hold scales 0-3 and the top bits of 4-7, bytes 4-7
// mins likewise, bytes 8-11 the low halves of scales and mins 4-7.
static inline void q4_k_scale_min(const uint8_t* packed, int j, uint8_t* scale, uint8_t* min) {
    if (j < 4) {
        *scale = packed[j] & 63;
        *min = packed[j + 4] & 63;
    } else {
        *scale = static_cast<uint8_t>((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4);
        *min = static_cast<uint8_t>((packed[j + 4] >> 4) | (packed[j] >> 6) << 4);
    }
}

static inline uint32_t dword(const uint8_t* at) { uint32_t v; memcpy(&v, at, 4); return v; }
static inline void put_dword(uint8_t* at, uint32_t value) { memcpy(at, &value, 4); }

// Sixteen rows of GGUF blocks. Bits move four columns at a time: a dword is four bytes of one row.
static void pack_block_tile(Format format, const uint8_t* from, int64_t row_stride, int64_t present, int64_t columns,
                            uint8_t* out) {
    constexpr uint32_t kLow = 0x0f0f0f0fu, kHigh = 0xf0f0f0f0u;
    memset(out, 0, tile_bytes(format, columns));
    for (int64_t row = 0; row < present; ++row) {
        const uint8_t* in = from + row * row_stride;
        if (format == Format::q8_0) {
            for (int64_t b = 0; b < columns / 32; ++b, in += 34) {
                uint8_t* to = out + b * kQ8Bytes;
                memcpy(to + row * 2, in, 2);
                for (int64_t quad = 0; quad < 8; ++quad) memcpy(to + 32 + quad * 64 + row * 4, in + 2 + quad * 4, 4);
            }
        } else if (format == Format::q4_0) {
            // Columns 0-15 are the low halves of 16 bytes, 16-31 the high ones.
            for (int64_t b = 0; b < columns / 32; ++b, in += 18) {
                uint8_t* to = out + b * kQ4Bytes;
                memcpy(to + row * 2, in, 2);
                for (int pair = 0; pair < 2; ++pair) {
                    const uint32_t first = dword(in + 2 + pair * 8), second = dword(in + 2 + pair * 8 + 4);
                    put_dword(to + 32 + pair * 64 + row * 4, (first & kLow) | (second & kLow) << 4);
                    put_dword(to + 32 + (pair + 2) * 64 + row * 4, (first >> 4 & kLow) | (second & kHigh));
                }
            }
        } else if (format == Format::q4_k) {
            for (int64_t b = 0; b < columns / kSuper; ++b, in += 144) {
                uint8_t* to = out + b * kQ4KBytes;
                memcpy(to + row * 2, in, 2);
                memcpy(to + 32 + row * 2, in + 2, 2);
                for (int j = 0; j < 8; ++j) {
                    uint8_t* part = to + 64 + j * kQ4KPart;
                    q4_k_scale_min(in + 4, j, part + row, part + 16 + row);
                    const uint8_t* quants = in + 16 + (j / 2) * 32;
                    for (int v = 0; v < 4; ++v) {
                        const uint32_t first = dword(quants + v * 8), second = dword(quants + v * 8 + 4);
                        put_dword(part + 32 + v * 64 + row * 4, j % 2 ? (first >> 4 & kLow) | (second & kHigh)
                                                                      : (first & kLow) | (second & kLow) << 4);
                    }
                }
            }
        } else {
            for (int64_t b = 0; b < columns / kSuper; ++b, in += 210) {
                uint8_t* to = out + b * kQ6KBytes;
                memcpy(to + row * 2, in + 208, 2);
                for (int j = 0; j < 8; ++j) {
                    uint8_t* part = to + 32 + j * kQ6KPart;
                    part[row] = in[192 + 2 * j];
                    part[16 + row] = in[192 + 2 * j + 1];
                    // 128 columns share 64 bytes of low halves and 32 of high bits; j % 4 says which quarter we are in.
                    const uint8_t* low = in + (j / 4) * 64 + (j % 2) * 32;
                    const uint8_t* high = in + 128 + (j / 4) * 32;
                    for (int v = 0; v < 4; ++v) {
                        const uint32_t first = dword(low + v * 8), second = dword(low + v * 8 + 4);
                        put_dword(part + 32 + v * 64 + row * 4, j % 4 / 2 ? (first >> 4 & kLow) | (second & kHigh)
                                                                          : (first & kLow) | (second & kLow) << 4);
                    }
                    for (int half = 0; half < 2; ++half) {
                        uint32_t bits_of_16 = 0;
                        for (int quad = 0; quad < 4; ++quad)
                            bits_of_16 |= (dword(high + half * 16 + quad * 4) >> (j % 4 * 2) & 0x03030303u) << (quad * 2);
                        put_dword(part + 32 + 256 + half * 64 + row * 4, bits_of_16);
                    }
                }
            }
        }
    }
}

static void pack(Format format, int source, const uint8_t* from, int64_t row_stride, int64_t column_stride, int64_t rows,
                 int64_t columns, const float* scales, int64_t scale_stride, int64_t first_row, int64_t first_column,
                 uint8_t* out, int64_t tile_stride, int threads) {
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t row = tile * kTileRows;
        const int64_t present = rows - row < kTileRows ? rows - row : kTileRows;
        uint8_t* to = out + tile * tile_stride;
        if (format == Format::fp8)
            pack_fp8_tile(from + row * row_stride, row_stride, column_stride, present, columns, scales, scale_stride,
                          first_row + row, first_column, to);
        else if (source >= 0)
            pack_dense_tile(format, source, from + row * row_stride, row_stride, column_stride, present, columns, to);
        else
            pack_block_tile(format, from + row * row_stride, row_stride, present, columns, to);
    }
}

// --- reading back ------------------------------------------------------------------------------------------------------

// The two bits of quad i in each byte of a q6_k vector of high bits.
static inline U8x64 two_bits(U8x64 high, int64_t i) {
    return i == 0 ? bits<0>(high, 3) : i == 1 ? bits<2>(high, 3) : i == 2 ? bits<4>(high, 3) : bits<6>(high, 3);
}

// Dense rows that are not in tiles: sixteen of them into a widened tile.
static void widen_rows(const Matrix& w, int64_t tile, int64_t first, int64_t stop, float* out) {
    const int64_t cell = w.format == Format::rows_f32 ? 4 : 2;
    memset(out, 0, (stop - first) * 64);
    for (int64_t r = 0; r < 16 && tile * 16 + r < w.rows; ++r) {
        const uint8_t* row = w.data + (tile * 16 + r) * w.tile_bytes;
        for (int64_t k = first; k < stop && k < w.columns; ++k)
            out[(k - first) * 16 + r] = source_value(cell == 4 ? 0 : 1, row + k * cell);
    }
}

// Columns [first, stop) of a tile as float32, [column][16 rows]: exactly the numbers stored. `first` is a multiple of
// 256, and so is `stop` unless it is the padded end.
static void widen(const Matrix& w, int64_t tile, int64_t first, int64_t stop, float* out) {
    const uint8_t* data = w.data + tile * w.tile_bytes;
    switch (w.format) {
        case Format::rows_f32:
        case Format::rows_bf16:
            widen_rows(w, tile, first, stop, out);
            return;
        case Format::f32:
            memcpy(out, data + first * 64, (stop - first) * 64);
            return;
        case Format::bf16:
            for (int64_t k = first; k < stop; k += 2, out += 32) {
                F32x16 even, odd;
                load_bf16_pairs(data + k * 32, even, odd);
                store(out, even);
                store(out + 16, odd);
            }
            return;
        case Format::fp8:
            for (int64_t k0 = first; k0 < stop; k0 += kFp8Block) {
                const uint8_t* block = data + k0 * 16 + k0 / kFp8Block * 64;
                const F32x16 scale = load(reinterpret_cast<const float*>(block));
                const int64_t width = stop - k0 < kFp8Block ? stop - k0 : kFp8Block;
                for (int64_t k = 0; k < width; ++k, out += 16) store(out, mul(load_e4m3(block + 64 + k * 16), scale));
            }
            return;
        case Format::q8_0:
            for (int64_t k0 = first; k0 < stop; k0 += 32) {
                const uint8_t* block = data + k0 / 32 * kQ8Bytes;
                const F32x16 scale = load_f16(block);
                for (int64_t quad = 0; quad < 8; ++quad) {
                    const S8x64 bytes = load_s8x64(block + 32 + quad * 64);
                    for (int j = 0; j < 4; ++j, out += 16) store(out, mul(signed_column(bytes, j), scale));
                }
            }
            return;
        default: {
            const bool simple = w.format == Format::q4_0, six = w.format == Format::q6_k;
            for (int64_t k0 = first; k0 < stop; k0 += 32) {
                const uint8_t *vectors, *high = nullptr;
                F32x16 scale[2], offset = zero();
                if (simple) {
                    const uint8_t* block = data + k0 / 32 * kQ4Bytes;
                    scale[0] = scale[1] = load_f16(block);
                    vectors = block + 32;
                } else if (!six) {
                    const uint8_t* block = data + k0 / kSuper * kQ4KBytes;
                    const uint8_t* part = block + 64 + k0 % kSuper / 32 * kQ4KPart;
                    scale[0] = scale[1] = mul(load_f16(block), load_u8(part));
                    offset = sub(zero(), mul(load_f16(block + 32), load_u8(part + 16)));
                    vectors = part + 32;
                } else {
                    const uint8_t* block = data + k0 / kSuper * kQ6KBytes;
                    const uint8_t* part = block + 32 + k0 % kSuper / 32 * kQ6KPart;
                    scale[0] = mul(load_f16(block), load_s8(part));
                    scale[1] = mul(load_f16(block), load_s8(part + 16));
                    vectors = part + 32;
                    high = part + 32 + 256;
                }
                for (int64_t quad = 0; quad < 8; ++quad) {
                    const U8x64 pair = load_u8x64(vectors + quad / 2 * 64);
                    U8x64 bytes = quad % 2 ? bits<4>(pair, 15) : bits<0>(pair, 15);
                    if (six) bytes = join_bits(bytes, two_bits(load_u8x64(high + quad / 4 * 64), quad % 4));
                    const F32x16 less = splat(simple ? 8.0f : six ? 32.0f : 0.0f);
                    for (int j = 0; j < 4; ++j, out += 16) {
                        const F32x16 value = mul(sub(unsigned_column(bytes, j), less), scale[quad / 4]);
                        store(out, simple || six ? value : add(value, offset));
                    }
                }
            }
        }
    }
}

static int64_t widened_columns(const Matrix& w) {
    const bool super = w.format == Format::q4_k || w.format == Format::q6_k;
    return round_up(w.columns, super ? kSuper : kColumnPad);
}

// The whole matrix as float32, row by row; for tests and for what is not in a hurry.
static void unpack(const Matrix& w, float* out_OI, int64_t stride) {
    constexpr int64_t kStep = 256;
    alignas(64) float wide[kStep * 16];
    const int64_t columns = widened_columns(w);
    for (int64_t tile = 0; tile < w.tiles(); ++tile)
        for (int64_t k0 = 0; k0 < columns; k0 += kStep) {
            const int64_t stop = k0 + kStep < columns ? k0 + kStep : columns;
            widen(w, tile, k0, stop, wide);
            for (int64_t row = tile * 16; row < w.rows && row < tile * 16 + 16; ++row)
                for (int64_t k = k0; k < stop && k < w.columns; ++k)
                    out_OI[row * stride + k] = wide[(k - k0) * 16 + row - tile * 16];
        }
}

}  // namespace CUEVA_ISA
