// Products of any number of tokens with dense weights: the plain path for what cuBLASLt does, and what serves
// where it is missing or may not choose (gpu.deterministic).
//
// Blocks and stages are those of tile.cuh, a unit is 64 columns; it comes by cp.async. The order of the sums
// is that of product.h.
//
// Launch: grid = (row tiles, token tiles), block = 128.
#include "backend/cuda/tile.cuh"

namespace deepinfer::cuda {
namespace {

static_assert(kTileRowBytes == kUnitCols * 2);

template <class A, int kRows>
__device__ inline void load_stage(const Product& p, unsigned char* stage, int unit) {
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTileTokens;
#pragma unroll
  for (int i = 0; i < (kRows + kTileTokens) * 8 / kTileThreads; ++i) {
    const int at = i * kTileThreads + threadIdx.x, row = at / 8, piece = at % 8;
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
__global__ void __launch_bounds__(kTileThreads, kRows == 64 ? 3 : 2) tile_kernel(Product p, int sections) {
  constexpr int kStageBytes = (kRows + kTileTokens) * kTileRowBytes;
  DI_DYNAMIC_SHARED(bytes);
  const TilePlace at = tile_place<kRows>();
  const int units = static_cast<int>(p.w.cols / kUnitCols);
  grid_launch_dependents();
  grid_dependency_wait();
#pragma unroll
  for (int i = 0; i < kTileStages - 1; ++i) {
    if (i < units) load_stage<A, kRows>(p, bytes + i * kStageBytes, i);
    cp_async_commit();
  }
  TileSums<kRows> sum, total;
  int section = 0, section_end = section_start(units, sections, 1);
  const auto end_section = [&] {
#pragma unroll
    for (int m = 0; m < TileSums<kRows>::kMT; ++m)
#pragma unroll
      for (int n = 0; n < TileSums<kRows>::kNT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          total.of[m][n][i] = section == 0 ? sum.of[m][n][i] : total.of[m][n][i] + sum.of[m][n][i];
          sum.of[m][n][i] = 0;
        }
    ++section;
    section_end = section_start(units, sections, section + 1);
  };
  for (int unit = 0; unit < units; ++unit) {
    while (unit == section_end && section + 1 < sections) end_section();
    cp_async_wait<kTileStages - 2>();
    sync_threads();  // this unit is there, and all have read the stage that is filled next
    if (unit + kTileStages - 1 < units)
      load_stage<A, kRows>(p, bytes + (unit + kTileStages - 1) % kTileStages * kStageBytes,
                           unit + kTileStages - 1);
    cp_async_commit();
    multiply_stage(
        bytes + unit % kTileStages * kStageBytes, at, sum,
        [](float(&d)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) { mma_m16n8k16<A>(d, a, b); });
  }
  while (section < sections) end_section();
  put_tile<A>(p, at, total);
}

template <class A, int kRows>
void start(Gpu& gpu, const Product& p) {
  launch(tile_launch<kRows>(gpu, p), tile_kernel<A, kRows>, p, product_sections(p.w.cols));
}

template <class A>
void choose(Gpu& gpu, const Product& p) {
  large_tiles(gpu, p) ? start<A, 128>(gpu, p) : start<A, 64>(gpu, p);
}

}  // namespace

void tile_product(Gpu& gpu, DType a, const Product& p) {
  // A grid has at most 65,535 tiles of tokens.
  constexpr int64_t kMost = int64_t{65535} * kTileTokens;
  for (int64_t first = 0; first < p.tokens; first += kMost) {
    Product part = p;
    part.tokens = std::min(kMost, p.tokens - first);
    part.x = static_cast<const std::byte*>(p.x) + first * p.x_stride * 2;
    part.sink.out = static_cast<std::byte*>(p.sink.out) + first * p.sink.stride * (p.sink.f32 ? 4 : 2);
    a == DType::kBF16 ? choose<__nv_bfloat16>(gpu, part) : choose<__half>(gpu, part);
  }
}

}  // namespace deepinfer::cuda
