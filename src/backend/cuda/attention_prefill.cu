// Attention of rows with several tokens. A block of four warps takes 64 query rows (tokens x query heads of
// one KV head, heads next to each other) and walks over the keys that they need; each warp holds 16 of the
// rows. Grid: [tiles of all rows, at least as many as there are; KV heads; stretches of the keys]. The last
// tiles of a row, which have the most keys, come first.
#include "backend/cuda/attention_join.cuh"
#include "backend/cuda/attention_keys.cuh"
#include "backend/cuda/attention_tile.cuh"
#include "backend/cuda/launch.h"

namespace deepinfer::cuda {
namespace {

inline constexpr int kThreads = 128;
static_assert(kPrefillRows == kThreads / kWarp * kRowsOfWarp);

// Fewer keys a stage where the head is wide: 100 KB of shared memory is what an RTX 4090 or 5090 has.
template <int D>
inline constexpr int kStageKeys = D <= 128 ? 64 : 32;

template <class T, int D, bool kFp8>
using PrefillStages = KeyStages<T, D, kFp8, kStageKeys<D>, kThreads>;

struct Tile {
  int row = -1;        // of the step; -1: there is no such tile
  int first_line = 0;  // of the row's tokens x heads of a group
  int lines = 0;       // of the row
  int first_token = 0;
};

// Which tile a block has: the rows' lengths are known to the device only. Every lane of the warp calls.
__device__ inline Tile find_tile(const AttendArgs& args, int index) {
  const int lane = threadIdx.x % kWarp;
  int before = 0;  // tiles of the rows so far
  for (int base = args.first_row; base < args.last_row; base += kWarp) {
    const int row = base + lane;
    const int tokens = row < args.last_row ? args.row_start[row + 1] - args.row_start[row] : 0;
    const int tiles = (tokens * args.group + kPrefillRows - 1) / kPrefillRows;
    int up_to = tiles;
    for (int by = 1; by < kWarp; by *= 2) {
      const int other = shfl_up(up_to, by);
      if (lane >= by) up_to += other;
    }
    const uint32_t behind = ballot(index < before + up_to);
    if (behind != 0) {
      const int found = ffs(behind) - 1;
      const int last = before + shfl(up_to, found) - 1;
      const int lines = shfl(tokens, found) * args.group;
      return {base + found, (last - index) * kPrefillRows, lines, args.row_start[base + found]};
    }
    before += shfl(up_to, kWarp - 1);
  }
  return {};
}

// Keys that `count` of the tile's lines from `line` on need; none where there are no lines. A row's tokens
// stand at positions that follow each other, so the ends tell the range.
__device__ inline KeyRange range_of(const AttendArgs& args, const Tile& tile, int line, int count) {
  const int last = minimum(line + count, tile.lines) - 1;
  if (last < line) return {};
  const int low = args.position[tile.first_token + line / args.group];
  const int high = args.position[tile.first_token + last / args.group];
  return {nullptr, static_cast<int>(blockIdx.y), first_key(low, args.window), high + 1};
}

// After write_part().
template <class T, int D, class Stages>
__device__ inline void join_tile(const AttendArgs& args, const Tile& tile, int parts, unsigned char* shared) {
  int32_t* const arrived = args.arrived + int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  if (!arrive_last<kThreads>(arrived, 1, parts)) return;
  constexpr int kAtOnce = kStageKeys<D> / 4;
  static_assert(Stages::kSharedBytes >= kThreads / kWarp * 2 * kAtOnce * D * sizeof(float));
  const int warp = threadIdx.x / kWarp, first = tile.first_line + warp * kRowsOfWarp;
  join_parts<T, D, kAtOnce>(args, maximum(minimum(tile.lines - first, kRowsOfWarp), 0), parts,
                            reinterpret_cast<float*>(shared) + warp * 2 * kAtOnce * D,
                            [&](int line) -> QueryRow {
                              const int at = first + line;
                              return {tile.first_token + at / args.group,
                                      static_cast<int>(blockIdx.y) * args.group + at % args.group};
                            });
}

template <class T, int D, bool kFp8>
__global__ void __launch_bounds__(kThreads, D <= 64    ? 3
                                            : D <= 128 ? 2
                                                       : 1) prefill_kernel(const AttendArgs args) {
  using Stages = PrefillStages<T, D, kFp8>;
  DI_DYNAMIC_SHARED(shared);
  grid_dependency_wait();
  grid_launch_dependents();
  const Tile tile = find_tile(args, static_cast<int>(blockIdx.x));
  if (tile.row < 0) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int kv_head = blockIdx.y;
  KeyRange range = range_of(args, tile, tile.first_line, kPrefillRows);
  range.blocks = args.row_blocks + int64_t{tile.row} * args.max_blocks;
  const int warp_line = tile.first_line + warp * kRowsOfWarp;
  KeyRange mine = range_of(args, tile, warp_line, kRowsOfWarp);
  if (args.splits > 1) {
    const int part = static_cast<int>(blockIdx.z);
    if (part >= stretches_of(args, range.first, range.end)) return;
    const Stretch stretch = stretch_of(args, range.first, range.end, part);
    range.first = stretch.begin, range.end = stretch.end;
    mine.first = maximum(mine.first, stretch.begin), mine.end = minimum(mine.end, stretch.end);
  }

  QueryRow rows[2];
  int every_from = 0, every_end = 0x7fffffff;  // keys that all of the warp's rows attend to
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int line = warp_line + lane / 4 + 8 * r;
    if (line >= tile.lines) continue;
    const int token = tile.first_token + line / args.group, position = args.position[token];
    rows[r] = {token, kv_head * args.group + line % args.group, position, first_key(position, args.window)};
    every_from = maximum(every_from, rows[r].first);
    every_end = minimum(every_end, position + 1);
  }
  for (int by = 4; by < kWarp; by *= 2) {
    every_from = maximum(every_from, shfl_xor(every_from, by));
    every_end = minimum(every_end, shfl_xor(every_end, by));
  }
  Queries<T, D> queries;
  queries.load(args, rows,
               reinterpret_cast<T*>(shared + Stages::kSharedBytes + warp * Queries<T, D>::kSharedBytes));
  Running<D> run;
  run.clear();
  Folded<D> folded;
  if (range.first < range.end) {
    Stages stages(args, range, shared);
    const int begin = range.first & ~(kStageKeys<D> - 1);
    walk_keys<Stages, kStageKeys<D>>(stages, begin, range.end, [&](int stage_key, int stage) {
#pragma unroll 1
      for (int i = 0; i < kStageKeys<D>; i += kKeysAtOnce) {
        const int key = stage_key + i;
        if (key >= mine.end || key + kKeysAtOnce <= mine.first) continue;
        if (args.fixed && cut_begin(cut_of(key)) == key) folded.add(args, rows, run);
        const bool masked = key < every_from || key + kKeysAtOnce > every_end;
        attend_keys<T, D>(args, queries, stages.keys(stage) + i * D, stages.values(stage) + i * D, rows, key,
                          masked, run);
      }
    });
  }
  folded.join_with(args, rows, run);
  if (args.splits > 1) {
    // Kept, what belongs to the tile would cost the loop over the keys registers.
    const Tile again = find_tile(args, static_cast<int>(blockIdx.x));
    const KeyRange all = range_of(args, again, again.first_line, kPrefillRows);
    const int parts = stretches_of(args, all.first, all.end);
    if (parts > 1) {
      write_part<D>(args, rows, static_cast<int>(blockIdx.z), run);
      join_tile<T, D, Stages>(args, again, parts, shared);
      return;
    }
  }
  write_rows<T, D>(args, rows, run);
}

template <class T, int D, bool kFp8>
void launch_kernel(const AttendArgs& args, int64_t tiles, cudaStream_t stream, bool pdl) {
  constexpr size_t kShared =
      PrefillStages<T, D, kFp8>::kSharedBytes + kThreads / kWarp * Queries<T, D>::kSharedBytes;
  static_assert(kShared <= 99 << 10);
  launch({.grid = dim3(static_cast<unsigned>(tiles), args.kv_heads, args.splits),
          .block = dim3(kThreads),
          .smem = kShared,
          .stream = stream,
          .pdl = pdl},
         prefill_kernel<T, D, kFp8>, args);
}

template <class T, int D>
void launch_dim(bool fp8, const AttendArgs& args, int64_t tiles, cudaStream_t stream, bool pdl) {
  if (fp8)
    launch_kernel<T, D, true>(args, tiles, stream, pdl);
  else
    launch_kernel<T, D, false>(args, tiles, stream, pdl);
}

template <class T>
void launch_type(const AttendShape& shape, const AttendArgs& args, int64_t tiles, cudaStream_t stream,
                 bool pdl) {
  if (shape.dim == 64)
    launch_dim<T, 64>(shape.fp8, args, tiles, stream, pdl);
  else if (shape.dim == 128)
    launch_dim<T, 128>(shape.fp8, args, tiles, stream, pdl);
  else
    launch_dim<T, 256>(shape.fp8, args, tiles, stream, pdl);
}

}  // namespace

size_t prefill_shared_bytes(int dim) {
  return dim <= 128
             ? PrefillStages<__half, 64, false>::kSharedBytes / 64 * dim
             : PrefillStages<__half, 256, false>::kSharedBytes + 4 * Queries<__half, 256>::kSharedBytes;
}

void launch_prefill(const AttendShape& shape, const AttendArgs& args, int64_t tokens, cudaStream_t stream,
                    bool pdl) {
  const int64_t tiles = prefill_tiles(tokens, args.last_row - args.first_row, args.group);
  if (shape.activation == DType::kBF16)
    launch_type<__nv_bfloat16>(shape, args, tiles, stream, pdl);
  else
    launch_type<__half>(shape, args, tiles, stream, pdl);
}

}  // namespace deepinfer::cuda
