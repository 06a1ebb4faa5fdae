// Products of F8 weights in FP8: activations are rounded to e4m3 on the way in, a scale a token, or one for
// 128 columns of a token where the weight's scales are of 128 columns. A weight with a scale of x for all of
// its inputs (LinearWeight::x_scale) takes that one instead of the largest value.
//
// Errors against products with x as it is: a value is off by at most max(|x| / 16, s / 1024), s its scale,
// which is the largest |x| of the token (or of its 128 columns) over 448. Values beyond 448 x_scale are cut.
#pragma once

#include <cstdint>

#include "backend/cuda/product.h"

namespace deepinfer::cuda {

// Whether the card multiplies FP8 at all.
bool has_f8_products(const Gpu& gpu);

// Whether linear() takes products of more than kSkinnyTokens tokens to f8_product(). Not in deterministic
// mode: there a token's bits do not depend on the others.
bool serves_f8(const Gpu& gpu);

// Computes `p`, whose x is call's, whichever way its tokens go: cuBLASLt, the own kernel, and where neither
// can, with weights expanded to A.
void f8_product(Context& context, const LinearCall& call, const Product& p);

// --- Kernels.

// Values are finite or their products are not.
struct RowsToF8 {
  const void* x = nullptr;  // F32 with `norm`, else A
  int64_t x_stride = 0;
  const int32_t* x_row = nullptr;  // null: row t
  int64_t tokens = 0, cols = 0;
  const float* norm = nullptr;
  float eps = 0;
  float x_scale = 0;       // 0: of what is there
  bool groups = false;     // a scale for kF8Group columns
  void* out = nullptr;     // e4m3 [padded][stride], zeros beyond tokens and cols
  int64_t stride = 0;      // a multiple of 64
  float* scale = nullptr;  // [groups][padded]
  int64_t padded = 0;      // tokens rounded up to 4
};
void rows_to_f8(Gpu& gpu, DType a, const RowsToF8& r);

// What rows_to_f8 made, for a product of p.tokens tokens; p.x is not read.
struct F8Rows {
  const void* x = nullptr;
  int64_t stride = 0;
  const float* scale = nullptr;
  int64_t padded = 0;
};
// Only on cards that have FP8 (FastPaths::f8_tile).
void f8_tile_product(Gpu& gpu, DType a, const Product& p, const F8Rows& rows);

// The epilogue of sums that a library left in BF16: [p.tokens][stride], all packed rows. F16 would not hold
// sums of codes.
struct F8Sums {
  const void* sums = nullptr;
  int64_t stride = 0;
  const float* token_scale = nullptr;  // null: sums are scaled
  const float* row_scale = nullptr;
};
void finish_f8_sums(Gpu& gpu, DType a, const F8Sums& s, const Product& p);

}  // namespace deepinfer::cuda
