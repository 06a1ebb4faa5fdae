// y = W x for F32, F16 and BF16 weights, computed in F32, a few groups of 16 rows at a time.
//
// Few columns: weights are converted in registers on their way. More: a piece of 64 rows x 64 k becomes F32
// in the first-level cache, once for all columns. Every element of y is one chain over k in both.
#pragma once

#include "backend/cpu/epilogue-inl.h"
#include "backend/cpu/gemm-inl.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/layout.h"
#include "backend/cpu/simd-inl.h"

namespace deepinfer::cpu {
namespace {

constexpr int kFloatGroups = 4;  // row groups at once
constexpr int kFloatRows = kFloatGroups * kGroupRows;
constexpr int kFloatPiece = 64;    // k that are converted at once
constexpr int kFloatColumns = 64;  // columns that pass over one converted piece
#if defined(__AVX512F__)
constexpr int kFewColumns = 4;  // x kFloatGroups accumulators fit the registers
#else
constexpr int kFewColumns = 1;
#endif

// y [N][64] of `groups` row groups, `stride` elements apart; those above R are not touched.
template <class Element, int N, int R>
static void float_tile(const typename Element::Type* w, int64_t stride, int64_t k, const float* x,
                       int64_t x_stride, float* y) {
  F32 f[N][R];
  DI_UNROLL for (int c = 0; c < N; ++c) DI_UNROLL for (int r = 0; r < R; ++r) f[c][r] = F32{};
  for (int64_t i = 0; i < k; ++i) {
    DI_UNROLL for (int r = 0; r < R; ++r) {
      const typename Element::Type* at = w + r * stride + i * kGroupRows;
      prefetch(at, 1);
      const F32 v = Element::load16(at);
      DI_UNROLL for (int c = 0; c < N; ++c) f[c][r] = fma(v, splat(x[c * x_stride + i]), f[c][r]);
    }
  }
  DI_UNROLL for (int c = 0; c < N; ++c) DI_UNROLL for (int r = 0; r < R; ++r) {
    store(y + c * kFloatRows + r * kGroupRows, f[c][r]);
  }
}

template <class Element, int N>
static void few_columns(const typename Element::Type* w, int groups, const Columns& x, float* y) {
  const int64_t stride = x.k * kGroupRows;
  if (groups == kFloatGroups) return float_tile<Element, N, kFloatGroups>(w, stride, x.k, x.x, x.x_stride, y);
  for (int r = 0; r < groups; ++r)
    float_tile<Element, N, 1>(w + r * stride, stride, x.k, x.x, x.x_stride, y + r * kGroupRows);
}

// y [n][64] for columns [column, column + n).
template <class Element>
static void many_columns(const typename Element::Type* w, int groups, const Columns& x, int64_t column, int n,
                         float* y) {
  alignas(64) float piece[kFloatPiece * kFloatRows];  // [k][64]
  std::memset(y, 0, sizeof(float) * n * kFloatRows);
  for (int64_t k = 0; k < x.k; k += kFloatPiece) {
    const int count = static_cast<int>(x.k - k < kFloatPiece ? x.k - k : kFloatPiece);
    for (int r = 0; r < groups; ++r) {
      const typename Element::Type* from = w + (r * x.k + k) * kGroupRows;
      prefetch(from, count * kGroupRows * sizeof(*from));
      for (int i = 0; i < count; ++i)
        store(piece + i * kFloatRows + r * kGroupRows, Element::load16(from + i * kGroupRows));
    }
    accumulate(n, int64_t{groups} * kGroupRows, count, x.x + column * x.x_stride + k, x.x_stride, piece,
               kFloatRows, y, kFloatRows);
  }
}

// Packed groups [group, group + groups): epilogue of columns [column, column + n).
DI_INLINE void finish_groups(const MatmulArgs& a, int64_t group, int groups, int64_t column, int64_t n,
                             const float* y) {
  const bool gated = a.epilogue == Epilogue::kGated;
  const int step = gated ? 2 : 1;
  for (int64_t c = 0; c < n; ++c) {
    for (int r = 0; r < groups; r += step) {
      const float* at = y + c * kFloatRows + r * kGroupRows;
      finish(a, (group + r) / step * kGroupRows, column + c, at, at + kGroupRows);
    }
  }
}

template <class Element>
static void float_matmul(const MatmulArgs& a, const Columns& x, int64_t first, int64_t last) {
  const auto* weight = reinterpret_cast<const typename Element::Type*>(a.weight);
  const int64_t step = a.epilogue == Epilogue::kGated ? 2 : 1;
  alignas(64) float y[kFloatColumns * kFloatRows];
  for (int64_t g = first * step; g < last * step; g += kFloatGroups) {
    const int groups = static_cast<int>(last * step - g < kFloatGroups ? last * step - g : kFloatGroups);
    const auto* w = weight + g * x.k * kGroupRows;
    if (x.count <= kFewColumns) {
      if (x.count == 1) few_columns<Element, 1>(w, groups, x, y);
      if constexpr (kFewColumns > 1) {
        if (x.count == 2) few_columns<Element, 2>(w, groups, x, y);
        if (x.count == 3) few_columns<Element, 3>(w, groups, x, y);
        if (x.count == 4) few_columns<Element, 4>(w, groups, x, y);
      }
      finish_groups(a, g, groups, 0, x.count, y);
      continue;
    }
    for (int64_t column = 0; column < x.count; column += kFloatColumns) {
      const int64_t n = x.count - column < kFloatColumns ? x.count - column : kFloatColumns;
      many_columns<Element>(w, groups, x, column, static_cast<int>(n), y);
      finish_groups(a, g, groups, column, n, y);
    }
  }
}

}  // namespace
}  // namespace deepinfer::cpu
