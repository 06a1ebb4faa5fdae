// Attention of a few query rows (tokens x heads of one KV head's group) over the sequence's cache.
//
// Keys come in chunks of 64 positions that start at multiples of 64, whatever the tile: a chunk of K and V
// becomes F32 once for all query rows, then scores, the softmax's update (running maximum and sum), and the
// weighted sum of V in ascending order of position over the keys that the query may see. Chunks make up
// stretches of 128 positions; each is summed alone, then added to those before it. So a query's result does
// not depend on the queries beside it, on how the prompt was cut, nor on which threads took its stretches.
//
// A cache of I8 has a scale for each position of K and V: it is applied to the score and to the weight. The
// scales of a layer (F8_E4M3), and what a stored value lacks (kUnit), are applied to the query and to the
// result.
#pragma once

#include <type_traits>

#include "backend/cpu/gemm-inl.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/rows-inl.h"
#include "backend/cpu/simd-inl.h"

namespace deepinfer::cpu {
namespace {

// One call's working memory.
struct Attend {
  const AttendArgs& a;
  int64_t width_v;  // dim_v, padded to 16
  float* q;         // [rows][dim_k], times the scale
  float* k;         // [dim_k][64]
  float* v;         // [64][width_v]
  float* k_scale;   // [64], of I8
  float* v_scale;   // [64], of I8
  float* score;     // [rows][64]
  // Of one stretch of keys:
  float* out;      // [rows][width_v]
  float* largest;  // [rows] of the scores so far
  float* total;    // [rows] of the weights so far
};

// The keys of a chunk that a query at `position` sees: [first, last) inside the chunk.
struct KeyRange {
  int first, last;
};
DI_INLINE KeyRange visible(const AttendArgs& a, int64_t chunk_start, int64_t position) {
  int64_t first = 0, last = position + 1 - chunk_start;
  if (a.window > 0) first = position + 1 - a.window - chunk_start;
  if (first < 0) first = 0;
  if (last > kKeyChunk) last = kKeyChunk;
  if (last < 0) last = 0;
  if (first > last) first = last;
  return {static_cast<int>(first), static_cast<int>(last)};
}

// K and V of the blocks that hold positions [first, last) of the chunk.
template <class Element>
static void load_chunk(const AttendArgs& a, int64_t chunk_start, KeyRange range, float* k, float* v) {
  using Type = typename Element::Type;
  const int64_t width_v = padded_dim(a.dim_v);
  for (int i = range.first / kKvBlock; i * kKvBlock < range.last; ++i) {
    const size_t block = a.block_stride * static_cast<size_t>(a.blocks[chunk_start / kKvBlock + i]);
    const Type* from_k = reinterpret_cast<const Type*>(a.k + block);
    for (int d = 0; d < a.dim_k; ++d)
      store(k + d * kKeyChunk + i * kKvBlock, Element::load16(from_k + d * kKvBlock));
    const Type* from_v = reinterpret_cast<const Type*>(a.v + block);
    for (int j = 0; j < kKvBlock; ++j) {
      float* to = v + (i * kKvBlock + j) * width_v;
      int d = 0;
      for (; d + kLanes <= a.dim_v; d += kLanes) store(to + d, Element::load16(from_v + j * a.dim_v + d));
      if (d == a.dim_v) continue;
      Type tail[kLanes] = {};
      std::memcpy(tail, from_v + j * a.dim_v + d, (a.dim_v - d) * sizeof(Type));
      store(to + d, Element::load16(tail));
    }
  }
}

// The scales behind the heads of block i of a chunk, of I8.
DI_INLINE void load_scales(const Attend& t, size_t block, int i) {
  const AttendArgs& a = t.a;
  const int64_t k_bytes = static_cast<int64_t>(a.dim_k) * kKvBlock, v_bytes = int64_t{a.dim_v} * kKvBlock;
  store(t.k_scale + i * kKvBlock, bf16_to_f32(load_as<U16>(a.k + block + k_bytes)));
  store(t.v_scale + i * kKvBlock, bf16_to_f32(load_as<U16>(a.v + block + v_bytes)));
}

static void load_chunk(const Attend& t, int64_t chunk_start, KeyRange range) {
  const AttendArgs& a = t.a;
  float *const k = t.k, *const v = t.v;
  switch (a.kv_dtype) {
    case DType::kF32:
      return load_chunk<ElementF32>(a, chunk_start, range, k, v);
    case DType::kF16:
      return load_chunk<ElementF16>(a, chunk_start, range, k, v);
    case DType::kBF16:
      return load_chunk<ElementBF16>(a, chunk_start, range, k, v);
    case DType::kF8E4M3:
      return load_chunk<ElementE4M3>(a, chunk_start, range, k, v);
    case DType::kI8:
      for (int i = range.first / kKvBlock; i * kKvBlock < range.last; ++i)
        load_scales(t, a.block_stride * static_cast<size_t>(a.blocks[chunk_start / kKvBlock + i]), i);
      return load_chunk<ElementI8>(a, chunk_start, range, k, v);
    default:
      return;  // the operation has checked it
  }
}

DI_INLINE F32 soft_capped(F32 s, float cap) {
  // cap * tanh(s / cap), by tanh(u) = 1 - 2 / (e^2u + 1)
  const F32 u = s * splat(2.0f / cap);
  return cap * (1.0f - 2.0f / (exp(u) + 1.0f));
}

// Scores of one query row become weights e^(score - maximum), zero outside of its keys; what was summed with
// the older maximum is scaled down. What is written for keys outside is read by nobody: with I8 their scales
// may be anything.
template <bool kAllKeys, bool kScaled>
DI_INLINE void update_softmax(const Attend& t, int row, KeyRange range) {
  constexpr int kVectors = kKeyChunk / kLanes;
  const float soft_cap = t.a.soft_cap;
  float* score = t.score + row * kKeyChunk;
  const I32 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  F32 s[kVectors];
  F32 top = splat(-__builtin_inff());
  DI_UNROLL for (int i = 0; i < kVectors; ++i) {
    s[i] = load(score + i * kLanes);
    if (kScaled) s[i] *= load(t.k_scale + i * kLanes);
    if (soft_cap > 0) s[i] = soft_capped(s[i], soft_cap);
    const I32 key = lane + i * kLanes;
    if (!kAllKeys) s[i] = ((key >= range.first) & (key < range.last)) ? s[i] : splat(-__builtin_inff());
    top = max(top, s[i]);
  }
  const float before = t.largest[row];
  const float now = max(top) > before ? max(top) : before;
  F32 sums{};
  DI_UNROLL for (int i = 0; i < kVectors; ++i) {
    const I32 key = lane + i * kLanes;
    F32 weight = exp(s[i] - splat(now));
    if (!kAllKeys) weight = ((key >= range.first) & (key < range.last)) ? weight : F32{};
    sums += weight;
    store(score + i * kLanes, kScaled ? weight * load(t.v_scale + i * kLanes) : weight);
  }
  if (now == before) {
    t.total[row] += sum(sums);
    return;
  }
  const float keep = exp(splat(before - now))[0];
  t.largest[row] = now;
  t.total[row] = t.total[row] * keep + sum(sums);
  float* out = t.out + row * t.width_v;
  for (int64_t i = 0; i < t.width_v; i += kLanes) store(out + i, load(out + i) * splat(keep));
}

static void update_softmax(const Attend& t, int row, KeyRange range) {
  const bool all = range.first == 0 && range.last == kKeyChunk;
  if (t.a.kv_dtype == DType::kI8)
    return all ? update_softmax<true, true>(t, row, range) : update_softmax<false, true>(t, row, range);
  return all ? update_softmax<true, false>(t, row, range) : update_softmax<false, false>(t, row, range);
}

static void attend_chunk(const Attend& t, int64_t chunk_start) {
  const AttendArgs& a = t.a;
  const KeyRange first = visible(a, chunk_start, a.first_position);
  const KeyRange last = visible(a, chunk_start, a.first_position + a.tokens - 1);
  load_chunk(t, chunk_start, {first.first, last.last});
  const int rows = a.tokens * a.heads;
  std::memset(t.score, 0, sizeof(float) * rows * kKeyChunk);
  accumulate(rows, kKeyChunk, a.dim_k, t.q, a.dim_k, t.k, kKeyChunk, t.score, kKeyChunk);
  for (int i = 0; i < a.tokens; ++i) {
    const KeyRange range = visible(a, chunk_start, a.first_position + i);
    if (range.first == range.last) continue;
    for (int h = 0; h < a.heads; ++h) update_softmax(t, i * a.heads + h, range);
  }
  // Keys that all queries see are read once for all; the few others on both sides for each query.
  const auto weigh = [&](int row, int count, int from, int to) __attribute__((always_inline)) {
    if (from < to)
      accumulate(count, t.width_v, to - from, t.score + row * kKeyChunk + from, kKeyChunk,
                 t.v + from * t.width_v, t.width_v, t.out + row * t.width_v, t.width_v);
  };
  int common_first = last.first, common_last = first.last;
  if (common_first > common_last) common_first = common_last;
  for (int i = 0; i < a.tokens; ++i) {
    const KeyRange range = visible(a, chunk_start, a.first_position + i);
    const int to = range.last < common_first ? range.last : common_first;
    weigh(i * a.heads, a.heads, range.first, to);
  }
  weigh(0, rows, common_first, common_last);
  for (int i = 0; i < a.tokens; ++i) {
    const KeyRange range = visible(a, chunk_start, a.first_position + i);
    const int from = range.first > common_last ? range.first : common_last;
    weigh(i * a.heads, a.heads, from, range.last);
  }
}

// A chunk for one token, M heads: K and V become F32 in registers. The same sums in the same order.
template <class Element, int M>
static void attend_chunk_one(const Attend& t, int64_t chunk_start) {
  using Type = typename Element::Type;
  const AttendArgs& a = t.a;
  const KeyRange range = visible(a, chunk_start, a.first_position);
  const int first_block = range.first / kKvBlock, end_block = (range.last + kKvBlock - 1) / kKvBlock;
  const Type *k[kKeyChunk / kKvBlock], *v[kKeyChunk / kKvBlock];
  for (int b = first_block; b < end_block; ++b) {
    const size_t block = a.block_stride * static_cast<size_t>(a.blocks[chunk_start / kKvBlock + b]);
    k[b] = reinterpret_cast<const Type*>(a.k + block);
    v[b] = reinterpret_cast<const Type*>(a.v + block);
    if constexpr (std::is_same_v<Element, ElementI8>) load_scales(t, block, b);
    for (size_t i = 0; i < kKvBlock * a.dim_v * sizeof(Type); i += 64)  // read after the scores
      _mm_prefetch(reinterpret_cast<const char*>(v[b]) + i, _MM_HINT_T1);
  }
  std::memset(t.score, 0, sizeof(float) * M * kKeyChunk);
  int b = first_block;
  for (; b + kTileVectors <= end_block; b += kTileVectors) {
    const Type* places[kTileVectors];
    DI_UNROLL for (int i = 0; i < kTileVectors; ++i) places[i] = k[b + i];
    tile_accumulate<Element, M, kTileVectors>(a.dim_k, t.q, a.dim_k, places, kKvBlock, t.score + b * kKvBlock,
                                              kKeyChunk);
  }
  for (; b < end_block; ++b)
    tile_accumulate<Element, M, 1>(a.dim_k, t.q, a.dim_k, k[b], kKvBlock, t.score + b * kKvBlock, kKeyChunk);
  for (int m = 0; m < M; ++m) update_softmax(t, m, range);
  for (b = first_block; b < end_block; ++b) {
    const int start = b * kKvBlock;
    const int from = range.first > start ? range.first - start : 0;
    const int count = (range.last < start + kKvBlock ? range.last - start : kKvBlock) - from;
    const float* weight = t.score + start + from;
    const Type* at = v[b] + from * a.dim_v;
    int64_t d = 0;
    for (; d + kTileVectors * kLanes <= a.dim_v; d += kTileVectors * kLanes)
      tile_accumulate<Element, M, kTileVectors>(count, weight, kKeyChunk, at + d, a.dim_v, t.out + d,
                                                t.width_v);
    for (; d < a.dim_v; d += kLanes)
      tile_accumulate<Element, M, 1>(count, weight, kKeyChunk, at + d, a.dim_v, t.out + d, t.width_v);
  }
}

using ChunkFunction = void (*)(const Attend&, int64_t);

template <class Element>
static ChunkFunction chunk_function(int heads) {
  switch (heads) {
    case 1:
      return attend_chunk_one<Element, 1>;
    case 2:
      return attend_chunk_one<Element, 2>;
    case 3:
      return kTileRows >= 3 ? attend_chunk_one < Element, kTileRows >= 3 ? 3 : 1 > : attend_chunk;
    case 4:
      return kTileRows >= 4 ? attend_chunk_one < Element, kTileRows >= 4 ? 4 : 1 > : attend_chunk;
    default:
      return attend_chunk;
  }
}

static ChunkFunction chunk_function(const AttendArgs& a) {
  if (a.tokens > 1 || a.dim_v % kLanes != 0) return attend_chunk;
  switch (a.kv_dtype) {
    case DType::kF32:
      return chunk_function<ElementF32>(a.heads);
    case DType::kF16:
      return chunk_function<ElementF16>(a.heads);
    case DType::kBF16:
      return chunk_function<ElementBF16>(a.heads);
    case DType::kF8E4M3:
      return chunk_function<ElementE4M3>(a.heads);
    case DType::kI8:
      return chunk_function<ElementI8>(a.heads);
    default:
      return attend_chunk;
  }
}

DI_INLINE float unit_of(DType kv) {
  return kv == DType::kF8E4M3 ? ElementE4M3::kUnit : 1.0f;
}

static Attend begin(const AttendArgs& a) {
  const int64_t width_v = padded_dim(a.dim_v);
  float* const k = a.scratch + kMaxQueryRows * a.dim_k;
  float* const v = k + a.dim_k * kKeyChunk;
  float* const scales = v + kKeyChunk * width_v;
  float* const score = scales + 2 * kKeyChunk;
  float* const out = score + kMaxQueryRows * kKeyChunk;
  float* const largest = out + kMaxQueryRows * width_v;
  const Attend t{
      a, width_v, a.scratch, k, v, scales, scales + kKeyChunk, score, out, largest, largest + kMaxQueryRows};
  const float scale = a.scale * (a.k_scale * unit_of(a.kv_dtype));
  for (int i = 0; i < a.tokens; ++i) {
    const int n = a.heads * a.dim_k;  // heads stand side by side
    for (int d = 0; d < n; ++d) t.q[i * n + d] = a.q[i * a.q_stride + d] * scale;
  }
  return t;
}

static void attend_stretch(const Attend& t, int64_t stretch) {
  const AttendArgs& a = t.a;
  const int rows = a.tokens * a.heads;
  for (int r = 0; r < rows; ++r) {
    t.largest[r] = -__builtin_inff();
    t.total[r] = 0;
  }
  std::memset(t.out, 0, sizeof(float) * rows * t.width_v);
  const ChunkFunction run_chunk = chunk_function(a);
  const int64_t first_key = a.window > 0 ? a.first_position + 1 - a.window : 0;
  const int64_t end_key = a.first_position + a.tokens;
  int64_t chunk = stretch * kKeyStretch, end = chunk + kKeyStretch;
  if (chunk < first_key) chunk = first_key / kKeyChunk * kKeyChunk;
  if (end > end_key) end = end_key;
  for (; chunk < end; chunk += kKeyChunk) run_chunk(t, chunk);
}

// The sums of a stretch (out, largest, total) join those of the stretches before it. A total of zero is a row
// that saw no key of the stretch.
DI_INLINE void join(int64_t width_v, const float* part, float part_largest, float part_total, float* all,
                    float& largest, float& total) {
  if (part_total == 0) return;
  const float now = part_largest > largest ? part_largest : largest;
  const F32 keep = exp(splat(largest - now)), add = exp(splat(part_largest - now));
  for (int64_t d = 0; d < width_v; d += kLanes)
    store(all + d, fma(load(part + d), add, load(all + d) * keep));
  total = total * keep[0] + part_total * add[0];
  largest = now;
}

// sums / total, as values, into the caller's rows.
DI_INLINE void finish_row(const AttendArgs& a, int row, const float* sums, float total) {
  const F32 inverse = splat(a.v_scale * unit_of(a.kv_dtype) / total);
  float* out = a.out + row / a.heads * a.out_stride + static_cast<int64_t>(row % a.heads) * a.dim_v;
  int d = 0;
  for (; d + kLanes <= a.dim_v; d += kLanes) store(out + d, load(sums + d) * inverse);
  if (d < a.dim_v) store_n(out + d, load(sums + d) * inverse, a.dim_v - d);
}

static void attend(const AttendArgs& a) {
  const Attend t = begin(a);
  const int rows = a.tokens * a.heads;
  float* const sums = t.total + kMaxQueryRows;  // [rows][width_v] of all stretches
  float largest[kMaxQueryRows], total[kMaxQueryRows];
  std::memset(sums, 0, sizeof(float) * rows * t.width_v);
  for (int r = 0; r < rows; ++r) {
    largest[r] = -__builtin_inff();
    total[r] = 0;
  }
  const KeyStretches all = key_stretches(a.first_position, a.tokens, a.window);
  for (int64_t s = all.first; s < all.end; ++s) {
    attend_stretch(t, s);
    for (int r = 0; r < rows; ++r)
      join(t.width_v, t.out + r * t.width_v, t.largest[r], t.total[r], sums + r * t.width_v, largest[r],
           total[r]);
  }
  for (int r = 0; r < rows; ++r) finish_row(a, r, sums + r * t.width_v, total[r]);
}

// The same in pieces, for one token: the stretches in any order on any threads, then the end.
static void attend_part(const AttendArgs& a, int64_t stretch, float* part) {
  const Attend t = begin(a);
  attend_stretch(t, stretch);
  for (int h = 0; h < a.heads; ++h, part += t.width_v + kPartExtra) {
    std::memcpy(part, t.out + h * t.width_v, sizeof(float) * t.width_v);
    part[t.width_v] = t.largest[h];
    part[t.width_v + 1] = t.total[h];
  }
}

static void attend_join(const AttendArgs& a, const float* parts, int64_t part_size, int64_t count) {
  const int64_t width_v = padded_dim(a.dim_v), size = width_v + kPartExtra;
  for (int h = 0; h < a.heads; ++h) {
    float* const sums = a.scratch;
    std::memset(sums, 0, sizeof(float) * width_v);
    float largest = -__builtin_inff(), total = 0;
    for (int64_t s = 0; s < count; ++s) {
      const float* part = parts + s * part_size + h * size;
      join(width_v, part, part[width_v], part[width_v + 1], sums, largest, total);
    }
    finish_row(a, h, sums, total);
  }
}

}  // namespace
}  // namespace deepinfer::cpu
