// Which way an F8 product of many tokens goes. cuBLASLt applies scales of rows and of 128 columns on sm_90
// alone; elsewhere it multiplies codes, and a kernel behind it applies the scales of rows (those of columns
// cannot be applied behind the sum: there the own kernel serves).
#include <algorithm>

#include "backend/cuda/cublaslt.h"
#include "backend/cuda/f8.h"
#include "backend/cuda/gemm_parts.h"
#include "backend/cuda/parts.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr int64_t kTokenStep = 4;  // what cuBLASLt asks of the number of tokens with scales of blocks

F8Rows quantize(Context& context, const LinearCall& call, int64_t first, const Product& p) {
  const CallRows rows = rows_of(call, first);
  RowsToF8 r{.x = rows.x,
             .x_stride = call.x.stride[0],
             .x_row = rows.x_row,
             .tokens = p.tokens,
             .cols = call.x.shape[1],
             .x_scale = call.weight->x_scale,
             .groups = p.w.groups > 1,
             .stride = p.w.cols,
             .padded = round_up(p.tokens, kTokenStep)};
  if (call.norm != nullptr) {
    r.norm = call.norm->weight.as<float>();
    r.eps = call.norm->eps;
  }
  const int64_t groups = r.groups ? (p.w.cols + kF8Group - 1) / kF8Group : 1;
  r.out = context.scratch->allocate(static_cast<size_t>(r.padded * r.stride));
  r.scale = reinterpret_cast<float*>(
      context.scratch->allocate(static_cast<size_t>(groups * r.padded) * sizeof(float)));
  rows_to_f8(*context.gpu, context.activation, r);
  return {.x = r.out, .stride = r.stride, .scale = r.scale, .padded = r.padded};
}

GemmScales scales_of(const Gpu& gpu, const Product& p) {
  if (gpu.facts().capability != 90) return GemmScales::kNone;
  return p.w.groups == 1 ? GemmScales::kRows : GemmScales::kBlocks;
}

bool library_can(const Gpu& gpu, const Product& p) {
  return gpu.fast.cublaslt_f8 && gpu.parts().cublaslt != nullptr &&
         (p.w.groups == 1 || scales_of(gpu, p) == GemmScales::kBlocks);
}

// Whether the library may write where the sums go in the end.
bool fits_sink(const Gpu& gpu, const Product& p) {
  const GemmScales scales = scales_of(gpu, p);
  return scales != GemmScales::kNone && p.sink.kind != Epilogue::kGated && p.sink.rows == p.w.rows &&
         (scales == GemmScales::kRows || p.tokens % kTokenStep == 0) &&
         is_aligned(p.sink.out, p.sink.stride * (p.sink.f32 ? 4 : 2));
}

Gemm gemm_of(const Gpu& gpu, const Product& p, const F8Rows& x) {
  return {.m = p.tokens,
          .n = p.w.rows,
          .k = p.w.cols,
          .x = x.x,
          .x_stride = x.stride,
          .w = p.w.data,
          .w_stride = p.w.cols,
          .in = DType::kF8E4M3,
          .scales = scales_of(gpu, p),
          .x_scale = x.scale,
          .w_scale = static_cast<const float*>(p.w.scales)};
}

bool into_sink(Context& context, const Product& p, const F8Rows& x) {
  Gpu& gpu = *context.gpu;
  Gemm g = gemm_of(gpu, p, x);
  g.d = p.sink.out;
  g.d_stride = p.sink.stride;
  g.out = p.sink.f32 ? DType::kF32 : context.activation;
  g.alpha = p.sink.scale;
  g.add = p.sink.kind == Epilogue::kAdd;
  if (!gpu.parts().cublaslt->multiply(gpu, g)) return false;
  if (p.sink.bias != nullptr) add_bias_to_all(gpu, context.activation, p, p.w.rows);
  return true;
}

bool into_sums(Context& context, const Product& p, const F8Rows& x) {
  Gpu& gpu = *context.gpu;
  const ScratchMark mark(*context.scratch);
  Gemm g = gemm_of(gpu, p, x);
  if (g.scales == GemmScales::kBlocks) g.m = x.padded;
  g.d = context.scratch->allocate(static_cast<size_t>(g.m * p.w.rows) * 2);
  g.d_stride = p.w.rows;
  g.out = DType::kBF16;
  if (!gpu.parts().cublaslt->multiply(gpu, g)) return false;
  F8Sums s{.sums = g.d, .stride = g.d_stride};
  if (g.scales == GemmScales::kNone) {
    s.token_scale = x.scale;
    s.row_scale = static_cast<const float*>(p.w.scales);
  }
  finish_f8_sums(gpu, context.activation, s, p);
  return true;
}

// False: there is nothing that could.
bool in_f8(Context& context, const LinearCall& call, int64_t first, const Product& p) {
  const Gpu& gpu = *context.gpu;
  const bool library = library_can(gpu, p);
  if (!library && !gpu.fast.f8_tile) return false;
  const ScratchMark mark(*context.scratch);
  const F8Rows x = quantize(context, call, first, p);
  if (library && (fits_sink(gpu, p) ? into_sink(context, p, x) : into_sums(context, p, x))) return true;
  if (!gpu.fast.f8_tile) return false;
  f8_tile_product(*context.gpu, context.activation, p, x);
  return true;
}

}  // namespace

bool has_f8_products(const Gpu& gpu) {
  return gpu.facts().capability >= 89;
}

bool serves_f8(const Gpu& gpu) {
  return (gpu.fast.cublaslt_f8 || gpu.fast.f8_tile) && !gpu.options().deterministic;
}

void f8_product(Context& context, const LinearCall& call, const Product& p) {
  const Gpu& gpu = *context.gpu;
  const bool library = library_can(gpu, p), direct = library && fits_sink(gpu, p);
  const int64_t at_once =
      library && !direct ? sums_tokens(p.w.rows, p.tokens) : std::min(p.tokens, kMostGridTokens);
  for (int64_t first = 0; first < p.tokens; first += at_once) {
    const Product part = tokens_of(p, first, std::min(at_once, p.tokens - first));
    if (in_f8(context, call, first, part)) continue;
    const ScratchMark mark(*context.scratch);
    product_in_a(context, call, first, part);
  }
}

}  // namespace deepinfer::cuda
