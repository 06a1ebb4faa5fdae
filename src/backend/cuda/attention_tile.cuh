// What the decode and the prefill kernel share: 16 query rows of a warp against 32 keys at a time on the
// tensor cores, with a running maximum (online softmax, FlashAttention-2: arxiv.org/abs/2307.08691).
//
// A row is one query head of one token; the rows of a tile share a KV head. A row's result depends on its
// own position and on where stretches begin, never on what else is in the tile: keys outside of a row change
// nothing in it, and products and sums that could be contracted in two ways are written as fmaf().
#pragma once

#include <math.h>

#include "backend/cuda/attention_args.h"
#include "backend/cuda/ptx.h"

namespace deepinfer::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kRowsOfWarp = 16;  // of an mma
inline constexpr float kNoScore = -INFINITY;

// Element of a tile [rows][D] in shared memory: 16-byte chunks are swapped within a row, so that the eight
// rows of an ldmatrix lie in different banks.
template <int D>
__device__ inline int tile_at(int row, int chunk) {
  return row * D + ((chunk ^ (row & 7)) << 3);
}

// A query row as a lane sees it: lane 4 g + t holds columns 2 t, 2 t + 1 of every eight of rows g and g + 8.
struct QueryRow {
  int token = -1;  // of [0, T); -1: the tile is not full
  int head = 0;
  int position = -1;  // -1: padding, gets zeros
  int first = 0;      // lowest position that it attends to
};

__device__ inline int first_key(int position, int window) {
  return window > 0 ? maximum(0, position - window + 1) : 0;
}

// Query fragments of a warp's rows, in registers as far as they fit.
template <class T, int D>
struct Queries {
  static constexpr bool kInRegisters = D <= 128;
  static constexpr int kSharedBytes = kInRegisters ? 0 : kRowsOfWarp * D * 2;  // of a warp

  uint32_t a[kInRegisters ? D / 16 : 1][4];
  const T* tile = nullptr;

  // rows: those of this lane. Every lane of the warp calls.
  __device__ void load(const AttendArgs& p, const QueryRow (&rows)[2], T* shared) {
    const int lane = threadIdx.x % kWarp, t = lane % 4;
    const auto pair = [&](const QueryRow& row, int col) -> uint32_t {
      if (row.position < 0 || col >= p.dim_k) return 0;
      const T* from = static_cast<const T*>(p.q) + (int64_t{row.token} * p.heads + row.head) * p.dim_k + col;
      return *reinterpret_cast<const uint32_t*>(from);
    };
    if constexpr (kInRegisters) {
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[k][i] = pair(rows[i & 1], 16 * k + 8 * (i >> 1) + 2 * t);
      }
    } else {
      for (int chunk = 0; chunk < D / 8; ++chunk) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          T* const to = shared + tile_at<D>(lane / 4 + 8 * i, chunk) + 2 * t;
          *reinterpret_cast<uint32_t*>(to) = pair(rows[i], 8 * chunk + 2 * t);
        }
      }
      tile = shared;
      sync_warp();
    }
  }

  __device__ void get(int k, uint32_t (&out)[4]) const {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = a[k][i];
    } else {
      const int lane = threadIdx.x % kWarp;
      ldmatrix_x4(out, tile + tile_at<D>(lane % 16, 2 * k + lane / 16));
    }
  }
};

// The running result of a warp's rows over a stretch of keys. Scores are in powers of two.
template <int D>
struct Running {
  float o[D / 8][4];
  float top[2];
  float sum[2];  // of this lane's columns until finish()

  __device__ void clear() {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o[n][e] = 0;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) top[r] = kNoScore, sum[r] = 0;
  }

  __device__ void finish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += shfl_xor(sum[r], 1);
      sum[r] += shfl_xor(sum[r], 2);
    }
  }
};

// s [16, 32] = Q K^T.
template <class T, int D>
__device__ inline void scores(const Queries<T, D>& queries, const T* k, float (&s)[4][4]) {
  const int lane = threadIdx.x % kWarp;
  const int row = lane % 8 + lane / 16 * 8, chunk = lane / 8 % 2;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) s[j][e] = 0;
  }
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t a[4];
    queries.get(step, a);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t b[4];
      ldmatrix_x4(b, k + tile_at<D>(16 * half + row, 2 * step + chunk));
      const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
      mma_m16n8k16<T>(s[2 * half], a, low);
      mma_m16n8k16<T>(s[2 * half + 1], a, high);
    }
  }
}

// o [16, D] += P V, P [16, 32] rounded to T.
template <class T, int D>
__device__ inline void add_values(const float (&p)[4][4], const T* v, float (&o)[D / 8][4]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    const float(&low)[4] = p[2 * step];
    const float(&high)[4] = p[2 * step + 1];
    const uint32_t a[4] = {pack2<T>(low[0], low[1]), pack2<T>(low[2], low[3]), pack2<T>(high[0], high[1]),
                           pack2<T>(high[2], high[3])};
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, v + tile_at<D>(16 * step + lane % 16, 2 * n + lane / 16));
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
      mma_m16n8k16<T>(o[2 * n], a, left);
      mma_m16n8k16<T>(o[2 * n + 1], a, right);
    }
  }
}

// soft_cap * tanh(x / soft_cap) but for the factor; 1e-7 of it off.
__device__ inline float capped(float score, float scale) {
  return 1.0f - divide_fast(2.0f, exp2_fast(minimum(score * scale, 120.0f)) + 1.0f);
}

// 32 keys from `key` on. `masked`: some of them are not for some row.
template <class T, int D>
__device__ inline void attend_keys(const AttendArgs& args, const Queries<T, D>& queries, const T* k,
                                   const T* v, const QueryRow (&rows)[2], int key, bool masked,
                                   Running<D>& run) {
  float s[4][4];
  scores<T, D>(queries, k, s);
  if (args.cap_scale != 0) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[j][e] = capped(s[j][e], args.cap_scale);
    }
  }
  if (masked) {
    const int first = key + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at = first + 8 * j + e % 2;
        if (at > rows[e / 2].position || at < rows[e / 2].first) s[j][e] = kNoScore;
      }
    }
  }
  float shrink[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = kNoScore;
#pragma unroll
    for (int j = 0; j < 4; ++j) top = fmaxf(top, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
    top = fmaxf(top, shfl_xor(top, 1));
    top = fmaxf(top, shfl_xor(top, 2));
    top = fmaxf(run.top[r], top * args.score_scale);
    const float base = top == kNoScore ? 0.0f : top;  // all masked so far
    shrink[r] = exp2_fast(run.top[r] - base);
    run.top[r] = top;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 2 * r; e < 2 * r + 2; ++e) {
        s[j][e] = exp2_fast(fmaf(s[j][e], args.score_scale, -base));
        sum += s[j][e];
      }
    }
    run.sum[r] = fmaf(run.sum[r], shrink[r], sum);
  }
  if (shrink[0] != 1.0f || shrink[1] != 1.0f) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) run.o[n][e] *= shrink[e / 2];
    }
  }
  add_values<T, D>(s, v, run.o);
}

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

// Stretches that have keys, at least 1: their results wait for each other to be joined where they are more.
__device__ inline int stretches_of(const AttendArgs& args, int first, int end) {
  if (args.splits == 1 || end <= first) return 1;
  if (args.fixed) return cut_of(end - 1) - cut_of(first) + 1;
  const int begin = first & ~(kKeysAtOnce - 1);
  const int tiles = (end - begin + kKeysAtOnce - 1) / kKeysAtOnce;
  const int tiles_each = (tiles + args.splits - 1) / args.splits;
  return (tiles + tiles_each - 1) / tiles_each;
}

// Rows before the launch's first one have one token each.
__device__ inline int64_t part_index(const AttendArgs& args, int token, int head, int split) {
  return (int64_t{token - args.first_row} * args.heads + head) * args.splits + split;
}

// A stretch's result for the block that joins them.
template <int D>
__device__ inline void write_part(const AttendArgs& args, const QueryRow (&rows)[2], int split,
                                  const Running<D>& run) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (rows[r].token < 0) continue;
    const int64_t index = part_index(args, rows[r].token, rows[r].head, split);
    if (t == 0) store_for_others(args.part_sum + 2 * index, float2{run.top[r], run.sum[r]});
    float* const to = args.parts + index * args.dim_v + 2 * t;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      if (8 * n >= args.dim_v) break;
      store_for_others(to + 8 * n, float2{run.o[n][2 * r], run.o[n][2 * r + 1]});
    }
  }
}

// How two stretches become one: factors of the first and of the second.
struct Joined {
  float top, before, after;
};
__device__ inline Joined join(float before, float after) {
  const float top = fmaxf(before, after);
  return {top, exp2_fast(before - top), exp2_fast(after - top)};
}

// out = o / sum, [.., dim_v] of T; zeros for padding.
template <class T, int D>
__device__ inline void write_rows(const AttendArgs& args, const QueryRow (&rows)[2], const Running<D>& run) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (rows[r].token < 0) continue;
    const bool empty = rows[r].position < 0 || !(run.sum[r] > 0);
    const float scale = empty ? 0.0f : args.out_scale / run.sum[r];
    T* const to =
        static_cast<T*>(args.out) + (int64_t{rows[r].token} * args.heads + rows[r].head) * args.dim_v + 2 * t;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      if (8 * n >= args.dim_v) break;
      const uint32_t pair = empty ? 0u : pack2<T>(run.o[n][2 * r] * scale, run.o[n][2 * r + 1] * scale);
      *reinterpret_cast<uint32_t*>(to + 8 * n) = pair;
    }
  }
}

// The results of stretches that one warp takes one after another (gpu.deterministic), joined in their order.
// The lane that owns an element keeps it in args.state between them.
template <int D>
struct Folded {
  float top[2] = {kNoScore, kNoScore};
  float sum[2] = {0, 0};

  __device__ float* state(const AttendArgs& args, const QueryRow& row) const {
    return args.state + (int64_t{row.token} * args.heads + row.head) * args.dim_v + threadIdx.x % 4 * 2;
  }

  // Adds what `run` holds, and clears it.
  __device__ void add(const AttendArgs& args, const QueryRow (&rows)[2], Running<D>& run) {
    join_with(args, rows, run);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (rows[r].position < 0 || run.top[r] == kNoScore) continue;
      float* const at = state(args, rows[r]);
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        if (8 * n >= args.dim_v) break;
        *reinterpret_cast<float2*>(at + 8 * n) = {run.o[n][2 * r], run.o[n][2 * r + 1]};
      }
      top[r] = run.top[r], sum[r] = run.sum[r];
    }
    run.clear();
  }

  // run = what was added so far, then run; its sums are finished.
  __device__ void join_with(const AttendArgs& args, const QueryRow (&rows)[2], Running<D>& run) const {
    run.finish();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (rows[r].position < 0 || top[r] == kNoScore) continue;
      const bool none = run.top[r] == kNoScore;
      const Joined j = none ? Joined{top[r], 1.0f, 0.0f} : join(top[r], run.top[r]);
      const float* const at = state(args, rows[r]);
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        if (8 * n >= args.dim_v) break;
        const float2 before = *reinterpret_cast<const float2*>(at + 8 * n);
        run.o[n][2 * r] = none ? before.x : fmaf(before.x, j.before, run.o[n][2 * r] * j.after);
        run.o[n][2 * r + 1] = none ? before.y : fmaf(before.y, j.before, run.o[n][2 * r + 1] * j.after);
      }
      run.sum[r] = none ? sum[r] : fmaf(sum[r], j.before, run.sum[r] * j.after);
      run.top[r] = j.top;
    }
  }
};

}  // namespace deepinfer::cuda
