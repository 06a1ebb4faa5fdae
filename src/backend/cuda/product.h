// What the product kernels (skinny and tile) take, by value, and who launches them.
//
// Both compute the same sums in the same order: K is cut into units of 64 columns, the units into sections, a
// number that depends on K alone. A section is one chain of mma.sync over its columns, 16 at a time; the
// sections' sums are added from the first to the last. Within a unit thread t of a quad holds columns 8 t ..
// 8 t + 7 of each half, so that its fragment is 16 consecutive bytes; both operands are permuted alike. So a
// token's result has the same bits whichever kernel computes it, alone or among others.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cuda/linear.h"
#include "backend/cuda/packed.h"

namespace deepinfer::cuda {

class Gpu;

inline constexpr int kSkinnyTokens = 16;    // most of one launch
inline constexpr int kFusedNormTokens = 4;  // most whose norm the skinny kernel computes in every block

// Where sums go. Rows are packed rows (packed.h).
struct Sink {
  Epilogue kind = Epilogue::kStore;
  Activation activation = Activation::kSilu;
  float scale = 1;
  const float* bias = nullptr;  // of unpacked rows: gate's then up's for pairs
  void* out = nullptr;
  int64_t stride = 0;  // elements
  bool f32 = false;    // out's type; else A
  int64_t rows = 0;    // that exist: N, or pairs for kGated
};

struct Product {
  PackedView w;
  int64_t first_row = 0;    // w begins at this packed row of the whole weight
  const void* x = nullptr;  // A [tokens][x_stride], 16-byte aligned rows of w.cols columns
  int64_t x_stride = 0;
  int64_t tokens = 0;
  Sink sink;
  // Fused norm (skinny only): x is F32 instead, token i reads row x_row[i].
  const float* norm = nullptr;
  float eps = 0;
  const int32_t* x_row = nullptr;
  // Skinny only, of a sink of F32: the block that completes a head finishes it. With no counters: nothing.
  QkvFinish finish;
};

// Warps that share a row tile in the skinny kernel; sums that the tile kernel adds up.
constexpr int product_sections(int64_t cols) {
  return cols >= 1024 ? 8 : 4;
}

// First unit of section s.
constexpr int section_start(int units, int sections, int s) {
  return units * s / sections;
}

// At most kSkinnyTokens tokens, every layout. DType a: kBF16 or kF16.
void skinny_product(Gpu& gpu, DType a, const Product& p);
void skinny_product_quantized(Gpu& gpu, DType a, const Product& p);  // the part of it for Q4 and Q8
void skinny_product_codes(Gpu& gpu, DType a, const Product& p);      // the part of it for U4 and U8
void skinny_product_f8(Gpu& gpu, DType a, const Product& p);         // and for F8
bool norm_fits(const Gpu& gpu, int64_t tokens, int64_t cols);        // whether its norm can be fused

// Any number of tokens, dense layouts, no fused norm.
void tile_product(Gpu& gpu, DType a, const Product& p);

// Rows [first_row, first_row + rows) of a quantized weight as A [rows][w.cols].
void dequantize_rows(Gpu& gpu, DType a, const PackedView& w, int64_t first_row, int64_t rows, void* out);

// out [tokens][stride] A = rms_norm(x) of F32 rows, or x itself of A rows; columns past `cols` are zeros.
// Column i of out is column order[i] of x.
struct RowsToA {
  const void* x = nullptr;
  int64_t x_stride = 0;
  const int32_t* x_row = nullptr;  // null: row t
  int64_t tokens = 0, cols = 0;
  const float* norm = nullptr;  // null: x is A and copied
  float eps = 0;
  const int32_t* order = nullptr;  // null: as they stand
  void* out = nullptr;
  int64_t stride = 0;
};
void rows_to_a(Gpu& gpu, DType a, const RowsToA& r);

// The epilogue of a product that a library left as plain sums, of at most 65,535 tokens: pairs combined into
// the sink, or the sink's bias added to its output.
struct PairSums {
  const void* sums = nullptr;  // [tokens][stride] A, packed rows [first_row, first_row + rows)
  int64_t stride = 0, tokens = 0, first_row = 0, rows = 0;
};
void combine_pairs(Gpu& gpu, DType a, const PairSums& s, const Sink& sink);
void add_bias(Gpu& gpu, DType a, int64_t tokens, int64_t first_row, int64_t rows, const Sink& sink);

}  // namespace deepinfer::cuda
