// What becomes of a product: the end of every matmul, and its prefetching.
#pragma once

#include "backend/cpu/kernels.h"
#include "backend/cpu/layout.h"
#include "backend/cpu/rows-inl.h"
#include "backend/cpu/simd-inl.h"

namespace deepinfer::cpu {
namespace {

constexpr int64_t kPrefetchBytes = 4096;  // ahead of a group's stream: it runs on into the next group

DI_INLINE void prefetch(const void* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64)
    _mm_prefetch(static_cast<const char*>(p) + kPrefetchBytes + i, _MM_HINT_T0);
}

DI_INLINE F32 bias_of(const float* bias, int64_t row, int64_t n) {
  return bias == nullptr ? F32{} : load_n(bias + row, n);
}

// One column's 16 rows (fewer at the end of the matrix) from `row` on; `up` is read when gated.
DI_INLINE void finish(const MatmulArgs& a, int64_t row, int64_t column, const float* y, const float* up) {
  const int64_t n = a.rows - row < kGroupRows ? a.rows - row : kGroupRows;
  float* out = a.out + column * a.out_stride + row;
  F32 v = load(y);
  const bool gated = a.epilogue == Epilogue::kGated;
  const float* const scale = a.row_scale == nullptr ? nullptr : a.row_scale + (gated ? 2 * row : row);
  if (scale != nullptr) v *= load(scale);
  switch (a.epilogue) {
    case Epilogue::kStore:
      v = v * splat(a.scale);
      if (a.bias != nullptr) v += bias_of(a.bias, row, n);
      break;
    case Epilogue::kAdd:
      if (a.bias != nullptr) v += bias_of(a.bias, row, n);
      v += load_n(out, n);
      break;
    case Epilogue::kGated: {
      F32 u = load(up);
      if (scale != nullptr) u *= load(scale + kGroupRows);
      if (a.bias != nullptr) {
        v += bias_of(a.bias, row, n);
        u += bias_of(a.bias, a.rows + row, n);
      }
      v = activate(v, a.activation) * u;
      break;
    }
  }
  if (n == kGroupRows)
    store(out, v);
  else
    store_n(out, v, n);
}

}  // namespace
}  // namespace deepinfer::cpu
