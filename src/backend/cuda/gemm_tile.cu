// Products of any number of tokens with dense weights: the plain path for what cuBLASLt does, and what serves
// where it is missing or may not choose (gpu.deterministic).
//
// A block of 4 warps (2 x 2) owns kRows packed rows x 64 tokens. Units of 64 columns pass through kStages
// stages of shared memory by cp.async: [kRows weight rows, then 64 tokens][64 columns], the 16-byte pieces of
// odd rows swapped by halves, so that the reads of 8 threads (2 rows, 4 pieces) touch each bank once. The
// order of the sums is that of product.h.
//
// Launch: grid = (row tiles, token tiles), block = 128.
#include "backend/cuda/launch.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/sink.cuh"

namespace deepinfer::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTokens = 64;  // of a block
constexpr int kStages = 3;
constexpr int kRowBytes = kUnitCols * 2;

// Where piece p (16 bytes) of a row stands in a stage.
__device__ inline int piece_at(int row, int piece) {
  return row * kRowBytes + (piece ^ ((row & 1) << 2)) * 16;
}

template <class A, int kRows>
__device__ inline void load_stage(const Product& p, unsigned char* stage, int unit) {
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTokens;
#pragma unroll
  for (int i = 0; i < (kRows + kTokens) * 8 / kThreads; ++i) {
    const int at = i * kThreads + threadIdx.x, row = at / 8, piece = at % 8;
    const A* source;
    bool exists = true;
    if (row < kRows) {
      // Past the weight's rows: any row, its sums are dropped.
      source = static_cast<const A*>(p.w.data) + minimum(first_row + row, p.w.rows - 1) * p.w.cols;
    } else {
      const int64_t token = first_token + row - kRows;
      exists = token < p.tokens;
      source = static_cast<const A*>(p.x) + (exists ? token : 0) * p.x_stride;
    }
    cp_async_16(stage + piece_at(row, piece), source + unit * kUnitCols + piece * 8, exists);
  }
}

template <class A, int kRows>
__global__ void __launch_bounds__(kThreads, kRows == 64 ? 3 : 2) tile_kernel(Product p, int sections) {
  constexpr int kMT = kRows / 32, kNT = kTokens / 16;  // mma tiles of a warp
  constexpr int kStageBytes = (kRows + kTokens) * kRowBytes;
  DI_DYNAMIC_SHARED(bytes);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int warp_row = warp % 2 * (kRows / 2), warp_token = warp / 2 * (kTokens / 2);
  const int units = static_cast<int>(p.w.cols / kUnitCols);
  grid_launch_dependents();
  grid_dependency_wait();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < units) load_stage<A, kRows>(p, bytes + i * kStageBytes, i);
    cp_async_commit();
  }
  float sum[kMT][kNT][4] = {}, total[kMT][kNT][4] = {};
  int section = 0, section_end = section_start(units, sections, 1);
  const auto end_section = [&] {
#pragma unroll
    for (int m = 0; m < kMT; ++m)
#pragma unroll
      for (int n = 0; n < kNT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          total[m][n][i] = section == 0 ? sum[m][n][i] : total[m][n][i] + sum[m][n][i];
          sum[m][n][i] = 0;
        }
    ++section;
    section_end = section_start(units, sections, section + 1);
  };
  for (int unit = 0; unit < units; ++unit) {
    while (unit == section_end && section + 1 < sections) end_section();
    cp_async_wait<kStages - 2>();
    sync_threads();  // this unit is there, and all have read the stage that is filled next
    if (unit + kStages - 1 < units)
      load_stage<A, kRows>(p, bytes + (unit + kStages - 1) % kStages * kStageBytes, unit + kStages - 1);
    cp_async_commit();
    const unsigned char* stage = bytes + unit % kStages * kStageBytes;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      Bits128 x[kNT];
#pragma unroll
      for (int n = 0; n < kNT; ++n)
        x[n] = load_128(stage + piece_at(kRows + warp_token + n * 8 + g, half * 4 + t));
#pragma unroll
      for (int m = 0; m < kMT; ++m) {
        const Bits128 a = load_128(stage + piece_at(warp_row + m * 16 + g, half * 4 + t));
        const Bits128 b = load_128(stage + piece_at(warp_row + m * 16 + 8 + g, half * 4 + t));
#pragma unroll
        for (int n = 0; n < kNT; ++n) {
          mma_m16n8k16<A>(sum[m][n], {a.x[0], b.x[0], a.x[1], b.x[1]}, {x[n].x[0], x[n].x[1]});
          mma_m16n8k16<A>(sum[m][n], {a.x[2], b.x[2], a.x[3], b.x[3]}, {x[n].x[2], x[n].x[3]});
        }
      }
    }
  }
  while (section < sections) end_section();
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows + warp_row;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTokens + warp_token;
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
        if (p.sink.kind == Epilogue::kGated) {
          put_pair<A>(p.sink, token, (p.first_row + row) / 2 + g, total[m][n][i], total[m][n][2 + i]);
        } else {
          put<A>(p.sink, token, p.first_row + row + g, total[m][n][i]);
          put<A>(p.sink, token, p.first_row + row + 8 + g, total[m][n][2 + i]);
        }
      }
    }
  }
}

template <class A, int kRows>
void start(Gpu& gpu, const Product& p) {
  const dim3 grid(static_cast<unsigned>((p.w.rows + kRows - 1) / kRows),
                  static_cast<unsigned>((p.tokens + kTokens - 1) / kTokens));
  launch({.grid = grid,
          .block = dim3(kThreads),
          .smem = static_cast<size_t>(kStages) * (kRows + kTokens) * kRowBytes,
          .stream = stream_of(gpu),
          .pdl = gpu.pdl},
         tile_kernel<A, kRows>, p, product_sections(p.w.cols));
}

template <class A>
void choose(Gpu& gpu, const Product& p) {
  // The larger tile reads less; the smaller one leaves fewer multiprocessors idle.
  const int64_t blocks = (p.w.rows + 127) / 128 * ((p.tokens + kTokens - 1) / kTokens);
  if (blocks >= 2 * int64_t{gpu.facts().multiprocessors})
    start<A, 128>(gpu, p);
  else
    start<A, 64>(gpu, p);
}

}  // namespace

void tile_product(Gpu& gpu, DType a, const Product& p) {
  // A grid has at most 65,535 tiles of tokens.
  constexpr int64_t kMost = int64_t{65535} * kTokens;
  for (int64_t first = 0; first < p.tokens; first += kMost) {
    Product part = p;
    part.tokens = std::min(kMost, p.tokens - first);
    part.x = static_cast<const std::byte*>(p.x) + first * p.x_stride * 2;
    part.sink.out = static_cast<std::byte*>(p.sink.out) + first * p.sink.stride * (p.sink.f32 ? 4 : 2);
    a == DType::kBF16 ? choose<__nv_bfloat16>(gpu, part) : choose<__half>(gpu, part);
  }
}

}  // namespace deepinfer::cuda
