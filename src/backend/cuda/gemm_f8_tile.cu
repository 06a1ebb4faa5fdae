// FP8 products of any number of tokens by mma.sync: what serves weights with scales of 128 columns where
// cuBLASLt has none of them, and every F8 weight where the library is missing.
//
// As gemm_tile.cu, with codes for elements: a block of 4 warps (2 x 2) owns kRows packed rows x 64 tokens, a
// unit is 128 columns, one group of scales, 128 bytes a row. Tensor cores of sm_89 and sm_90 add codes'
// products with fewer bits than F32 has; so a unit's sums go into F32 sums of their own, scaled.
//
// Launch: grid = (row tiles, token tiles), block = 128.
#include "backend/cuda/f8.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/sink.cuh"

namespace deepinfer::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTokens = 64;  // of a block
constexpr int kStages = 3;
constexpr int kRowBytes = kF8Group;

// Where piece p (16 bytes) of a row stands in a stage.
__device__ inline int piece_at(int row, int piece) {
  return row * kRowBytes + (piece ^ ((row & 1) << 2)) * 16;
}

template <int kRows>
__device__ inline void load_stage(const Product& p, const F8Rows& x, unsigned char* stage, int unit) {
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTokens;
  // Not unrolled: addresses of all pieces at once would take the sums' registers.
#pragma unroll 1
  for (int i = 0; i < (kRows + kTokens) * 8 / kThreads; ++i) {
    const int at = i * kThreads + threadIdx.x, row = at / 8, piece = at % 8;
    const int64_t column = int64_t{unit} * kF8Group + piece * 16;
    bool exists = column < p.w.cols;  // the last unit may be half a one
    const unsigned char* source;
    if (row < kRows) {
      // Past the weight's rows: any row, its sums are dropped.
      source =
          static_cast<const unsigned char*>(p.w.data) + minimum(first_row + row, p.w.rows - 1) * p.w.cols;
    } else {
      const int64_t token = first_token + row - kRows;
      const bool is_token = token < p.tokens;
      exists = exists && is_token;
      source = static_cast<const unsigned char*>(x.x) + (is_token ? token : 0) * x.stride;
    }
    cp_async_16(stage + piece_at(row, piece), source + (exists ? column : 0), exists);
  }
}

// Scales of a warp's rows or tokens for one group.
template <int kTiles, int kStep, int kEach>
__device__ inline void load_scales(float (&scales)[kTiles][2], const float* from, int64_t first,
                                   int64_t end) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) scales[m][i] = ldg(from + minimum(first + m * kStep + i * kEach, end - 1));
}

template <class A, int kRows>
__global__ void __launch_bounds__(kThreads, kRows == 64 ? 3 : 2) f8_kernel(Product p, F8Rows x) {
  constexpr int kMT = kRows / 32, kNT = kTokens / 16;  // mma tiles of a warp
  constexpr int kStageBytes = (kRows + kTokens) * kRowBytes;
  DI_DYNAMIC_SHARED(bytes);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int warp_row = warp % 2 * (kRows / 2), warp_token = warp / 2 * (kTokens / 2);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows + warp_row;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTokens + warp_token;
  const int units = static_cast<int>((p.w.cols + kF8Group - 1) / kF8Group);
  const bool groups = p.w.groups > 1;
  const auto* row_scales = static_cast<const float*>(p.w.scales);
  grid_launch_dependents();
  grid_dependency_wait();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < units) load_stage<kRows>(p, x, bytes + i * kStageBytes, i);
    cp_async_commit();
  }
  float total[kMT][kNT][4] = {};
  // Of rows g, g + 8; of tokens 2 t, 2 t + 1. Read behind the products: registers are short.
  float of_row[kMT][2], of_token[kNT][2];
  const auto read_scales = [&](int group) {
    load_scales<kMT, 16, 8>(of_row, row_scales + group * p.w.rows, first_row + g, p.w.rows);
    load_scales<kNT, 8, 1>(of_token, x.scale + group * x.padded, first_token + 2 * t, x.padded);
  };
  for (int unit = 0; unit < units; ++unit) {
    cp_async_wait<kStages - 2>();
    sync_threads();  // this unit is there, and all have read the stage that is filled next
    if (unit + kStages - 1 < units)
      load_stage<kRows>(p, x, bytes + (unit + kStages - 1) % kStages * kStageBytes, unit + kStages - 1);
    cp_async_commit();
    const unsigned char* stage = bytes + unit % kStages * kStageBytes;
    float sum[kMT][kNT][4] = {};
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      Bits128 tokens[kNT];
#pragma unroll
      for (int n = 0; n < kNT; ++n)
        tokens[n] = load_128(stage + piece_at(kRows + warp_token + n * 8 + g, half * 4 + t));
#pragma unroll
      for (int m = 0; m < kMT; ++m) {
        const Bits128 a = load_128(stage + piece_at(warp_row + m * 16 + g, half * 4 + t));
        const Bits128 b = load_128(stage + piece_at(warp_row + m * 16 + 8 + g, half * 4 + t));
#pragma unroll
        for (int n = 0; n < kNT; ++n) {
          const Bits128& v = tokens[n];
          mma_m16n8k32_e4m3(sum[m][n], {a.x[0], b.x[0], a.x[1], b.x[1]}, {v.x[0], v.x[1]});
          mma_m16n8k32_e4m3(sum[m][n], {a.x[2], b.x[2], a.x[3], b.x[3]}, {v.x[2], v.x[3]});
        }
      }
    }
    if (groups) read_scales(unit);
#pragma unroll
    for (int m = 0; m < kMT; ++m)
#pragma unroll
      for (int n = 0; n < kNT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          total[m][n][i] += groups ? of_row[m][i / 2] * of_token[n][i % 2] * sum[m][n][i] : sum[m][n][i];
  }
  if (!groups) read_scales(0);
#pragma unroll
  for (int m = 0; m < kMT; ++m) {
    const int64_t row = first_row + m * 16;
    if (row >= p.w.rows) continue;
#pragma unroll
    for (int n = 0; n < kNT; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t token = first_token + n * 8 + 2 * t + i;
        if (token >= p.tokens) continue;
        float first = total[m][n][i], second = total[m][n][2 + i];
        if (!groups) {
          first *= of_row[m][0] * of_token[n][i];
          second *= of_row[m][1] * of_token[n][i];
        }
        if (p.sink.kind == Epilogue::kGated) {
          put_pair<A>(p.sink, token, row / 2 + g, first, second);
        } else {
          put<A>(p.sink, token, row + g, first);
          put<A>(p.sink, token, row + 8 + g, second);
        }
      }
    }
  }
}

template <class A, int kRows>
void start(Gpu& gpu, const Product& p, const F8Rows& x) {
  const dim3 grid(static_cast<unsigned>((p.w.rows + kRows - 1) / kRows),
                  static_cast<unsigned>((p.tokens + kTokens - 1) / kTokens));
  launch({.grid = grid,
          .block = dim3(kThreads),
          .smem = static_cast<size_t>(kStages) * (kRows + kTokens) * kRowBytes,
          .stream = stream_of(gpu),
          .pdl = gpu.pdl},
         f8_kernel<A, kRows>, p, x);
}

template <class A>
void choose(Gpu& gpu, const Product& p, const F8Rows& x) {
  // The larger tile reads less; the smaller one leaves fewer multiprocessors idle.
  const int64_t blocks = (p.w.rows + 127) / 128 * ((p.tokens + kTokens - 1) / kTokens);
  if (blocks >= 2 * int64_t{gpu.facts().multiprocessors})
    start<A, 128>(gpu, p, x);
  else
    start<A, 64>(gpu, p, x);
}

}  // namespace

void f8_tile_product(Gpu& gpu, DType a, const Product& p, const F8Rows& rows) {
  a == DType::kBF16 ? choose<__nv_bfloat16>(gpu, p, rows) : choose<__half>(gpu, p, rows);
}

}  // namespace deepinfer::cuda
