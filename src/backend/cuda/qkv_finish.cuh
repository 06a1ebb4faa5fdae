// From the product of a layer's q, k and v weights to queries and the paged cache: bias, a norm over each
// head, RoPE, rounding, storing. A thread has eight columns of a head, and reads those that RoPE pairs with
// them besides.
#pragma once

#include <math.h>

#include "backend/cuda/ptx.h"
#include "backend/cuda/qkv_finish.h"

namespace deepinfer::cuda {

// 32 bytes at a multiple of 16.
__device__ inline void load_8(const float* from, float (&to)[8]) {
  const float4 low = *reinterpret_cast<const float4*>(from),
               high = *reinterpret_cast<const float4*>(from + 4);
  to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
  to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

// One head of one token's product.
struct ProductHead {
  const float* x;     // [dim]
  const float* bias;  // [dim], or null
  const float* norm;  // [dim], or null
  float factor = 1;   // of the norm

  __device__ float value(int i) const {
    float v = x[i];
    if (bias != nullptr) v += bias[i];
    return norm == nullptr ? v : v * factor * norm[i];
  }
  // Without the norm.
  __device__ void load(int col, float (&v)[8]) const {
    load_8(x + col, v);
    if (bias == nullptr) return;
    float b[8];
    load_8(bias + col, b);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += b[i];
  }
  __device__ void apply_norm(int col, float (&v)[8]) const {
    if (norm == nullptr) return;
    float w[8];
    load_8(norm + col, w);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = v[i] * factor * w[i];
  }
};

// v, columns [col, col + 8), turned by the token's angles. Both forms round alike.
__device__ inline void turn_8(const QkvFinish& a, const ProductHead& head, const float* cosines, int col,
                              float (&v)[8]) {
  const int half = a.rotary / 2;
  if (col >= a.rotary) return;
  if (!a.rope_by_8) {
    float turned[8];
    for (int i = 0; i < 8; ++i) {
      const int at = col + i;
      turned[i] = v[i];
      if (at >= a.rotary) continue;
      const bool first = a.interleaved ? at % 2 == 0 : at < half;
      const int angle = a.interleaved ? at / 2 : at % half;
      const int partner = a.interleaved ? at ^ 1 : first ? at + half : at - half;
      const float across = multiply(head.value(partner), cosines[half + angle]);
      turned[i] = fmaf(v[i], cosines[angle], first ? -across : across);
    }
    for (int i = 0; i < 8; ++i) v[i] = turned[i];
    return;
  }
  if (a.interleaved) {
    const float4 c = *reinterpret_cast<const float4*>(cosines + col / 2);
    const float4 s = *reinterpret_cast<const float4*>(cosines + half + col / 2);
    const float cos[4] = {c.x, c.y, c.z, c.w}, sin[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float p = v[2 * i], q = v[2 * i + 1];
      v[2 * i] = fmaf(p, cos[i], -multiply(q, sin[i]));
      v[2 * i + 1] = fmaf(q, cos[i], multiply(p, sin[i]));
    }
    return;
  }
  const bool first = col < half;
  const int angle = first ? col : col - half, partner = first ? col + half : angle;
  float other[8], cos[8], sin[8];
  head.load(partner, other);
  head.apply_norm(partner, other);
  load_8(cosines + angle, cos);
  load_8(cosines + half + angle, sin);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float across = multiply(other[i], sin[i]);
    v[i] = fmaf(v[i], cos[i], first ? -across : across);
  }
}

template <class T>
__device__ inline void store_8(T* to, const float (&v)[8]) {
  Bits128 bits;
#pragma unroll
  for (int i = 0; i < 4; ++i) bits.x[i] = pack2<T>(v[2 * i], v[2 * i + 1]);
  store_128(to, bits);
}

__device__ inline void store_8_fp8(std::byte* to, const float (&v)[8], float scale) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = to_e4m3x2(v[2 * i] / scale, v[2 * i + 1] / scale);
  *reinterpret_cast<uint2*>(to) = {pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16};
}

// Where a token's keys or values of a KV head stand, or null: it has no place.
template <class T>
__device__ inline std::byte* cache_place(const QkvFinish& a, int64_t token, int kv_head, bool is_v) {
  const int position = a.position[token];
  if (position < 0) return nullptr;
  const int32_t block =
      a.row_blocks[int64_t{a.token_row[token]} * a.max_blocks + (position >> a.block_shift)];
  if (block < 0) return nullptr;
  const int inside = (kv_head << a.block_shift) + (position & ((1 << a.block_shift) - 1));
  const size_t bytes = static_cast<size_t>(is_v ? a.dim_v : a.dim_k) * (a.fp8 ? 1 : sizeof(T));
  return (is_v ? a.v : a.k) + a.block_stride * block + inside * bytes;
}

// Head `head` (q's, k's, then v's) of the product's token `index`. 2^lanes_shift lanes that stand together
// call, with chunk 0, 1, ..; all lanes of their warps come, those with nothing to do with an index of -1.
template <class T>
__device__ inline void finish_head(const QkvFinish& a, int64_t index, int head, int chunk) {
  const bool is_q = head < a.heads, is_v = head >= a.heads + a.kv_heads;
  const int dim = is_v ? a.dim_v : a.dim_k, col = 8 * chunk;
  const int kv_head = is_q ? 0 : (head - a.heads) % a.kv_heads;
  const int first = is_v ? (a.heads + a.kv_heads) * a.dim_k + kv_head * a.dim_v : head * a.dim_k;
  const HeadNorm norm = is_v ? HeadNorm() : is_q ? a.q_norm : a.k_norm;
  const bool mine = index >= 0 && col < dim;
  const int64_t token = a.first_token + index;
  std::byte* const place = mine && !is_q ? cache_place<T>(a, token, kv_head, is_v) : nullptr;

  ProductHead x{a.product + index * a.rows + first, a.bias == nullptr ? nullptr : a.bias + first,
                norm.weight};
  float v[8] = {};
  if (mine) x.load(col, v);
  if (a.q_norm.weight != nullptr || a.k_norm.weight != nullptr) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares = fmaf(v[i], v[i], squares);
    for (int by = 1 << a.lanes_shift >> 1; by > 0; by /= 2) squares += shfl_xor(squares, by);
    x.factor = 1.0f / sqrtf(squares / static_cast<float>(dim) + norm.eps);
  }
  if (!mine || (!is_q && place == nullptr)) return;
  x.apply_norm(col, v);
  if (!is_v && a.rotary > 0) turn_8(a, x, a.rope + token * a.rope_stride, col, v);
  if (is_q)
    store_8(static_cast<T*>(a.q) + (token * a.heads + head) * a.dim_k + col, v);
  else if (a.fp8)
    store_8_fp8(place + col, v, is_v ? a.v_scale : a.k_scale);
  else
    store_8(reinterpret_cast<T*>(place) + col, v);
}

}  // namespace deepinfer::cuda
