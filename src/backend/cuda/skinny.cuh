// Products of at most 16 tokens: the weight streams through once, as fast as memory gives it.
//
// A block owns kRT tiles of 16 rows; its warps (product_sections of them) share K by sections, each with
// kDepth units of 64 columns in flight in registers, and add their sums through shared memory in a fixed
// order. The weight is mma's 16-row operand, tokens are its 8 columns, kNT times. The first loads are the
// weight's, before grid_dependency_wait().
//
// Launch: grid = row tiles / kRT (fewer with kNorm: blocks then walk over tiles, as each has to normalize x),
// block = 32 * sections.
//
// Of the product of q, k and v, the block that brings the last rows of a head finishes that head for all
// tokens (qkv_finish.cuh): no kernel of its own stands between the product and attention.
#pragma once

#include "backend/cuda/arrive.cuh"
#include "backend/cuda/codes.cuh"
#include "backend/cuda/launch.h"
#include "backend/cuda/qkv_finish.cuh"
#include "backend/cuda/sink.cuh"

namespace deepinfer::cuda::skinny {

inline constexpr int kMostWarps = 8;
// Elements from one row of staged x to the next beyond its columns, so that the 16-byte reads of 8 threads (2
// rows, 4 places) touch each bank once: 64 bytes, or 16 where a thread's places are 32 bytes apart.
inline constexpr int kPad = 32;
constexpr int pad_of(Layout layout) {
  return layout == Layout::kF8 ? 8 : kPad;
}
// First of the eight columns of a unit that thread t of a quad has in x[half].
template <Layout kLayout>
__device__ constexpr int column_of(int t, int half) {
  return kLayout == Layout::kF8 ? t * 16 + half * 8 : t * 8 + half * 32;
}

// kEarly: in front of grid_dependency_wait().
template <bool kEarly>
__device__ inline Bits128 weight_128(const void* p) {
  return kEarly ? load_128_early(p) : load_128_streaming(p);
}
// One unit of 64 columns of a 16-row tile, as this lane holds it.
template <class A, Layout kLayout>
struct Unit;

template <class A>
struct DenseUnit {
  Bits128 rows[2][2];  // [half of the columns][row g, row g + 8]

  template <bool kEarly>
  __device__ void load(const PackedView& w, int tile, int unit, int lane) {
    const int g = lane / 4, t = lane % 4;
    const A* p =
        static_cast<const A*>(w.data) + (int64_t{tile} * kTileRows + g) * w.cols + unit * kUnitCols + t * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows[half][0] = weight_128<kEarly>(p + half * 32);
      rows[half][1] = weight_128<kEarly>(p + half * 32 + 8 * w.cols);
    }
  }

  template <int kNT>
  __device__ void multiply(const PackedView&, float (&sum)[kNT][4], const Bits128 (&x)[kNT][2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Bits128 &a = rows[half][0], &b = rows[half][1];
#pragma unroll
      for (int n = 0; n < kNT; ++n) {
        const Bits128& v = x[n][half];
        mma_m16n8k16<A>(sum[n], {a.x[0], b.x[0], a.x[1], b.x[1]}, {v.x[0], v.x[1]});
        mma_m16n8k16<A>(sum[n], {a.x[2], b.x[2], a.x[3], b.x[3]}, {v.x[2], v.x[3]});
      }
    }
  }
};

template <class A>
struct Unit<A, Layout::kBF16> : DenseUnit<A> {};
template <class A>
struct Unit<A, Layout::kF16> : DenseUnit<A> {};

// The sums of one 32-column block over exact integers, then d * sum + m * (sum of x) in F32.
template <class A, int kNT>
__device__ inline void add_block(float (&sum)[kNT][4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                 const Bits128 (&x)[kNT][2], int block, float2 d) {
#pragma unroll
  for (int n = 0; n < kNT; ++n) {
    const Bits128& v = x[n][block];
    float part[4] = {};
    mma_m16n8k16<A>(part, {a[0], b[0], a[1], b[1]}, {v.x[0], v.x[1]});
    mma_m16n8k16<A>(part, {a[2], b[2], a[3], b[3]}, {v.x[2], v.x[3]});
    sum[n][0] += d.x * part[0];
    sum[n][1] += d.x * part[1];
    sum[n][2] += d.y * part[2];
    sum[n][3] += d.y * part[3];
  }
}

// 8 nibbles of a word as 4 pairs, minus 0 or 8.
template <class A, bool kSigned>
__device__ inline void nibbles(uint32_t word, uint32_t (&pairs)[4]) {
  constexpr uint32_t kOffset = kMagic<A> | (kSigned ? 0x00080008u : 0u);  // 128 or 136; 1,024 or 1,032
  minus_offset<A>(word, kOffset, pairs);
}

template <class A, bool kMin>
struct Q4Unit {
  Bits128 quants;
  uint32_t scales[kMin ? 4 : 2];  // d of (block 0: g, g + 8), (block 1: ..); the same of m

  template <bool kEarly>
  __device__ void load(const PackedView& w, int tile, int unit, int lane) {
    const int64_t at = int64_t{tile} * (static_cast<int>(w.cols) / kUnitCols) + unit;
    quants = weight_128<kEarly>(static_cast<const unsigned char*>(w.data) + at * 512 + lane * 16);
    const unsigned char* p =
        static_cast<const unsigned char*>(w.scales) + at * (kMin ? 128 : 64) + lane / 4 * (kMin ? 16 : 8);
    if constexpr (kMin) {
      const Bits128 s = weight_128<kEarly>(p);
#pragma unroll
      for (int i = 0; i < 4; ++i) scales[i] = s.x[i];
    } else {
      const uint2 s = weight_64<kEarly>(p);
      scales[0] = s.x;
      scales[1] = s.y;
    }
  }

  template <int kNT>
  __device__ void multiply(const PackedView&, float (&sum)[kNT][4], const Bits128 (&x)[kNT][2]) const {
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      uint32_t a[4], b[4];
      nibbles<A, !kMin>(quants.x[2 * block], a);
      nibbles<A, !kMin>(quants.x[2 * block + 1], b);
      add_block<A, kNT>(sum, a, b, x, block, unpack2<__half>(scales[block]));
      if constexpr (kMin) add_minima<kNT>(sum, x, block);
    }
  }

  // A row of ones times x is the sum of x, where this thread needs it.
  template <int kNT>
  __device__ void add_minima(float (&sum)[kNT][4], const Bits128 (&x)[kNT][2], int block) const {
    const uint32_t one = std::is_same_v<A, __nv_bfloat16> ? 0x3f803f80u : 0x3c003c00u;
    const float2 m = unpack2<__half>(scales[kMin ? 2 + block : 0]);
#pragma unroll
    for (int n = 0; n < kNT; ++n) {
      const Bits128& v = x[n][block];
      float part[4] = {};
      mma_m16n8k16<A>(part, {one, one, one, one}, {v.x[0], v.x[1]});
      mma_m16n8k16<A>(part, {one, one, one, one}, {v.x[2], v.x[3]});
      sum[n][0] += m.x * part[0];
      sum[n][1] += m.x * part[1];
      sum[n][2] += m.y * part[2];
      sum[n][3] += m.y * part[3];
    }
  }
};

template <class A>
struct Unit<A, Layout::kQ4_0> : Q4Unit<A, false> {};
template <class A>
struct Unit<A, Layout::kQ4_1> : Q4Unit<A, true> {};

template <class A>
struct Unit<A, Layout::kQ8_0> {
  Bits128 quants[2];
  uint32_t scales[2];

  template <bool kEarly>
  __device__ void load(const PackedView& w, int tile, int unit, int lane) {
    const int64_t at = int64_t{tile} * (static_cast<int>(w.cols) / kUnitCols) + unit;
    const unsigned char* p = static_cast<const unsigned char*>(w.data) + at * 1024 + lane * 16;
    quants[0] = weight_128<kEarly>(p);
    quants[1] = weight_128<kEarly>(p + 512);
    const uint2 s = weight_64<kEarly>(static_cast<const unsigned char*>(w.scales) + at * 64 + lane / 4 * 8);
    scales[0] = s.x;
    scales[1] = s.y;
  }

  template <int kNT>
  __device__ void multiply(const PackedView&, float (&sum)[kNT][4], const Bits128 (&x)[kNT][2]) const {
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      uint32_t a[4], b[4];
      bytes_minus<A>(quants[block].x[0], quants[block].x[1], 8388736.0f, a);  // 2^23 + 128
      bytes_minus<A>(quants[block].x[2], quants[block].x[3], 8388736.0f, b);
      add_block<A, kNT>(sum, a, b, x, block, unpack2<__half>(scales[block]));
    }
  }
};

// Codes with scales and zero points by groups. Each block of 32 columns has its own here, as they stand in
// memory: nothing waits for them before multiply().
//
// Instructions of a warp for a unit of U4, 512 bytes and 1/4 to 1 of a group's, one token tile: 5 loads, 4
// byte_perm, 44 for nibbles, 4 mma, 8 FMA, some 12 for scales and addresses: 0.15 a byte. At 4.3 TB/s an SM
// of an H200 gets 18.6 bytes a clock: 2.8 of its 4 instructions.
template <class A, Layout kLayout>
struct CodeUnit {
  static constexpr bool kBytes = kLayout == Layout::kU8;
  Bits128 quants[kBytes ? 2 : 1];
  GroupWords<kLayout> groups[2];

  template <bool kEarly>
  __device__ void load(const PackedView& w, int tile, int unit, int lane) {
    constexpr int kUnitBytes = kBytes ? 1024 : 512;
    const int64_t at = int64_t{tile} * (static_cast<int>(w.cols) / kUnitCols) + unit;
    const unsigned char* p = static_cast<const unsigned char*>(w.data) + at * kUnitBytes + lane * 16;
    quants[0] = weight_128<kEarly>(p);
    if constexpr (kBytes) quants[1] = weight_128<kEarly>(p + 512);
#pragma unroll
    for (int block = 0; block < 2; ++block)
      groups[block].template load<kEarly>(w, tile, group_of(w, 2 * unit + block), lane);
  }

  template <int kNT>
  __device__ void multiply(const PackedView& w, float (&sum)[kNT][4], const Bits128 (&x)[kNT][2]) const {
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      uint32_t a[4], b[4];
      code_fragments<A, kLayout>(quants[kBytes ? block : 0], block, groups[block], a, b);
      add_block<A, kNT>(sum, a, b, x, block, groups[block].scale(w.scale));
    }
  }
};

template <class A>
struct Unit<A, Layout::kU4> : CodeUnit<A, Layout::kU4> {};
template <class A>
struct Unit<A, Layout::kU8> : CodeUnit<A, Layout::kU8> {};

// 16 rows x 64 codes, 16 columns a lane. Scales of 128 columns are applied to the sums of a unit, those of
// whole rows in finish().
template <class A>
struct Unit<A, Layout::kF8> {
  Bits128 rows[2];  // row g, row g + 8
  float scales[2];

  template <bool kEarly>
  __device__ void load(const PackedView& w, int tile, int unit, int lane) {
    const int64_t row = int64_t{tile} * kTileRows + lane / 4;
    const unsigned char* p =
        static_cast<const unsigned char*>(w.data) + row * w.cols + unit * kUnitCols + lane % 4 * 16;
    rows[0] = weight_128<kEarly>(p);
    rows[1] = weight_128<kEarly>(p + 8 * w.cols);
    scales[0] = scales[1] = 1;
    if (w.groups == 1) return;
    const float* s = static_cast<const float*>(w.scales) + unit / (kF8Group / kUnitCols) * w.rows + row;
    scales[0] = ldg(s);
    scales[1] = ldg(s + 8);
  }

  template <int kNT>
  __device__ void multiply(const PackedView&, float (&sum)[kNT][4], const Bits128 (&x)[kNT][2]) const {
    float part[kNT][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint2 a = from_e4m3x4<A>(rows[0].x[2 * half]), b = from_e4m3x4<A>(rows[1].x[2 * half]);
      const uint2 c = from_e4m3x4<A>(rows[0].x[2 * half + 1]), d = from_e4m3x4<A>(rows[1].x[2 * half + 1]);
#pragma unroll
      for (int n = 0; n < kNT; ++n) {
        const Bits128& v = x[n][half];
        mma_m16n8k16<A>(part[n], {a.x, b.x, a.y, b.y}, {v.x[0], v.x[1]});
        mma_m16n8k16<A>(part[n], {c.x, d.x, c.y, d.y}, {v.x[2], v.x[3]});
      }
    }
#pragma unroll
    for (int n = 0; n < kNT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[n][i] += scales[i / 2] * part[n][i];
  }
};

// This lane's columns of a unit for token 8 n + g, from memory or from staged rows.
template <class A, Layout kLayout, int kNT>
__device__ inline void load_x(Bits128 (&x)[kNT][2], const A* rows, int64_t stride, int tokens, int unit,
                              int lane) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < kNT; ++n) {
    const bool exists = n * 8 + g < tokens;
    const A* p = rows + (n * 8 + g) * stride + unit * kUnitCols;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      x[n][half] = exists ? load_128(p + column_of<kLayout>(t, half)) : Bits128{};
  }
}

// x * rstd * weight of every token, rounded to A, into `staged` [tokens][cols + kRowPad].
template <class A, int kRowPad>
__device__ inline void stage_norm(const Product& p, A* staged, float* partial) {
  const int threads = blockDim.x, warps = threads / 32, tokens = static_cast<int>(p.tokens);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, cols = static_cast<int>(p.w.cols);
  const float* rows[kFusedNormTokens];
  float sum[kFusedNormTokens] = {};
#pragma unroll
  for (int m = 0; m < kFusedNormTokens; ++m) {
    const int64_t row = p.x_row != nullptr && m < tokens ? p.x_row[m] : m;
    rows[m] = static_cast<const float*>(p.x) + row * p.x_stride;
  }
#pragma unroll 2
  for (int i = threadIdx.x * 4; i < cols; i += threads * 4) {
#pragma unroll
    for (int m = 0; m < kFusedNormTokens; ++m) {
      if (m >= tokens) break;
      const float4 v = *reinterpret_cast<const float4*>(rows[m] + i);
      sum[m] += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
  }
#pragma unroll
  for (int m = 0; m < kFusedNormTokens; ++m) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) sum[m] += shfl_xor(sum[m], bits);
    if (lane == 0) partial[m * kMostWarps + warp] = sum[m];
  }
  sync_threads();
  float factor[kFusedNormTokens];
#pragma unroll
  for (int m = 0; m < kFusedNormTokens; ++m) {
    float total = 0;
    for (int i = 0; i < warps; ++i) total += partial[m * kMostWarps + i];
    factor[m] = rsqrt(total / static_cast<float>(cols) + p.eps);
  }
#pragma unroll 2
  for (int i = threadIdx.x * 4; i < cols; i += threads * 4) {
    const float4 w = *reinterpret_cast<const float4*>(p.norm + i);
#pragma unroll
    for (int m = 0; m < kFusedNormTokens; ++m) {
      if (m >= tokens) break;
      const float4 v = *reinterpret_cast<const float4*>(rows[m] + i);
      uint2 pair;
      pair.x = pack2<A>(v.x * factor[m] * w.x, v.y * factor[m] * w.y);
      pair.y = pack2<A>(v.z * factor[m] * w.z, v.w * factor[m] * w.w);
      *reinterpret_cast<uint2*>(staged + m * (cols + kRowPad) + i) = pair;
    }
  }
  sync_threads();
}

// The warps' sums added up; every thread then finishes some of the outputs.
template <class A, Layout kLayout, int kRT, int kNT>
__device__ inline void finish(const Product& p, int tile, const float (&sum)[kRT][kNT][4], float* sums) {
  constexpr int kTile = 16 * 8 * kNT;  // of one row tile: [kNT][4][32 lanes]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
  for (int r = 0; r < kRT; ++r)
#pragma unroll
    for (int n = 0; n < kNT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[warp * kRT * kTile + r * kTile + (n * 4 + i) * 32 + lane] = sum[r][n][i];
  sync_threads();
  const int tiles = static_cast<int>(p.w.rows / kTileRows);
  const auto total = [&](int r, int row, int token) {
    const int from = (row % 8) * 4 + token % 8 / 2, i = row / 8 * 2 + token % 2;
    float v = 0;
    for (int w = 0; w < warps; ++w) {
      const float s = sums[w * kRT * kTile + r * kTile + (token / 8 * 4 + i) * 32 + from];
      v = w == 0 ? s : v + s;
    }
    if constexpr (kLayout == Layout::kF8) {
      if (p.w.groups == 1)
        v *= ldg(static_cast<const float*>(p.w.scales) + int64_t{tile + r} * kTileRows + row);
    }
    return v;
  };
  const int rows = p.sink.kind == Epilogue::kGated ? 8 : 16;  // outputs of a tile and token
  for (int at = threadIdx.x; at < kRT * rows * p.tokens; at += blockDim.x) {
    const int row = at % rows, r = at / rows % kRT, token = at / (rows * kRT);
    if (tile + r >= tiles) continue;
    const int64_t first = p.first_row + int64_t{tile + r} * kTileRows;
    if (rows == 8)
      put_pair<A>(p.sink, token, first / 2 + row, total(r, row, token), total(r, row + 8, token));
    else
      put<A>(p.sink, token, first + row, total(r, row, token));
  }
  sync_threads();  // the next tile's sums come to the same place
}

// Rows [begin, end) of the product of q, k and v are stored. Every thread of the block calls.
template <class A>
__device__ inline void finish_heads(const QkvFinish& f, int begin, int end, int tokens) {
  const int heads = f.heads + f.kv_heads, v_begin = heads * f.dim_k;
  const int chunk = static_cast<int>(threadIdx.x) & ((1 << f.lanes_shift) - 1);
  for (int row = begin; row < end;) {
    const bool is_v = row >= v_begin;
    const int dim = is_v ? f.dim_v : f.dim_k, at = is_v ? row - v_begin : row;
    const int head = at / dim + (is_v ? heads : 0), left = minimum(dim - at % dim, end - row);
    row += left;
    if (!arrive_last<32 * kMostWarps>(f.arrived + head, left, dim)) continue;
    const int step = static_cast<int>(blockDim.x) >> f.lanes_shift;
    for (int first = 0; first < tokens; first += step) {
      const int token = first + (static_cast<int>(threadIdx.x) >> f.lanes_shift);
      finish_head<A>(f, token < tokens ? token : -1, head, chunk);
    }
  }
}

// Blocks of a multiprocessor that registers must allow.
constexpr int least_blocks(Layout layout, int tokens) {
  return is_quantized(layout) || tokens > 1 ? 2 : 3;
}

template <class A, Layout kLayout, int kRT, int kNT, int kDepth, bool kNorm>
__global__ void __launch_bounds__(32 * kMostWarps, least_blocks(kLayout, kRT* kNT)) kernel(Product p) {
  DI_DYNAMIC_SHARED(bytes);
  float* sums = reinterpret_cast<float*>(bytes);  // [warps][kRT][kNT][4][32], with kNorm partial sums before
  A* staged = reinterpret_cast<A*>(sums + (blockDim.x / 32) * kRT * kNT * 128);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sections = blockDim.x / 32;
  const int tiles = static_cast<int>(p.w.rows / kTileRows), units = static_cast<int>(p.w.cols / kUnitCols);
  const int begin = section_start(units, sections, warp), end = section_start(units, sections, warp + 1);
  const int tokens = static_cast<int>(p.tokens);
  const A* x_rows = kNorm ? staged : static_cast<const A*>(p.x);
  const int64_t x_stride = kNorm ? p.w.cols + pad_of(kLayout) : p.x_stride;
  Unit<A, kLayout> w[kDepth][kRT];
  Bits128 x[kDepth][kNT][2];
  const auto load_weight = [&]<bool kEarly>(std::bool_constant<kEarly>, int slot, int tile, int unit) {
#pragma unroll
    for (int r = 0; r < kRT; ++r)
      w[slot][r].template load<kEarly>(p.w, minimum(tile + r, tiles - 1), unit, lane);
  };
  const auto load_first = [&](auto early, int tile) {
#pragma unroll
    for (int i = 0; i < kDepth; ++i)
      if (begin + i < end) load_weight(early, i, tile, begin + i);
  };
  const int stride = gridDim.x * kRT;
  int tile = blockIdx.x * kRT;
  grid_launch_dependents();
  load_first(std::true_type(), tile);
  grid_dependency_wait();
  if constexpr (kNorm) stage_norm<A, pad_of(kLayout)>(p, staged, sums);
  for (; tile < tiles; tile += stride) {
#pragma unroll
    for (int i = 0; i < kDepth; ++i)
      if (begin + i < end) load_x<A, kLayout, kNT>(x[i], x_rows, x_stride, tokens, begin + i, lane);
    float sum[kRT][kNT][4] = {};
    for (int unit = begin; unit < end; unit += kDepth) {
#pragma unroll
      for (int i = 0; i < kDepth; ++i) {
        if (unit + i >= end) break;
#pragma unroll
        for (int r = 0; r < kRT; ++r) w[i][r].template multiply<kNT>(p.w, sum[r], x[i]);
        if (unit + i + kDepth < end) {
          load_weight(std::false_type(), i, tile, unit + i + kDepth);
          load_x<A, kLayout, kNT>(x[i], x_rows, x_stride, tokens, unit + i + kDepth, lane);
        }
      }
    }
    if (tile + stride < tiles) load_first(std::false_type(), tile + stride);
    finish<A, kLayout, kRT, kNT>(p, tile, sum, sums);
  }
  if (p.finish.arrived == nullptr) return;
  const int rows = static_cast<int>(p.sink.rows);
  for (tile = blockIdx.x * kRT; tile < tiles; tile += stride)
    finish_heads<A>(p.finish, tile * kTileRows, minimum((tile + kRT) * kTileRows, rows), tokens);
}

template <class A, Layout kLayout, int kRT, int kNT, int kDepth, bool kNorm>
void start(Gpu& gpu, const Product& p) {
  const int warps = product_sections(p.w.cols);
  const int64_t tiles = p.w.rows / kTileRows;
  int64_t blocks = (tiles + kRT - 1) / kRT;
  if (kNorm)
    blocks = std::min<int64_t>(blocks, int64_t{gpu.facts().multiprocessors} * least_blocks(kLayout, 1));
  size_t smem = static_cast<size_t>(warps) * kRT * kNT * 128 * sizeof(float);
  if (kNorm) smem += static_cast<size_t>(p.tokens * (p.w.cols + pad_of(kLayout))) * sizeof(A);
  launch({.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(32 * warps),
          .smem = smem,
          .stream = stream_of(gpu),
          .pdl = gpu.pdl},
         kernel<A, kLayout, kRT, kNT, kDepth, kNorm>, p);
}

// Units in flight: with one row tile, with two, with two of both.
struct Depths {
  int one, rows, both;
};

// Two row tiles at once halve what is read of x for a row: with more than 4 tokens that weighs. But no fewer
// blocks than multiprocessors.
template <class A, Layout kLayout, Depths kDepths>
void choose(Gpu& gpu, const Product& p) {
  if (p.norm != nullptr) return start<A, kLayout, 1, 1, kDepths.one, true>(gpu, p);
  const bool many_rows = p.w.rows / kTileRows >= int64_t{gpu.facts().multiprocessors} * 3 / 2;
  if (p.tokens <= 4 || (p.tokens <= 8 && !many_rows))
    return start<A, kLayout, 1, 1, kDepths.one, false>(gpu, p);
  if (p.tokens <= 8) return start<A, kLayout, 2, 1, kDepths.rows, false>(gpu, p);
  return start<A, kLayout, 2, 2, kDepths.both, false>(gpu, p);
}

}  // namespace deepinfer::cuda::skinny
