// What stands around the products: rows of the residual stream normalized and rounded to A, quantized rows
// expanded to A, the epilogues of products that a library left as plain sums.
#include "backend/cuda/codes.cuh"
#include "backend/cuda/launch.h"
#include "backend/cuda/packed.cuh"
#include "backend/cuda/parts.h"
#include "backend/cuda/sink.cuh"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr int kThreads = 256;

// Grid: a block a token.
template <class A, bool kVector>
__global__ void __launch_bounds__(kThreads) norm_kernel(RowsToA r) {
  DI_SHARED(float[kThreads / 32], partial);
  grid_launch_dependents();
  grid_dependency_wait();
  const int64_t token = blockIdx.x;
  const float* x =
      static_cast<const float*>(r.x) + (r.x_row != nullptr ? int64_t{r.x_row[token]} : token) * r.x_stride;
  A* out = static_cast<A*>(r.out) + token * r.stride;
  float sum = 0;
  if constexpr (kVector) {
    for (int64_t i = threadIdx.x * 4; i < r.cols; i += kThreads * 4) {
      const float4 v = *reinterpret_cast<const float4*>(x + i);
      sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
  } else {
    for (int64_t i = threadIdx.x; i < r.cols; i += kThreads) sum += x[i] * x[i];
  }
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) sum += shfl_xor(sum, bits);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  sync_threads();
  sum = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) sum += partial[i];
  const float factor = rsqrt(sum / static_cast<float>(r.cols) + r.eps);
  if constexpr (kVector) {
    for (int64_t i = threadIdx.x * 4; i < r.stride; i += kThreads * 4) {
      uint2 pair{0, 0};
      if (i < r.cols) {
        const float4 v = *reinterpret_cast<const float4*>(x + i);
        const float4 w = *reinterpret_cast<const float4*>(r.norm + i);
        pair.x = pack2<A>(v.x * factor * w.x, v.y * factor * w.y);
        pair.y = pack2<A>(v.z * factor * w.z, v.w * factor * w.w);
      }
      *reinterpret_cast<uint2*>(out + i) = pair;
    }
  } else {
    for (int64_t i = threadIdx.x; i < r.stride; i += kThreads) {
      const int64_t k = r.order != nullptr && i < r.cols ? r.order[i] : i;
      out[i] = from_float<A>(i < r.cols ? x[k] * factor * r.norm[k] : 0.0f);
    }
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads) copy_kernel(RowsToA r) {
  grid_launch_dependents();
  grid_dependency_wait();
  const int64_t token = blockIdx.x;
  const A* x =
      static_cast<const A*>(r.x) + (r.x_row != nullptr ? int64_t{r.x_row[token]} : token) * r.x_stride;
  A* out = static_cast<A*>(r.out) + token * r.stride;
  for (int64_t i = threadIdx.x; i < r.stride; i += kThreads) {
    const int64_t k = r.order != nullptr && i < r.cols ? r.order[i] : i;
    out[i] = i < r.cols ? x[k] : from_float<A>(0.0f);
  }
}

// Grid: (units of 64 columns, tiles of 16 rows); a thread writes one element pair a step.
template <class A>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(PackedView w, int64_t first_row, A* out) {
  grid_launch_dependents();
  grid_dependency_wait();
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kTileRows;
  const int64_t col0 = static_cast<int64_t>(blockIdx.x) * kUnitCols;
  for (int at = threadIdx.x; at < kTileRows * kUnitCols / 2; at += kThreads) {
    const int64_t row = row0 + at / (kUnitCols / 2), k = col0 + at % (kUnitCols / 2) * 2;
    const uint32_t pair =
        pack2<A>(packed_value(w, first_row + row, k), packed_value(w, first_row + row, k + 1));
    *reinterpret_cast<uint32_t*>(out + row * w.cols + k) = pair;
  }
}

// Codes by whole fragments: a warp has a unit of a tile, a lane 8 columns of 4 places, 16 bytes each. Grid:
// (units / 8, tiles of 16 rows). Floor: reads and writes, 2.5 bytes a U4 code.
template <class A, Layout kLayout>
__global__ void __launch_bounds__(kThreads) expand_codes_kernel(PackedView w, int first_tile, A* out) {
  constexpr bool kBytes = kLayout == Layout::kU8;
  grid_launch_dependents();
  grid_dependency_wait();
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int units = static_cast<int>(w.cols / kUnitCols);
  const int unit = static_cast<int>(blockIdx.x) * (kThreads / 32) + static_cast<int>(threadIdx.x) / 32;
  if (unit >= units) return;
  const int tile = first_tile + static_cast<int>(blockIdx.y);
  const unsigned char* from = static_cast<const unsigned char*>(w.data) +
                              (int64_t{tile} * units + unit) * (kBytes ? 1024 : 512) + lane * 16;
  const auto put = [&](int row, int block, const uint32_t(&pairs)[4], float scale) {
    Bits128 v;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 code = unpack2<A>(pairs[i]);
      v.x[i] = pack2<A>(scale * code.x, scale * code.y);
    }
    store_128(out + (int64_t{blockIdx.y} * kTileRows + row) * w.cols + unit * kUnitCols + block * 32 + t * 8,
              v);
  };
#pragma unroll
  for (int block = 0; block < 2; ++block) {
    GroupWords<kLayout> group;
    group.template load<false>(w, tile, group_of(w, 2 * unit + block), lane);
    uint32_t a[4], b[4];
    code_fragments<A, kLayout>(load_128_streaming(from + (kBytes ? block * 512 : 0)), block, group, a, b);
    const float2 scale = group.scale(w.scale);
    put(g, block, a, scale.x);
    put(g + 8, block, b, scale.y);
  }
}

// Grid: (pairs / 8 / 256, tokens): a thread combines 8 pairs, one mma tile's.
template <class A>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const A* sums, int64_t sums_stride, int64_t first_row, int64_t tiles, Sink sink) {
  grid_launch_dependents();
  grid_dependency_wait();
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, token = blockIdx.y;
  if (tile >= tiles) return;
  const A* p = sums + token * sums_stride + tile * kTileRows;
  const Bits128 gates = load_128(p), ups = load_128(p + 8);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 gate = unpack2<A>(gates.x[i]), up = unpack2<A>(ups.x[i]);
    const int64_t pair = (first_row / 2) + tile * 8 + 2 * i;
    put_pair<A>(sink, token, pair, gate.x, up.x);
    put_pair<A>(sink, token, pair + 1, gate.y, up.y);
  }
}

// The same for whole tiles without a bias and with aligned rows.
template <class A>
__global__ void __launch_bounds__(kThreads)
    combine_aligned_kernel(const A* sums, int64_t sums_stride, int64_t first_row, int64_t tiles, Sink sink) {
  grid_launch_dependents();
  grid_dependency_wait();
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, token = blockIdx.y;
  if (tile >= tiles) return;
  const A* p = sums + token * sums_stride + tile * kTileRows;
  const Bits128 gates = load_128(p), ups = load_128(p + 8);
  Bits128 out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 gate = unpack2<A>(gates.x[i]), up = unpack2<A>(ups.x[i]);
    out.x[i] = pack2<A>(activate(sink.activation, gate.x) * up.x, activate(sink.activation, gate.y) * up.y);
  }
  store_128(static_cast<A*>(sink.out) + token * sink.stride + first_row / 2 + tile * 8, out);
}

// Grid: (rows / 256, tokens)
template <class A>
__global__ void __launch_bounds__(kThreads) bias_kernel(int64_t first_row, int64_t rows, Sink sink) {
  grid_launch_dependents();
  grid_dependency_wait();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = first_row + i, at = blockIdx.y * sink.stride + row;
  if (i >= rows || row >= sink.rows) return;
  if (sink.f32)
    static_cast<float*>(sink.out)[at] += sink.bias[row];
  else
    static_cast<A*>(sink.out)[at] = from_float<A>(to_float(static_cast<A*>(sink.out)[at]) + sink.bias[row]);
}

LaunchConfig config(const Gpu& gpu, int64_t x, int64_t y = 1) {
  DI_CHECK(x > 0 && x <= INT32_MAX && y > 0 && y <= 65535, "a grid of {} x {} blocks", x, y);
  return {.grid = dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)),
          .block = dim3(kThreads),
          .stream = stream_of(gpu),
          .pdl = gpu.pdl};
}

int64_t blocks_of(int64_t n) {
  return (n + kThreads - 1) / kThreads;
}

bool aligned(const void* p, int64_t stride, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride * bytes % 16 == 0;
}

template <class A>
void start_rows(Gpu& gpu, const RowsToA& r) {
  const bool vector =
      r.order == nullptr && r.cols % 4 == 0 && aligned(r.x, r.x_stride, 4) && aligned(r.norm, 0, 4);
  const auto kernel = r.norm == nullptr ? copy_kernel<A>
                      : vector          ? norm_kernel<A, true>
                                        : norm_kernel<A, false>;
  launch(config(gpu, r.tokens), kernel, r);
}

template <class A>
void start_combine(const LaunchConfig& c, const PairSums& s, int64_t tiles, const Sink& sink) {
  const bool whole = sink.bias == nullptr && !sink.f32 && s.first_row / 2 + tiles * 8 <= sink.rows &&
                     aligned(sink.out, sink.stride, 2);
  launch(c, whole ? combine_aligned_kernel<A> : combine_kernel<A>, static_cast<const A*>(s.sums), s.stride,
         s.first_row, tiles, sink);
}

template <class A>
void start_expand(const LaunchConfig& c, const PackedView& w, int first_tile, void* out) {
  launch(c,
         w.layout == Layout::kU8 ? expand_codes_kernel<A, Layout::kU8> : expand_codes_kernel<A, Layout::kU4>,
         w, first_tile, static_cast<A*>(out));
}

}  // namespace

void rows_to_a(Gpu& gpu, DType a, const RowsToA& r) {
  a == DType::kBF16 ? start_rows<__nv_bfloat16>(gpu, r) : start_rows<__half>(gpu, r);
}

void dequantize_rows(Gpu& gpu, DType a, const PackedView& w, int64_t first_row, int64_t rows, void* out) {
  const int64_t units = w.cols / kUnitCols;
  if (has_groups(w.layout)) {
    const auto first_tile = static_cast<int>(first_row / kTileRows);
    const LaunchConfig c = config(gpu, (units + kThreads / 32 - 1) / (kThreads / 32), rows / kTileRows);
    a == DType::kBF16 ? start_expand<__nv_bfloat16>(c, w, first_tile, out)
                      : start_expand<__half>(c, w, first_tile, out);
    return;
  }
  if (a == DType::kBF16)
    launch(config(gpu, units, rows / kTileRows), dequantize_kernel<__nv_bfloat16>, w, first_row,
           static_cast<__nv_bfloat16*>(out));
  else
    launch(config(gpu, units, rows / kTileRows), dequantize_kernel<__half>, w, first_row,
           static_cast<__half*>(out));
}

void combine_pairs(Gpu& gpu, DType a, const PairSums& s, const Sink& sink) {
  const int64_t tiles = s.rows / kTileRows;
  const LaunchConfig c = config(gpu, blocks_of(tiles), s.tokens);
  a == DType::kBF16 ? start_combine<__nv_bfloat16>(c, s, tiles, sink)
                    : start_combine<__half>(c, s, tiles, sink);
}

void add_bias(Gpu& gpu, DType a, int64_t tokens, int64_t first_row, int64_t rows, const Sink& sink) {
  const LaunchConfig c = config(gpu, blocks_of(rows), tokens);
  a == DType::kBF16 ? launch(c, bias_kernel<__nv_bfloat16>, first_row, rows, sink)
                    : launch(c, bias_kernel<__half>, first_row, rows, sink);
}

}  // namespace deepinfer::cuda
