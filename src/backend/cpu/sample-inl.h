// The loops over a row of logits. NaN compares false everywhere: it is never found and weighs nothing.
#pragma once

#include "backend/cpu/kernels.h"
#include "backend/cpu/simd-inl.h"

namespace deepinfer::cpu {
namespace {

static float row_max(const float* x, int64_t n) {
  const float lowest = -__builtin_inff();
  F32 m[4] = {splat(lowest), splat(lowest), splat(lowest), splat(lowest)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    DI_UNROLL for (int j = 0; j < 4; ++j) m[j] = max(load(x + i + j * kLanes), m[j]);
  float found = max(max(max(m[0], m[1]), max(m[2], m[3])));
  for (; i < n; ++i) found = x[i] > found ? x[i] : found;
  return found;
}

// Bit i: a[i] > b[i].
DI_INLINE uint32_t above(F32 a, F32 b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GT_OQ);
#elif defined(__AVX2__)
  __m256 x[2], y[2];
  std::memcpy(x, &a, sizeof a);
  std::memcpy(y, &b, sizeof b);
  const auto low = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x[0], y[0], _CMP_GT_OQ)));
  return low | static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x[1], y[1], _CMP_GT_OQ))) << 8;
#else
  __m128 x[4], y[4];
  std::memcpy(x, &a, sizeof a);
  std::memcpy(y, &b, sizeof b);
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i)
    bits |= static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpgt_ps(x[i], y[i]))) << (4 * i);
  return bits;
#endif
}

static int64_t row_collect(const float* x, int64_t first, int64_t n, float floor, Found* found) {
  const F32 limit = splat(floor);
  int32_t* ids = found->ids;
  int64_t i = first, count = found->count;
  for (; i + kLanes <= n && count + kLanes <= found->capacity; i += kLanes) {
    for (uint32_t bits = above(load(x + i), limit); bits != 0; bits &= bits - 1)
      ids[count++] = static_cast<int32_t>(i + __builtin_ctz(bits));
  }
  if (i + kLanes > n && count + kLanes <= found->capacity) {
    for (; i < n; ++i)
      if (x[i] > floor) ids[count++] = static_cast<int32_t>(i);
  }
  found->count = count;
  return i;
}

// e^((x - max) * scale), 0 below floor and where it would be subnormal.
DI_INLINE F32 weight_of(F32 x, const Softmax& s) {
  const F32 d = (x - splat(s.max)) * splat(s.scale);
  const F32 e = exp(d);
  const I32 counts = (x >= splat(s.floor)) & (d > splat(-87.0f));
  return reinterpret_cast<F32>(reinterpret_cast<I32>(e) & counts);
}

static void row_weights(const float* x, int64_t n, const Softmax& s, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, weight_of(load(x + i), s));
  if (i < n) store_n(out + i, weight_of(load_n(x + i, n - i), s), n - i);
}

static void row_sums(const float* x, int64_t n, const Softmax& s, double* sums) {
  for (int64_t block = 0; block * kSampleBlock < n; ++block) {
    const int64_t begin = block * kSampleBlock;
    const int64_t end = begin + kSampleBlock < n ? begin + kSampleBlock : n;
    F32 a{}, b{};
    int64_t i = begin;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      a += weight_of(load(x + i), s);
      b += weight_of(load(x + i + kLanes), s);
    }
    for (; i < end; i += kLanes) {
      const int64_t left = end - i < kLanes ? end - i : kLanes;
      float w[kLanes] = {};
      store(w, weight_of(load_n(x + i, left), s));
      a += load_n(w, left);  // the lanes past the end are zeros of no token
    }
    sums[block] = sum(a + b);
  }
}

}  // namespace
}  // namespace deepinfer::cpu
