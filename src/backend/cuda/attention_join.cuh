// The end of a tile whose keys several blocks shared: the one that comes last joins their results, in the
// order of the keys, so that who came last changes nothing. Nobody waits.
#pragma once

#include "backend/cuda/arrive.cuh"
#include "backend/cuda/attention_tile.cuh"

namespace deepinfer::cuda {

// For a warp: the parts of rows 0 to `lines` - 1, that row_of(line) names, to args.out. They come through
// shared memory, kAtOnce parts of a row at a time, two stages of them at work: `shared` holds 2 kAtOnce D
// floats of this warp's own.
template <class T, int D, int kAtOnce, class RowOf>
__device__ inline void join_parts(const AttendArgs& args, int lines, int parts, float* shared,
                                  RowOf&& row_of) {
  static_assert(kAtOnce <= kWarp);
  constexpr int kPairs = D / 64;  // columns 64 j + 2 lane and the next one
  const int lane = threadIdx.x % kWarp;
  const int batches = (parts + kAtOnce - 1) / kAtOnce;
  const auto index_of = [&](int step) {
    const QueryRow row = row_of(step / batches);
    return part_index(args, row.token, row.head, step % batches * kAtOnce);
  };
  const auto count_of = [&](int step) { return minimum(kAtOnce, parts - step % batches * kAtOnce); };
  const auto start = [&](int step) {
    if (step < lines * batches) {
      const float* const from = args.parts + index_of(step) * args.dim_v;
      float* const to = shared + step % 2 * kAtOnce * D;
      for (int i = 4 * lane; i < count_of(step) * args.dim_v; i += 4 * kWarp) cp_async_16(to + i, from + i);
    }
    cp_async_commit();
  };
  start(0);
  float top = kNoScore, sum = 0;
  float2 o[kPairs];
  for (int step = 0; step < lines * batches; ++step) {
    start(step + 1);
    const int count = count_of(step);
    float2 mine{kNoScore, 0};
    if (lane < count) mine = *reinterpret_cast<const float2*>(args.part_sum + 2 * (index_of(step) + lane));
    if (step % batches == 0) {
      top = kNoScore, sum = 0;
#pragma unroll
      for (int j = 0; j < kPairs; ++j) o[j] = {0, 0};
    }
    cp_async_wait<1>();
    sync_warp();
    const float* from = shared + step % 2 * kAtOnce * D + 2 * lane;
#pragma unroll 4
    for (int i = 0; i < count; ++i, from += args.dim_v) {
      const float2 part{shfl(mine.x, i), shfl(mine.y, i)};
      if (part.x == kNoScore) continue;  // no key of this stretch was for this row
      const bool first = top == kNoScore;
      const Joined j = first ? Joined{part.x, 0, 1} : join(top, part.x);
#pragma unroll
      for (int n = 0; n < kPairs; ++n) {
        if (64 * n + 2 * lane >= args.dim_v) break;
        const float2 value = *reinterpret_cast<const float2*>(from + 64 * n);
        o[n].x = first ? value.x : fmaf(o[n].x, j.before, value.x * j.after);
        o[n].y = first ? value.y : fmaf(o[n].y, j.before, value.y * j.after);
      }
      sum = first ? part.y : fmaf(sum, j.before, part.y * j.after);
      top = j.top;
    }
    sync_warp();  // the stage is filled again
    if (step % batches != batches - 1) continue;
    const QueryRow row = row_of(step / batches);
    const bool empty = !(sum > 0);
    const float scale = empty ? 0.0f : args.out_scale / sum;
    T* const to =
        static_cast<T*>(args.out) + (int64_t{row.token} * args.heads + row.head) * args.dim_v + 2 * lane;
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      if (64 * n + 2 * lane >= args.dim_v) break;
      *reinterpret_cast<uint32_t*>(to + 64 * n) = empty ? 0u : pack2<T>(o[n].x * scale, o[n].y * scale);
    }
  }
  cp_async_wait<0>();
}

}  // namespace deepinfer::cuda
