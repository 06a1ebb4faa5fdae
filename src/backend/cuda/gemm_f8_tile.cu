// FP8 products of any number of tokens by mma.sync: what serves weights with scales of 128 columns where
// cuBLASLt has none of them, and every F8 weight where the library is missing.
//
// Blocks and stages are those of tile.cuh; a unit is 128 columns, one group of scales. Tensor cores of sm_89
// and sm_90 add codes' products with fewer bits than F32 has; so a unit's sums go into F32 sums of their own,
// scaled.
//
// Launch: grid = (row tiles, token tiles), block = 128.
#include "backend/cuda/f8.h"
#include "backend/cuda/tile.cuh"

namespace deepinfer::cuda {
namespace {

static_assert(kTileRowBytes == kF8Group);

template <int kRows>
__device__ inline void load_stage(const Product& p, const F8Rows& x, unsigned char* stage, int unit) {
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTileTokens;
  // Not unrolled: addresses of all pieces at once would take the sums' registers.
#pragma unroll 1
  for (int i = 0; i < (kRows + kTileTokens) * 8 / kTileThreads; ++i) {
    const int at = i * kTileThreads + threadIdx.x, row = at / 8, piece = at % 8;
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
__global__ void __launch_bounds__(kTileThreads, kRows == 64 ? 3 : 2) f8_kernel(Product p, F8Rows x) {
  using Sums = TileSums<kRows>;
  constexpr int kStageBytes = (kRows + kTileTokens) * kTileRowBytes;
  DI_DYNAMIC_SHARED(bytes);
  const TilePlace at = tile_place<kRows>();
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows + at.row + at.g;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTileTokens + at.token + 2 * at.t;
  const int units = static_cast<int>((p.w.cols + kF8Group - 1) / kF8Group);
  const bool groups = p.w.groups > 1;
  const auto* row_scales = static_cast<const float*>(p.w.scales);
  grid_launch_dependents();
  grid_dependency_wait();
#pragma unroll
  for (int i = 0; i < kTileStages - 1; ++i) {
    if (i < units) load_stage<kRows>(p, x, bytes + i * kStageBytes, i);
    cp_async_commit();
  }
  Sums total;
  // Of rows g, g + 8; of tokens 2 t, 2 t + 1. Read behind the products: registers are short.
  float of_row[Sums::kMT][2], of_token[Sums::kNT][2];
  const auto read_scales = [&](int group) {
    load_scales<Sums::kMT, 16, 8>(of_row, row_scales + group * p.w.rows, first_row, p.w.rows);
    load_scales<Sums::kNT, 8, 1>(of_token, x.scale + group * x.padded, first_token, x.padded);
  };
  const auto each = [](auto what) {
#pragma unroll
    for (int m = 0; m < Sums::kMT; ++m)
#pragma unroll
      for (int n = 0; n < Sums::kNT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) what(m, n, i);
  };
  for (int unit = 0; unit < units; ++unit) {
    cp_async_wait<kTileStages - 2>();
    sync_threads();  // this unit is there, and all have read the stage that is filled next
    if (unit + kTileStages - 1 < units)
      load_stage<kRows>(p, x, bytes + (unit + kTileStages - 1) % kTileStages * kStageBytes,
                        unit + kTileStages - 1);
    cp_async_commit();
    Sums sum;
    multiply_stage(
        bytes + unit % kTileStages * kStageBytes, at, sum,
        [](float(&d)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) { mma_m16n8k32_e4m3(d, a, b); });
    if (groups) read_scales(unit);
    each([&](int m, int n, int i) {
      total.of[m][n][i] += groups ? of_row[m][i / 2] * of_token[n][i % 2] * sum.of[m][n][i] : sum.of[m][n][i];
    });
  }
  if (!groups) {
    read_scales(0);
    each([&](int m, int n, int i) { total.of[m][n][i] *= of_row[m][i / 2] * of_token[n][i % 2]; });
  }
  put_tile<A>(p, at, total);
}

template <class A, int kRows>
void start(Gpu& gpu, const Product& p, const F8Rows& x) {
  launch(tile_launch<kRows>(gpu, p), f8_kernel<A, kRows>, p, x);
}

template <class A>
void choose(Gpu& gpu, const Product& p, const F8Rows& x) {
  large_tiles(gpu, p) ? start<A, 128>(gpu, p, x) : start<A, 64>(gpu, p, x);
}

}  // namespace

void f8_tile_product(Gpu& gpu, DType a, const Product& p, const F8Rows& rows) {
  a == DType::kBF16 ? choose<__nv_bfloat16>(gpu, p, rows) : choose<__half>(gpu, p, rows);
}

}  // namespace deepinfer::cuda
