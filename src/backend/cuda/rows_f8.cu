// What stands around FP8 products: activations rounded to e4m3, the epilogue of a library's sums.
#include "backend/cuda/f8.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/sink.cuh"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kLargest = 448;        // of e4m3
constexpr float kLeastScale = 1e-30f;  // one over it is finite

__device__ inline float largest_of(float4 v) {
  return maximum(maximum(fabsf(v.x), fabsf(v.y)), maximum(fabsf(v.z), fabsf(v.w)));
}

// Over the block, in every thread. `partial` [kThreads / 32] is free again behind the next barrier.
template <class Combine>
__device__ inline float reduce_block(float v, float* partial, Combine combine) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) v = combine(v, shfl_xor(v, bits));
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  sync_threads();
  v = partial[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) v = combine(v, partial[i]);
  return v;
}

// The scale of values up to `largest`.
__device__ inline float scale_of(float x_scale, float largest) {
  return x_scale > 0 ? x_scale : maximum(largest / kLargest, kLeastScale);
}

// Columns i .. i + 3 of the normalized row, zeros beyond it.
template <class A>
class RowReader {
 public:
  __device__ RowReader(const RowsToF8& r, int64_t row, bool vector) : r_(r), vector_(vector) {
    x_ = static_cast<const char*>(r.x) + row * r.x_stride * (r.norm != nullptr ? 4 : 2);
  }

  __device__ float4 raw(int64_t i) const {
    if (vector_ && i + 4 <= r_.cols) {
      if (r_.norm != nullptr) return reinterpret_cast<const float4*>(x_)[i / 4];
      const uint2 bits = reinterpret_cast<const uint2*>(x_)[i / 4];
      const float2 a = unpack2<A>(bits.x), b = unpack2<A>(bits.y);
      return {a.x, a.y, b.x, b.y};
    }
    return {one(i), one(i + 1), one(i + 2), one(i + 3)};
  }

  __device__ float4 operator()(int64_t i) const {
    const float4 v = raw(i);
    if (r_.norm == nullptr) return v;
    return {v.x * factor * weight(i), v.y * factor * weight(i + 1), v.z * factor * weight(i + 2),
            v.w * factor * weight(i + 3)};
  }

  float factor = 1;  // of the norm

 private:
  __device__ float one(int64_t i) const {
    if (i >= r_.cols) return 0;
    return r_.norm != nullptr ? reinterpret_cast<const float*>(x_)[i]
                              : to_float(reinterpret_cast<const A*>(x_)[i]);
  }
  __device__ float weight(int64_t i) const { return i < r_.cols ? r_.norm[i] : 0; }

  const RowsToF8& r_;
  const char* x_;
  bool vector_;
};

// Grid: a block a row of out. A warp has 128 columns, one group, at a time.
template <class A>
__global__ void __launch_bounds__(kThreads) rows_kernel(RowsToF8 r, bool vector) {
  DI_SHARED(float[kThreads / 32], sums);
  DI_SHARED(float[kThreads / 32], maxima);
  grid_launch_dependents();
  grid_dependency_wait();
  const int64_t token = blockIdx.x;
  auto* out = reinterpret_cast<uint32_t*>(static_cast<char*>(r.out) + token * r.stride);
  const int64_t groups = r.groups ? (r.stride + kF8Group - 1) / kF8Group : 1;
  if (token >= r.tokens) {
    for (int64_t i = threadIdx.x; i < r.stride / 4; i += kThreads) out[i] = 0;
    for (int64_t g = threadIdx.x; g < groups; g += kThreads) r.scale[g * r.padded + token] = 1;
    return;
  }
  RowReader<A> row(r, r.x_row != nullptr ? r.x_row[token] : token, vector);
  const int64_t rounds = (r.stride + kThreads * 4 - 1) / (kThreads * 4);
  if (r.norm != nullptr) {
    float sum = 0;
    for (int64_t i = threadIdx.x * 4; i < r.cols; i += kThreads * 4) {
      const float4 v = row.raw(i);
      sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    sum = reduce_block(sum, sums, [](float a, float b) { return a + b; });
    row.factor = rsqrt(sum / static_cast<float>(r.cols) + r.eps);
  }
  float scale = r.x_scale;
  if (!r.groups) {
    if (r.x_scale == 0) {
      float largest = 0;
      for (int64_t i = threadIdx.x * 4; i < r.cols; i += kThreads * 4)
        largest = maximum(largest, largest_of(row(i)));
      scale = scale_of(0, reduce_block(largest, maxima, [](float a, float b) { return maximum(a, b); }));
    }
    if (threadIdx.x == 0) r.scale[token] = scale;
  }
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t i = (round * kThreads + threadIdx.x) * 4;
    const float4 v = row(i);
    if (r.groups) {
      float largest = largest_of(v);
#pragma unroll
      for (int bits = 16; bits > 0; bits /= 2) largest = maximum(largest, shfl_xor(largest, bits));
      scale = scale_of(r.x_scale, largest);
      if (threadIdx.x % 32 == 0 && i < r.stride) r.scale[i / kF8Group * r.padded + token] = scale;
    }
    const float inverse = 1.0f / scale;
    if (i < r.stride)
      out[i / 4] = to_e4m3x2(v.x * inverse, v.y * inverse) |
                   static_cast<uint32_t>(to_e4m3x2(v.z * inverse, v.w * inverse)) << 16;
  }
}

// Grid: (pairs of results / 256, tokens). A thread has two rows, or two pairs of rows for kGated.
template <class A>
__global__ void __launch_bounds__(kThreads) finish_kernel(F8Sums s, Sink sink, int64_t rows) {
  grid_launch_dependents();
  grid_dependency_wait();
  const bool gated = sink.kind == Epilogue::kGated;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, token = blockIdx.y;
  const int64_t first = gated ? i / 4 * kTileRows + i % 4 * 2 : 2 * i;
  if (first >= rows) return;
  const float token_scale = s.token_scale != nullptr ? s.token_scale[token] : 1.0f;
  const auto read = [&](int64_t row) {
    const auto* p = static_cast<const __nv_bfloat16*>(s.sums) + token * s.stride + row;
    float2 v = unpack2<__nv_bfloat16>(*reinterpret_cast<const uint32_t*>(p));
    if (s.row_scale != nullptr) {
      const float2 scale = *reinterpret_cast<const float2*>(s.row_scale + row);
      v = {v.x * (token_scale * scale.x), v.y * (token_scale * scale.y)};
    }
    return v;
  };
  const float2 v = read(first);
  if (gated) {
    const float2 up = read(first + 8);
    put_pair<A>(sink, token, 2 * i, v.x, up.x);
    put_pair<A>(sink, token, 2 * i + 1, v.y, up.y);
  } else {
    put<A>(sink, token, first, v.x);
    put<A>(sink, token, first + 1, v.y);
  }
}

bool aligned(const void* p, int64_t stride_bytes, uintptr_t to) {
  return reinterpret_cast<uintptr_t>(p) % to == 0 && stride_bytes % static_cast<int64_t>(to) == 0;
}

}  // namespace

void rows_to_f8(Gpu& gpu, DType a, const RowsToF8& r) {
  DI_CHECK(r.padded > 0 && r.padded <= INT32_MAX, "rows to F8: {} tokens", r.padded);
  const uintptr_t bytes = r.norm != nullptr ? 16 : 8;
  const bool vector = aligned(r.x, r.x_stride * (r.norm != nullptr ? 4 : 2), bytes);
  const LaunchConfig c{.grid = dim3(static_cast<unsigned>(r.padded)),
                       .block = dim3(kThreads),
                       .stream = stream_of(gpu),
                       .pdl = gpu.pdl};
  a == DType::kBF16 ? launch(c, rows_kernel<__nv_bfloat16>, r, vector)
                    : launch(c, rows_kernel<__half>, r, vector);
}

void finish_f8_sums(Gpu& gpu, DType a, const F8Sums& s, const Product& p) {
  const int64_t threads = p.w.rows / (p.sink.kind == Epilogue::kGated ? 4 : 2);
  DI_CHECK(p.tokens > 0 && p.tokens <= 65535, "sums of {} tokens", p.tokens);
  const LaunchConfig c{.grid = dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads),
                                    static_cast<unsigned>(p.tokens)),
                       .block = dim3(kThreads),
                       .stream = stream_of(gpu),
                       .pdl = gpu.pdl};
  a == DType::kBF16 ? launch(c, finish_kernel<__nv_bfloat16>, s, p.sink, p.w.rows)
                    : launch(c, finish_kernel<__half>, s, p.sink, p.w.rows);
}

}  // namespace deepinfer::cuda
