// Which kernel computes a product.
//
//   up to 16 tokens   the skinny kernel, with its norm fused for up to 4
//   more, dense       cuBLASLt; in deterministic mode or without the library the tile kernel
//   more, codes       up to 512 tokens the kernel of gemm_codes.cu, not in deterministic mode; else as
//                     quantized
//   more, quantized   up to 64 tokens, or in deterministic mode, the skinny kernel, 16 tokens a pass; else
//                     slices of the weight's rows are expanded to A and multiplied as dense ones
//   more, F8          in FP8 where the card has it (gemm_f8.cpp)
//
// A path that the self-check has switched off gives way to the tile kernel.
#include <algorithm>

#include "backend/cuda/cublaslt.h"
#include "backend/cuda/f8.h"
#include "backend/cuda/gemm_codes.h"
#include "backend/cuda/gemm_parts.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/product.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

// Above this, expanding the weight costs less than reading it once more for every 16 tokens.
constexpr int64_t kSkinnyQuantizedTokens = 64;
constexpr int64_t kSliceBytes = int64_t{64} << 20;  // of an expanded weight
constexpr int64_t kSumsBytes = int64_t{96} << 20;   // of gate's and up's sums, while cuBLASLt makes them
constexpr int64_t kLeastSums = 128;                 // tokens whose sums are made at once, at least

int64_t slice_rows(int64_t cols, int64_t rows) {
  return std::min(rows, std::max<int64_t>(kSliceBytes / (cols * 2) / 128 * 128, 128));
}

Product product_of(const Context& context, const LinearCall& call) {
  const LinearWeight& w = *call.weight;
  Product p;
  p.w = packed_view(w);
  p.tokens = call.out.shape[0];
  p.x = call.x.data;
  p.x_stride = call.x.stride[0];
  const bool gated = call.epilogue == Epilogue::kGated;
  p.sink = {.kind = call.epilogue,
            .activation = call.activation,
            .scale = call.scale,
            .bias = call.bias.as<float>(),
            .out = call.out.data,
            .stride = call.out.stride[0],
            .f32 = call.out.dtype == DType::kF32,
            .rows = gated ? w.rows / 2 : w.rows};
  const DType a = context.activation;
  DI_CHECK(a == DType::kBF16 || a == DType::kF16, "linear: activations of {}", info(a).name);
  DI_CHECK(is_quantized(p.w.layout) || p.w.layout == (a == DType::kF16 ? Layout::kF16 : Layout::kBF16),
           "linear: a weight packed for activations of another type than {}", info(a).name);
  DI_CHECK((w.order == RowOrder::kPaired) == gated, "linear: epilogue {} for rows in order {}",
           static_cast<int>(call.epilogue), static_cast<int>(w.order));
  DI_CHECK(call.out.shape[1] == p.sink.rows && call.x.shape[1] == w.cols,
           "linear: [{}, {}] times x of {} columns into out of {}", w.rows, w.cols, call.x.shape[1],
           call.out.shape[1]);
  DI_CHECK(call.out.dtype == a || (call.out.dtype == DType::kF32 && !gated), "linear: out is {}",
           info(call.out.dtype).name);
  DI_CHECK(call.epilogue != Epilogue::kAdd || p.sink.f32, "linear: a residual of {}",
           info(call.out.dtype).name);
  DI_CHECK(call.x.dtype == (call.norm != nullptr ? DType::kF32 : a), "linear: x is {}",
           info(call.x.dtype).name);
  DI_CHECK(call.x_row == nullptr || call.norm != nullptr, "linear: chosen rows without a norm");
  DI_CHECK(!gated || call.scale == 1.0f, "linear: a scale of gated outputs");
  DI_CHECK(
      call.finish == nullptr || (p.sink.f32 && call.epilogue == Epilogue::kStore &&
                                 call.finish->product == p.sink.out && call.finish->rows == p.sink.stride),
      "linear: finished heads of another product");
  return p;
}

// Sets p.x: rows of A with the weight's padded columns, 16-byte aligned. p is the call's tokens from `first`
// on.
void prepare_x(Context& context, const LinearCall& call, int64_t first, Product& p) {
  const CallRows rows = rows_of(call, first);
  p.x = rows.x;
  p.x_stride = call.x.stride[0];
  const bool plain = call.norm == nullptr && call.weight->column_order.size() == 0 &&
                     call.x.shape[1] == p.w.cols && is_aligned(p.x, p.x_stride * 2);
  if (plain) return;
  RowsToA r{.x = rows.x,
            .x_stride = call.x.stride[0],
            .x_row = rows.x_row,
            .tokens = p.tokens,
            .cols = call.x.shape[1],
            .order = reinterpret_cast<const int32_t*>(call.weight->column_order.data()),
            .stride = p.w.cols};
  if (call.norm != nullptr) {
    r.norm = call.norm->weight.as<float>();
    r.eps = call.norm->eps;
  }
  r.out = context.scratch->allocate(static_cast<size_t>(p.tokens * p.w.cols) * 2);
  rows_to_a(*context.gpu, context.activation, r);
  p.x = r.out;
  p.x_stride = p.w.cols;
}

bool can_fuse_norm(const Context& context, const LinearCall& call, const Product& p) {
  // In deterministic mode one kernel computes every norm.
  if (call.norm == nullptr || context.gpu->options().deterministic) return false;
  if (call.weight->column_order.size() != 0) return false;  // x is gathered by the norm's own kernel
  return call.x.shape[1] == p.w.cols && is_aligned(call.x.data, call.x.stride[0] * 4) &&
         is_aligned(call.norm->weight.data, 0) && norm_fits(*context.gpu, p.tokens, p.w.cols);
}

// A dense product of rows [p.first_row, + p.w.rows) by the library. False: it has no algorithm.
bool library_product(Context& context, const Product& p) {
  Gpu& gpu = *context.gpu;
  const DType a = context.activation;
  Sink s = p.sink;
  Gemm g{.m = p.tokens,
         .n = p.w.rows,
         .k = p.w.cols,
         .x = p.x,
         .x_stride = p.x_stride,
         .w = p.w.data,
         .w_stride = p.w.cols,
         .in = a};
  if (s.kind == Epilogue::kGated) {
    const ScratchMark mark(*context.scratch);
    const int64_t at_once = sums_tokens(p.w.rows, p.tokens);
    g.d = context.scratch->allocate(static_cast<size_t>(at_once * p.w.rows) * 2);
    g.d_stride = p.w.rows;
    g.out = a;
    for (int64_t first = 0; first < p.tokens; first += at_once) {
      const Product part = tokens_of(p, first, std::min(at_once, p.tokens - first));
      g.m = part.tokens;
      g.x = part.x;
      if (!gpu.parts().cublaslt->multiply(gpu, g)) {
        tile_product(gpu, a, part);
        continue;
      }
      combine_pairs(gpu, a, {g.d, g.d_stride, part.tokens, p.first_row, p.w.rows}, part.sink);
    }
    return true;
  }
  g.n = std::min(p.w.rows, s.rows - p.first_row);
  g.out = s.f32 ? DType::kF32 : a;
  g.d = static_cast<std::byte*>(s.out) + p.first_row * (s.f32 ? 4 : 2);
  g.d_stride = s.stride;
  g.alpha = s.scale;
  g.add = s.kind == Epilogue::kAdd;
  if (!is_aligned(g.d, g.d_stride * (s.f32 ? 4 : 2))) return false;
  Gemm biased = g;
  biased.bias = s.bias == nullptr ? nullptr : s.bias + p.first_row;
  if (biased.bias != nullptr && is_aligned(biased.bias, 0) && gpu.parts().cublaslt->multiply(gpu, biased))
    return true;
  // Without a bias, or with one that the library does not take.
  if (!gpu.parts().cublaslt->multiply(gpu, g)) return false;
  if (s.bias == nullptr) return true;
  add_bias_to_all(gpu, a, p, g.n);
  return true;
}

void dense_product(Context& context, const Product& p) {
  Gpu& gpu = *context.gpu;
  const bool library = gpu.fast.cublaslt && gpu.parts().cublaslt != nullptr && !gpu.options().deterministic;
  if (library && library_product(context, p)) return;
  tile_product(gpu, context.activation, p);
}

// Slices of rows, expanded one after another into the same scratch.
void expanded_product(Context& context, const Product& p) {
  const ScratchMark mark(*context.scratch);
  const int64_t at_once = slice_rows(p.w.cols, p.w.rows);
  void* values = context.scratch->allocate(static_cast<size_t>(at_once * p.w.cols) * 2);
  for (int64_t first = 0; first < p.w.rows; first += at_once) {
    Product part = p;
    part.first_row = first;
    part.w = {.data = values,
              .layout = context.activation == DType::kF16 ? Layout::kF16 : Layout::kBF16,
              .rows = std::min(at_once, p.w.rows - first),
              .cols = p.w.cols};
    dequantize_rows(*context.gpu, context.activation, p.w, first, part.w.rows, values);
    dense_product(context, part);
  }
}

// A product of more tokens than the skinny kernel takes at once.
void many_tokens(Context& context, const Product& p) {
  Gpu& gpu = *context.gpu;
  if (!is_quantized(p.w.layout)) return dense_product(context, p);
  if (p.tokens <= kSkinnyTokens || gpu.options().deterministic || !gpu.fast.codes || !codes_fit(gpu, p))
    return expanded_product(context, p);
  const ScratchMark mark(*context.scratch);
  codes_product(gpu, context.activation, p, context.scratch->allocate(codes_scratch(gpu)));
}

}  // namespace

int64_t sums_tokens(int64_t rows, int64_t tokens) {
  const int64_t most = kSumsBytes / (rows * 2) / 256 * 256;  // whole tiles of the library's kernels
  return std::min({tokens, std::max(most, kLeastSums), kMostGridTokens});
}

Product tokens_of(const Product& p, int64_t first, int64_t count) {
  Product part = p;
  part.tokens = count;
  part.x = static_cast<const std::byte*>(p.x) + first * p.x_stride * 2;
  part.sink.out = static_cast<std::byte*>(p.sink.out) + first * p.sink.stride * (p.sink.f32 ? 4 : 2);
  part.finish.product += first * part.finish.rows;
  part.finish.first_token += static_cast<int>(first);
  return part;
}

CallRows rows_of(const LinearCall& call, int64_t first) {
  if (call.x_row != nullptr) return {.x = call.x.data, .x_row = call.x_row + first};
  const int64_t bytes = call.x.stride[0] * (call.x.dtype == DType::kF32 ? 4 : 2);
  return {.x = static_cast<const std::byte*>(call.x.data) + first * bytes};
}

void product_in_a(Context& context, const LinearCall& call, int64_t first, Product p) {
  prepare_x(context, call, first, p);
  many_tokens(context, p);
}

void add_bias_to_all(Gpu& gpu, DType a, const Product& p, int64_t rows) {
  for (int64_t first = 0; first < p.tokens; first += kMostGridTokens) {
    const Product part = tokens_of(p, first, std::min(kMostGridTokens, p.tokens - first));
    add_bias(gpu, a, part.tokens, p.first_row, rows, part.sink);
  }
}

void linear(Context& context, const LinearCall& call) {
  if (call.out.shape[0] == 0) return;
  Gpu& gpu = *context.gpu;
  const ScratchMark mark(*context.scratch);
  Product p = product_of(context, call);
  const bool quantized = is_quantized(p.w.layout);
  const bool codes = has_groups(p.w.layout);
  const bool few = p.tokens <= kSkinnyTokens ||
                   (quantized && ((p.tokens <= kSkinnyQuantizedTokens && !(codes && gpu.fast.codes)) ||
                                  gpu.options().deterministic));
  const bool by_skinny = few && (codes ? gpu.fast.skinny_codes : gpu.fast.skinny);
  const bool f8 = p.w.layout == Layout::kF8 && p.tokens > kSkinnyTokens && serves_f8(gpu);
  if (f8 || !by_skinny) {
    f8 ? f8_product(context, call, p) : product_in_a(context, call, 0, p);
    if (call.finish != nullptr) finish_qkv(gpu, context.activation, *call.finish, p.tokens);
    return;
  }
  if (call.finish != nullptr && gpu.fast.finish) p.finish = *call.finish;
  if (can_fuse_norm(context, call, p)) {
    p.norm = call.norm->weight.as<float>();
    p.eps = call.norm->eps;
    p.x_row = call.x_row;
    skinny_product(gpu, context.activation, p);
  } else {
    prepare_x(context, call, 0, p);
    for (int64_t first = 0; first < p.tokens; first += kSkinnyTokens)
      skinny_product(gpu, context.activation,
                     tokens_of(p, first, std::min<int64_t>(kSkinnyTokens, p.tokens - first)));
  }
  if (call.finish != nullptr && !gpu.fast.finish) finish_qkv(gpu, context.activation, *call.finish, p.tokens);
}

size_t linear_scratch(const Context& context, int64_t tokens, int64_t max_cols, int64_t max_rows) {
  const int64_t cols = round_up(max_cols, kUnitCols), rows = round_up(max_rows, 2 * kTileRows);
  const int64_t x = tokens * cols * 2;
  const int64_t slice = slice_rows(cols, rows) * cols * 2;
  const int64_t sums =
      std::max(sums_tokens(rows, tokens) * rows * 2, std::min(tokens * rows * 2, kSumsBytes));
  const size_t most = std::max(static_cast<size_t>(slice + sums), codes_scratch(*context.gpu));
  return static_cast<size_t>(x) + most + 4 * 256;  // what alignment may cost
}

}  // namespace deepinfer::cuda
