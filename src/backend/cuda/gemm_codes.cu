// Products of 17 tokens and more with codes (U4, U8): the weight stays packed on its way to the tensor cores.
//
// A block of 4 warps owns 128 packed rows x 8 kNT tokens; each warp has two tiles of 16 rows and all tokens,
// so that a code is made into an element of A once for all of them. Units of 64 columns pass through kStages
// stages of shared memory by cp.async. A lane copies the very 16 bytes of the weight that it reads; x stands
// as in tile.cuh. Sums run over exact integers and are scaled when their group ends.
//
// Where rows and tokens leave multiprocessors idle, K is cut into `splits` ranges of units: each block stores
// its sums, the last one to arrive adds them from the first range to the last. Nobody waits, and the order of
// the sums does not depend on who came last.
//
// Floor: the packed bytes over the card's bandwidth, or 2 rows cols tokens operations over what mma.sync
// reaches (about 60% of a Hopper's wgmma rate). A unit costs a warp, at 64 tokens and 16-bit scales: 128 mma
// (1,024 bytes of codes), 88 instructions for fragments, 16 + 2 loads from shared memory, 10 to fill the next
// stage, and 64 FMA and 64 moves at the end of a group: 0.3 to 0.4 a byte, and below 3 for an mma.
//
// Launch: grid = (token tiles, 128-row tiles, splits), block = 128.
#include <algorithm>

#include "backend/cuda/arrive.cuh"
#include "backend/cuda/codes.cuh"
#include "backend/cuda/gemm_codes.h"
#include "backend/cuda/tile.cuh"

namespace deepinfer::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRowTiles = 8;  // of a block
constexpr int kWarpTiles = 2;

// What a block of kNT token tiles keeps in shared memory.
template <Layout kLayout, int kNT>
struct Shape {
  static constexpr int kUnitBytes = kLayout == Layout::kU8 ? 1024 : 512;
  static constexpr int kStages = kLayout == Layout::kU8 ? 3 : 4;
  static constexpr int kTokens = 8 * kNT;
  static constexpr int kWeightBytes = kRowTiles * kUnitBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kTileRowBytes;
  static constexpr int kBlocks = kNT == 8 ? 2 : 3;  // of a multiprocessor
};

// Sums of the blocks of a split product, as their threads hold them.
struct Splits {
  Bits128* sums = nullptr;     // [split][block][kWarpTiles * kNT][kThreads]
  int32_t* arrived = nullptr;  // [block]
  int count = 1;
};

template <Layout kLayout, int kNT>
__device__ inline void load_weight(const PackedView& w, unsigned char* stage, int first_tile, int unit) {
  using S = Shape<kLayout, kNT>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tiles = static_cast<int>(w.rows / kTileRows);
#pragma unroll
  for (int r = 0; r < kWarpTiles; ++r) {
    // Past the weight's rows: any tile, its sums are dropped.
    const int tile = minimum(first_tile + r, tiles - 1);
    const unsigned char* from = static_cast<const unsigned char*>(w.data) +
                                (int64_t{tile} * (w.cols / kUnitCols) + unit) * S::kUnitBytes + lane * 16;
    unsigned char* to = stage + (warp * kWarpTiles + r) * S::kUnitBytes + lane * 16;
#pragma unroll
    for (int i = 0; i < S::kUnitBytes; i += 512) cp_async_16(to + i, from + i);
  }
}

template <class A, int kNT>
__device__ inline void load_x(const Product& p, unsigned char* rows, int unit) {
  const int64_t first_token = static_cast<int64_t>(blockIdx.x) * (8 * kNT);
#pragma unroll
  for (int i = 0; i < 8 * kNT * 8 / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x), row = at / 8, piece = at % 8;
    const bool exists = first_token + row < p.tokens;
    const A* from = static_cast<const A*>(p.x) + (exists ? first_token + row : 0) * p.x_stride;
    cp_async_16(rows + piece_at(row, piece), from + unit * kUnitCols + piece * 8, exists);
  }
}

// A warp's sums, scaled group by group.
template <class A, Layout kLayout, int kNT>
struct Tiles {
  float total[kWarpTiles][kNT][4] = {};
  float sum[kWarpTiles][kNT][4] = {};  // of the group
  GroupWords<kLayout> now[kWarpTiles], next[kWarpTiles];
  int group = -1;

  __device__ void load(GroupWords<kLayout> (&words)[kWarpTiles], const PackedView& w, int first_tile,
                       int which) const {
    const int tiles = static_cast<int>(w.rows / kTileRows);
#pragma unroll
    for (int r = 0; r < kWarpTiles; ++r)
      words[r].template load<false>(w, minimum(first_tile + r, tiles - 1), minimum(which, w.groups - 1),
                                    static_cast<int>(threadIdx.x) % 32);
  }

  __device__ void begin(const PackedView& w, int first_tile, int first_group) {
    group = first_group;
    load(now, w, first_tile, group);
    load(next, w, first_tile, group + 1);
  }

  __device__ void end_group(ScaleType type) {
#pragma unroll
    for (int r = 0; r < kWarpTiles; ++r) {
      const float2 d = now[r].scale(type);
#pragma unroll
      for (int n = 0; n < kNT; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          total[r][n][i] += (i < 2 ? d.x : d.y) * sum[r][n][i];
          sum[r][n][i] = 0;
        }
      }
    }
  }

  // Groups are as long as a block of 32 columns, or longer.
  __device__ void enter(const PackedView& w, int first_tile, int new_group) {
    if (new_group == group) return;
    end_group(w.scale);
    group = new_group;
#pragma unroll
    for (int r = 0; r < kWarpTiles; ++r) now[r] = next[r];
    load(next, w, first_tile, group + 1);
  }

  __device__ void multiply(const unsigned char* weight, const unsigned char* x_rows, const PackedView& w,
                           int first_tile, int unit) {
    using S = Shape<kLayout, kNT>;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const unsigned char* from = weight + warp * kWarpTiles * S::kUnitBytes + lane * 16;
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      enter(w, first_tile, group_of(w, 2 * unit + block));
      uint32_t a[kWarpTiles][4], b[kWarpTiles][4];
#pragma unroll
      for (int r = 0; r < kWarpTiles; ++r) {
        const Bits128 quants =
            load_128(from + r * S::kUnitBytes + (kLayout == Layout::kU8 ? block * 512 : 0));
        code_fragments<A, kLayout>(quants, block, now[r], a[r], b[r]);
      }
#pragma unroll
      for (int n = 0; n < kNT; ++n) {
        const Bits128 x = load_128(x_rows + piece_at(n * 8 + g, block * 4 + t));
#pragma unroll
        for (int r = 0; r < kWarpTiles; ++r) {
          mma_m16n8k16<A>(sum[r][n], {a[r][0], b[r][0], a[r][1], b[r][1]}, {x.x[0], x.x[1]});
          mma_m16n8k16<A>(sum[r][n], {a[r][2], b[r][2], a[r][3], b[r][3]}, {x.x[2], x.x[3]});
        }
      }
    }
  }

  // total, of this block's range of K, becomes that of all ranges. False: a later block goes on.
  __device__ bool join(const Splits& s) {
    const int block = static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x);
    const int64_t blocks = int64_t{gridDim.x} * gridDim.y;
    const auto at = [&](int split, int r, int n) {
      return s.sums + ((split * blocks + block) * (kWarpTiles * kNT) + r * kNT + n) * kThreads + threadIdx.x;
    };
#pragma unroll
    for (int r = 0; r < kWarpTiles; ++r)
#pragma unroll
      for (int n = 0; n < kNT; ++n)
        store_for_others(at(static_cast<int>(blockIdx.z), r, n), bit_cast<Bits128>(total[r][n]));
    if (!arrive_last<kThreads>(s.arrived + block, 1, s.count)) return false;
    for (int split = 0; split < s.count; ++split) {
#pragma unroll
      for (int r = 0; r < kWarpTiles; ++r) {
#pragma unroll
        for (int n = 0; n < kNT; ++n) {
          const Bits128 part = load_128(at(split, r, n));
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float v = bit_cast<float>(part.x[i]);
            total[r][n][i] = split == 0 ? v : total[r][n][i] + v;
          }
        }
      }
    }
    return true;
  }

  __device__ void put_all(const Product& p, int first_tile) const {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int r = 0; r < kWarpTiles; ++r) {
      const int64_t row = int64_t{first_tile + r} * kTileRows;
      if (row >= p.w.rows) continue;
#pragma unroll
      for (int n = 0; n < kNT; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int64_t token = static_cast<int64_t>(blockIdx.x) * (8 * kNT) + n * 8 + 2 * t + i;
          if (token >= p.tokens) continue;
          if (p.sink.kind == Epilogue::kGated) {
            put_pair<A>(p.sink, token, row / 2 + g, total[r][n][i], total[r][n][2 + i]);
          } else {
            put<A>(p.sink, token, row + g, total[r][n][i]);
            put<A>(p.sink, token, row + 8 + g, total[r][n][2 + i]);
          }
        }
      }
    }
  }
};

template <class A, Layout kLayout, int kNT>
__global__ void __launch_bounds__(kThreads, (Shape<kLayout, kNT>::kBlocks))
    codes_kernel(Product p, Splits splits) {
  using S = Shape<kLayout, kNT>;
  DI_DYNAMIC_SHARED(bytes);
  const int units = static_cast<int>(p.w.cols / kUnitCols), split = static_cast<int>(blockIdx.z);
  const int begin = section_start(units, splits.count, split),
            end = section_start(units, splits.count, split + 1);
  const int first_tile =
      static_cast<int>(blockIdx.y) * kRowTiles + static_cast<int>(threadIdx.x) / 32 * kWarpTiles;
  const auto stage_of = [&](int unit) { return bytes + (unit - begin) % S::kStages * S::kStageBytes; };
  grid_launch_dependents();
#pragma unroll
  for (int i = 0; i < S::kStages - 1; ++i)
    if (begin + i < end) load_weight<kLayout, kNT>(p.w, stage_of(begin + i), first_tile, begin + i);
  grid_dependency_wait();
#pragma unroll
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (begin + i < end) load_x<A, kNT>(p, stage_of(begin + i) + S::kWeightBytes, begin + i);
    cp_async_commit();
  }
  Tiles<A, kLayout, kNT> tiles;
  tiles.begin(p.w, first_tile, group_of(p.w, 2 * begin));
#pragma unroll 1
  for (int unit = begin; unit < end; ++unit) {
    cp_async_wait<S::kStages - 2>();
    sync_threads();  // this unit is there, and all have read the stage that is filled next
    const int fill = unit + S::kStages - 1;
    if (fill < end) {
      load_weight<kLayout, kNT>(p.w, stage_of(fill), first_tile, fill);
      load_x<A, kNT>(p, stage_of(fill) + S::kWeightBytes, fill);
    }
    cp_async_commit();
    tiles.multiply(stage_of(unit), stage_of(unit) + S::kWeightBytes, p.w, first_tile, unit);
  }
  tiles.end_group(p.w.scale);
  if (splits.count > 1 && !tiles.join(splits)) return;
  tiles.put_all(p, first_tile);
}

int64_t blocks_of(int64_t n, int64_t of) {
  return (n + of - 1) / of;
}

// Token tiles of 8 that a block has.
int token_tiles(int64_t tokens) {
  return tokens <= 32 ? 4 : 8;
}

// From shapes and the card alone. A range has at least 8 units; what the blocks store stays below
// kSumsPerMultiprocessor each.
int splits_of(const Gpu& gpu, int64_t rows, int64_t cols, int64_t tokens) {
  const int64_t blocks = blocks_of(rows, kRowTiles * kTileRows) * blocks_of(tokens, 8 * token_tiles(tokens));
  const int64_t wanted = int64_t{gpu.facts().multiprocessors} * 3 / 2 / blocks;
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(cols / kUnitCols / 8, 1)));
}

template <class A, Layout kLayout, int kNT>
void start(Gpu& gpu, const Product& p, const Splits& splits) {
  using S = Shape<kLayout, kNT>;
  launch({.grid = dim3(static_cast<unsigned>(blocks_of(p.tokens, S::kTokens)),
                       static_cast<unsigned>(blocks_of(p.w.rows, kRowTiles * kTileRows)),
                       static_cast<unsigned>(splits.count)),
          .block = dim3(kThreads),
          .smem = static_cast<size_t>(S::kStages) * S::kStageBytes,
          .stream = stream_of(gpu),
          .pdl = gpu.pdl},
         codes_kernel<A, kLayout, kNT>, p, splits);
}

template <class A>
void choose(Gpu& gpu, const Product& p, const Splits& s) {
  const bool few = token_tiles(p.tokens) == 4;
  if (p.w.layout == Layout::kU4)
    few ? start<A, Layout::kU4, 4>(gpu, p, s) : start<A, Layout::kU4, 8>(gpu, p, s);
  else
    few ? start<A, Layout::kU8, 4>(gpu, p, s) : start<A, Layout::kU8, 8>(gpu, p, s);
}

}  // namespace

// Of what the splits of at most 3/2 blocks a multiprocessor hold.
size_t codes_scratch(const Gpu& gpu) {
  return static_cast<size_t>(gpu.facts().multiprocessors) * 3 / 2 * kRowTiles * kTileRows * 64 *
         sizeof(float);
}

bool codes_fit(const Gpu&, const Product& p) {
  return has_groups(p.w.layout) && p.tokens <= kMostCodesTokens &&
         blocks_of(p.w.rows, kRowTiles * kTileRows) <= 65535;
}

void codes_product(Gpu& gpu, DType a, const Product& p, void* scratch) {
  const Splits splits{.sums = static_cast<Bits128*>(scratch),
                      .arrived = gpu.parts().arrived(),
                      .count = splits_of(gpu, p.w.rows, p.w.cols, p.tokens)};
  a == DType::kBF16 ? choose<__nv_bfloat16>(gpu, p, splits) : choose<__half>(gpu, p, splits);
}

}  // namespace deepinfer::cuda
