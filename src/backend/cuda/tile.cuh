// What the kernels for tiles of dense rows and tokens share (gemm_tile.cu, gemm_f8_tile.cu): a block of 4
// warps (2 x 2) owns kRows packed rows x 64 tokens. Units of 128 bytes of a row pass through stages of shared
// memory, [kRows weight rows, then 64 tokens][128 bytes].
#pragma once

#include "backend/cuda/launch.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/sink.cuh"

namespace deepinfer::cuda {

constexpr int kTileThreads = 128;
constexpr int kTileTokens = 64;  // of a block
constexpr int kTileStages = 3;
constexpr int kTileRowBytes = 128;

// Where piece p (16 bytes) of a row stands in a stage: the pieces of odd rows are swapped by halves, so that
// the reads of 8 threads (2 rows, 4 pieces) touch each bank once.
__device__ inline int piece_at(int row, int piece) {
  return row * kTileRowBytes + (piece ^ ((row & 1) << 2)) * 16;
}

// Sums of a warp as mma.sync holds them: 16 rows x 8 tokens each.
template <int kRows>
struct TileSums {
  static constexpr int kMT = kRows / 32, kNT = kTileTokens / 16;
  float of[kMT][kNT][4] = {};
};

// A thread's place in its block: in the fragments, and its warp's first row and token of the tile.
struct TilePlace {
  int g, t, row, token;
};

template <int kRows>
__device__ inline TilePlace tile_place() {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  return {lane / 4, lane % 4, warp % 2 * (kRows / 2), warp / 2 * (kTileTokens / 2)};
}

// Adds the products of a stage's rows and tokens; `mma(d, a, b)` is the one for 32 bytes of each.
template <int kRows, class Mma>
__device__ inline void multiply_stage(const unsigned char* stage, const TilePlace& at, TileSums<kRows>& sums,
                                      Mma mma) {
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    Bits128 x[TileSums<kRows>::kNT];
#pragma unroll
    for (int n = 0; n < TileSums<kRows>::kNT; ++n)
      x[n] = load_128(stage + piece_at(kRows + at.token + n * 8 + at.g, half * 4 + at.t));
#pragma unroll
    for (int m = 0; m < TileSums<kRows>::kMT; ++m) {
      const Bits128 a = load_128(stage + piece_at(at.row + m * 16 + at.g, half * 4 + at.t));
      const Bits128 b = load_128(stage + piece_at(at.row + m * 16 + 8 + at.g, half * 4 + at.t));
#pragma unroll
      for (int n = 0; n < TileSums<kRows>::kNT; ++n) {
        mma(sums.of[m][n], {a.x[0], b.x[0], a.x[1], b.x[1]}, {x[n].x[0], x[n].x[1]});
        mma(sums.of[m][n], {a.x[2], b.x[2], a.x[3], b.x[3]}, {x[n].x[2], x[n].x[3]});
      }
    }
  }
}

// Hands the sums to where the product goes.
template <class A, int kRows>
__device__ inline void put_tile(const Product& p, const TilePlace& at, const TileSums<kRows>& sums) {
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows + at.row;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTileTokens + at.token;
#pragma unroll
  for (int m = 0; m < TileSums<kRows>::kMT; ++m) {
    const int64_t row = first_row + m * 16;
    if (row >= p.w.rows) continue;
#pragma unroll
    for (int n = 0; n < TileSums<kRows>::kNT; ++n) {
      const float(&sum)[4] = sums.of[m][n];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t token = first_token + n * 8 + 2 * at.t + i;
        if (token >= p.tokens) continue;
        if (p.sink.kind == Epilogue::kGated) {
          put_pair<A>(p.sink, token, (p.first_row + row) / 2 + at.g, sum[i], sum[2 + i]);
        } else {
          put<A>(p.sink, token, p.first_row + row + at.g, sum[i]);
          put<A>(p.sink, token, p.first_row + row + 8 + at.g, sum[2 + i]);
        }
      }
    }
  }
}

// The launch of a kernel with blocks of kRows rows.
template <int kRows>
inline LaunchConfig tile_launch(Gpu& gpu, const Product& p) {
  return {.grid = dim3(static_cast<unsigned>((p.w.rows + kRows - 1) / kRows),
                       static_cast<unsigned>((p.tokens + kTileTokens - 1) / kTileTokens)),
          .block = dim3(kTileThreads),
          .smem = static_cast<size_t>(kTileStages) * (kRows + kTileTokens) * kTileRowBytes,
          .stream = stream_of(gpu),
          .pdl = gpu.pdl};
}

// Whether blocks of 128 rows are enough of them: they read less, those of 64 leave fewer multiprocessors
// idle.
inline bool large_tiles(Gpu& gpu, const Product& p) {
  const int64_t blocks = (p.w.rows + 127) / 128 * ((p.tokens + kTileTokens - 1) / kTileTokens);
  return blocks >= 2 * int64_t{gpu.facts().multiprocessors};
}

}  // namespace deepinfer::cuda
