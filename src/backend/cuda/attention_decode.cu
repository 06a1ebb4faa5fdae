// Attention of rows with one token. A block is one warp: 16 query heads of a KV head against one stretch of
// the row's keys, so that K and V are read once for the heads that share them, and blocks fit in wherever a
// multiprocessor has shared memory. Grid: [stretches, KV heads x tiles of 16 heads, rows]. With more than one
// stretch a second kernel joins their results, in the order of positions. Grid of that: [heads, rows].
#include "backend/cuda/attention_keys.cuh"
#include "backend/cuda/attention_tile.cuh"
#include "backend/cuda/launch.h"

namespace deepinfer::cuda {
namespace {

struct Stretch {
  int begin, end;  // empty: end <= begin
};

// Stretch number `i` of the keys [first, end) that a row attends to.
__device__ inline Stretch stretch_of(const AttendArgs& args, int first, int end, int i) {
  if (args.splits == 1) return {first, end};
  if (args.fixed) {
    const int cut = cut_of(first) + i;
    return {maximum(first, cut_begin(cut)), minimum(end, cut_begin(cut + 1))};
  }
  const int begin = first & ~(kKeysAtOnce - 1);
  const int tiles = (end - begin + kKeysAtOnce - 1) / kKeysAtOnce;
  const int keys = (tiles + args.splits - 1) / args.splits * kKeysAtOnce;
  return {maximum(first, begin + i * keys), minimum(end, begin + (i + 1) * keys)};
}

__device__ inline int64_t part_index(const AttendArgs& args, int row, int head, int split) {
  return (int64_t{row - args.first_row} * args.heads + head) * args.splits + split;
}

template <int D>
__device__ void write_part(const AttendArgs& args, const QueryRow (&rows)[2], int row,
                           const Running<D>& run) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (rows[r].token < 0) continue;
    const int64_t index = part_index(args, row, rows[r].head, blockIdx.x);
    if (t == 0) *reinterpret_cast<float2*>(args.part_sum + 2 * index) = {run.top[r], run.sum[r]};
    float* const to = args.parts + index * args.dim_v + 2 * t;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      if (8 * n >= args.dim_v) break;
      *reinterpret_cast<float2*>(to + 8 * n) = {run.o[n][2 * r], run.o[n][2 * r + 1]};
    }
  }
}

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
  const Stretch stretch = stretch_of(args, first, end, static_cast<int>(blockIdx.x));
  // A row of padding has no keys; its zeros are written by whoever writes its result.
  if (args.splits > 1 && stretch.begin >= stretch.end) return;

  QueryRow rows[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int in_group =
        static_cast<int>(blockIdx.y) % tiles * kRowsOfWarp + static_cast<int>(threadIdx.x) / 4 + 8 * r;
    if (in_group >= args.group) continue;
    rows[r] = {token, kv_head * args.group + in_group, position, first};
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
  if (args.splits > 1)
    write_part<D>(args, rows, row, run);
  else
    write_rows<T, D>(args, rows, run);
}

template <class T>
__global__ void join_kernel(const AttendArgs args) {
  grid_dependency_wait();
  grid_launch_dependents();
  const int head = blockIdx.x, row = args.first_row + static_cast<int>(blockIdx.y);
  const int col = 2 * static_cast<int>(threadIdx.x);
  if (col >= args.dim_v) return;
  const int token = args.row_start[row], position = args.position[token];
  const int first = first_key(position, args.window), end = position + 1;
  float top = kNoScore, sum = 0;
  float2 o = {0, 0};
#pragma unroll 4
  for (int i = 0; i < args.splits; ++i) {
    const Stretch stretch = stretch_of(args, first, end, i);
    if (stretch.begin >= stretch.end) break;
    const int64_t index = part_index(args, row, head, i);
    const float2 part = *reinterpret_cast<const float2*>(args.part_sum + 2 * index);
    const float2 value = *reinterpret_cast<const float2*>(args.parts + index * args.dim_v + col);
    if (part.x == kNoScore) continue;
    if (top == kNoScore) {
      top = part.x, sum = part.y, o = value;
      continue;
    }
    const Joined j = join(top, part.x);
    o.x = fmaf(o.x, j.before, value.x * j.after);
    o.y = fmaf(o.y, j.before, value.y * j.after);
    sum = fmaf(sum, j.before, part.y * j.after);
    top = j.top;
  }
  const bool empty = position < 0 || !(sum > 0);
  const float scale = empty ? 0.0f : args.out_scale / sum;
  T* const to = static_cast<T*>(args.out) + (int64_t{token} * args.heads + head) * args.dim_v + col;
  *reinterpret_cast<uint32_t*>(to) = empty ? 0u : pack2<T>(o.x * scale, o.y * scale);
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
  if (args.splits == 1) return;
  launch({.grid = dim3(args.heads, rows),
          .block = dim3((args.dim_v / 2 + kWarp - 1) / kWarp * kWarp),
          .stream = stream,
          .pdl = pdl},
         join_kernel<T>, args);
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
  if (shape.activation == DType::kBF16)
    launch_type<__nv_bfloat16>(shape, args, stream, pdl);
  else
    launch_type<__half>(shape, args, stream, pdl);
}

}  // namespace deepinfer::cuda
