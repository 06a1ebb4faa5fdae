// Attention of rows with one token. A block is one warp: 16 query heads of a KV head against one stretch of
// the row's keys, so that K and V are read once for the heads that share them, and blocks fit in wherever a
// multiprocessor has shared memory; the one that comes last joins the stretches. Grid: [stretches, KV heads x
// tiles of 16 heads, rows].
#include <algorithm>

#include "backend/cuda/attention_join.cuh"
#include "backend/cuda/attention_keys.cuh"
#include "backend/cuda/attention_tile.cuh"
#include "backend/cuda/launch.h"

namespace deepinfer::cuda {
namespace {

template <class T, int D, bool kFp8>
using DecodeStages = KeyStages<T, D, kFp8, kKeysAtOnce, kWarp>;

template <class T, int D, bool kFp8>
__global__ void __launch_bounds__(kWarp) decode_kernel(const AttendArgs args) {
  DI_DYNAMIC_SHARED(shared);
  grid_dependency_wait();
  grid_launch_dependents();
  const int row = args.first_row + static_cast<int>(blockIdx.z);
  const int tiles = (args.group + kRowsOfWarp - 1) / kRowsOfWarp;
  const int kv_head = static_cast<int>(blockIdx.y) / tiles;
  const int token = args.row_start[row], position = args.position[token];
  const int first = first_key(position, args.window), end = position + 1;
  // A row of padding has no keys and one part, of zeros.
  const int parts = stretches_of(args, first, end), part = static_cast<int>(blockIdx.x);
  if (part >= parts) return;
  const Stretch stretch = stretch_of(args, first, end, part);

  const int first_of_group = static_cast<int>(blockIdx.y) % tiles * kRowsOfWarp;
  const auto row_of = [&](int line) -> QueryRow {
    return {token, kv_head * args.group + first_of_group + line, position, first};
  };
  const int lines = minimum(args.group - first_of_group, kRowsOfWarp);
  QueryRow rows[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int line = static_cast<int>(threadIdx.x) / 4 + 8 * r;
    if (line < lines) rows[r] = row_of(line);
  }
  Running<D> run;
  run.clear();
  Folded<D> folded;
  if (stretch.begin < stretch.end) {
    using Stages = DecodeStages<T, D, kFp8>;
    Queries<T, D> queries;
    queries.load(args, rows, reinterpret_cast<T*>(shared + Stages::kSharedBytes));
    const KeyRange range{args.row_blocks + int64_t{row} * args.max_blocks, kv_head, stretch.begin,
                         stretch.end};
    Stages stages(args, range, shared);
    const int begin = stretch.begin & ~(kKeysAtOnce - 1);
    walk_keys<Stages, kKeysAtOnce>(stages, begin, stretch.end, [&](int key, int stage) {
      if (args.fixed && key > begin && cut_begin(cut_of(key)) == key) folded.add(args, rows, run);
      const bool masked = key < first || key + kKeysAtOnce > end;
      attend_keys<T, D>(args, queries, stages.keys(stage), stages.values(stage), rows, key, masked, run);
    });
  }
  folded.join_with(args, rows, run);
  if (parts == 1) {
    write_rows<T, D>(args, rows, run);
    return;
  }
  write_part<D>(args, rows, part, run);
  int32_t* const arrived = args.arrived + int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
  if (!arrive_last<kWarp>(arrived, 1, parts)) return;
  static_assert(DecodeStages<T, D, kFp8>::kSharedBytes >= 2 * kWarp * D * sizeof(float));
  join_parts<T, D, kWarp>(args, lines, parts, reinterpret_cast<float*>(shared), row_of);
}

template <class T, int D, bool kFp8>
void launch_kernel(const AttendArgs& args, cudaStream_t stream, bool pdl) {
  constexpr size_t kShared = DecodeStages<T, D, kFp8>::kSharedBytes + Queries<T, D>::kSharedBytes;
  const unsigned tiles = (args.group + kRowsOfWarp - 1) / kRowsOfWarp;
  const unsigned rows = args.last_row - args.first_row;
  launch({.grid = dim3(args.splits, args.kv_heads * tiles, rows),
          .block = dim3(kWarp),
          .smem = kShared,
          .stream = stream,
          .pdl = pdl},
         decode_kernel<T, D, kFp8>, args);
}

template <class T, int D>
void launch_dim(bool fp8, const AttendArgs& args, cudaStream_t stream, bool pdl) {
  if (fp8)
    launch_kernel<T, D, true>(args, stream, pdl);
  else
    launch_kernel<T, D, false>(args, stream, pdl);
}

template <class T>
void launch_type(const AttendShape& shape, const AttendArgs& args, cudaStream_t stream, bool pdl) {
  if (shape.dim == 64)
    launch_dim<T, 64>(shape.fp8, args, stream, pdl);
  else if (shape.dim == 128)
    launch_dim<T, 128>(shape.fp8, args, stream, pdl);
  else
    launch_dim<T, 256>(shape.fp8, args, stream, pdl);
}

}  // namespace

size_t decode_shared_bytes(int dim) {
  return static_cast<size_t>(dim) * kKeysAtOnce * 8 + (dim > 128 ? kRowsOfWarp * dim * 2 : 0);
}

void launch_decode(const AttendShape& shape, const AttendArgs& args, cudaStream_t stream, bool pdl) {
  constexpr int32_t kMostRows = 65535;  // of a grid's third dimension
  AttendArgs part = args;
  for (; part.first_row < args.last_row; part.first_row = part.last_row) {
    part.last_row = std::min(args.last_row - part.first_row, kMostRows) + part.first_row;
    if (shape.activation == DType::kBF16)
      launch_type<__nv_bfloat16>(shape, part, stream, pdl);
    else
      launch_type<__half>(shape, part, stream, pdl);
  }
}

}  // namespace deepinfer::cuda
