// y = W x for F32, F16, BF16 and F8 weights, computed in F32, a few groups of 16 rows at a time.
//
// Few columns: weights are converted in registers on their way. More: a piece of 64 rows x 64 k becomes F32
// in the first-level cache, once for all columns. Every element of y is one chain over k in both; a scale of
// a run of columns is multiplied into the weights, a row's into y.
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

// E4M3, two k of 16 rows in a word each: sign, exponent and mantissa stand as F16 has them, 2^8 too small
// (which the scales make good). Subnormals come out exact and at full speed, which they would not from F32's.
struct ElementF8 {
  using Type = uint8_t;
  DI_INLINE F32 widen(I16 words) {  // the code is the high byte
    return f16_to_f32(reinterpret_cast<U16>((words >> 1) & static_cast<int16_t>(0xbf80)));
  }
};
struct ElementF8Groups : ElementF8 {};  // a scale for every run of columns

template <class Element>
constexpr bool kIsF8 = sizeof(typename Element::Type) == 1;
template <class Element>
constexpr bool kScaled = false;
template <>
constexpr bool kScaled<ElementF8Groups> = true;
template <class Element>
constexpr int kSteps = kIsF8<Element> ? 2 : 1;  // k that are loaded at once

// 16 rows of kSteps k.
template <class Element>
DI_INLINE void load_steps(const typename Element::Type* p, F32 (&v)[kSteps<Element>]) {
  if constexpr (kIsF8<Element>) {
    const I16 words = load_as<I16>(p);
    v[0] = Element::widen(words << 8);
    v[1] = Element::widen(words);
  } else {
    v[0] = Element::load16(p);
  }
}

// Row groups that are computed at once.
template <class Element>
struct GroupsView {
  const typename Element::Type* w;
  int64_t k;
  const float* scale;  // [group][runs][16], where there is one for each run
  int64_t run, runs;

  DI_INLINE const typename Element::Type* at(const GroupsView& v, int group, int64_t i) {
    return v.w + (group * v.k + i) * kGroupRows;
  }
  DI_INLINE F32 scale_at(const GroupsView& v, int group, int64_t i) {
    return load(v.scale + (group * v.runs + i / v.run) * kGroupRows);
  }
  // Where the scale of k = i ends, at most at `last`.
  DI_INLINE int64_t run_end(const GroupsView& v, int64_t i, int64_t last) {
    if constexpr (kScaled<Element>) {
      const int64_t end = (i / v.run + 1) * v.run;
      return end < last ? end : last;
    } else {
      return last;
    }
  }
};

// y [N][64] of row groups [group, group + R); those above are not touched.
template <class Element, int N, int R>
static void float_tile(const GroupsView<Element>& w, int group, const float* x, int64_t x_stride, float* y) {
  using View = GroupsView<Element>;
  F32 f[N][R];
  DI_UNROLL for (int c = 0; c < N; ++c) DI_UNROLL for (int r = 0; r < R; ++r) f[c][r] = F32{};
  for (int64_t i = 0; i < w.k;) {
    F32 scale[R];
    if constexpr (kScaled<Element>) {
      DI_UNROLL for (int r = 0; r < R; ++r) scale[r] = View::scale_at(w, group + r, i);
    }
    const int64_t end = View::run_end(w, i, w.k);
    for (; i < end; i += kSteps<Element>) {
      DI_UNROLL for (int r = 0; r < R; ++r) {
        const auto* at = View::at(w, group + r, i);
        prefetch(at, 1);
        F32 v[kSteps<Element>];
        load_steps<Element>(at, v);
        DI_UNROLL for (int s = 0; s < kSteps<Element>; ++s) {
          if constexpr (kScaled<Element>) v[s] *= scale[r];
          DI_UNROLL for (int c = 0; c < N; ++c) f[c][r] = fma(v[s], splat(x[c * x_stride + i + s]), f[c][r]);
        }
      }
    }
  }
  DI_UNROLL for (int c = 0; c < N; ++c) DI_UNROLL for (int r = 0; r < R; ++r) {
    store(y + c * kFloatRows + r * kGroupRows, f[c][r]);
  }
}

template <class Element, int N>
static void few_columns(const GroupsView<Element>& w, int groups, const Columns& x, float* y) {
  if (groups == kFloatGroups) return float_tile<Element, N, kFloatGroups>(w, 0, x.x, x.x_stride, y);
  for (int r = 0; r < groups; ++r) float_tile<Element, N, 1>(w, r, x.x, x.x_stride, y + r * kGroupRows);
}

// k [first, first + count) of one row group as F32, into one of the places of [k][64].
template <class Element>
static void convert_piece(const GroupsView<Element>& w, int group, int64_t first, int count, float* piece) {
  using View = GroupsView<Element>;
  prefetch(View::at(w, group, first), count * kGroupRows * sizeof(typename Element::Type));
  const int64_t last = first + count;
  for (int64_t i = first; i < last;) {
    F32 scale{};
    if constexpr (kScaled<Element>) scale = View::scale_at(w, group, i);
    const int64_t end = View::run_end(w, i, last);
    for (; i < end; i += kSteps<Element>) {
      F32 v[kSteps<Element>];
      load_steps<Element>(View::at(w, group, i), v);
      DI_UNROLL for (int s = 0; s < kSteps<Element>; ++s) {
        if constexpr (kScaled<Element>) v[s] *= scale;
        store(piece + (i - first + s) * kFloatRows, v[s]);
      }
    }
  }
}

// y [n][64] for columns [column, column + n).
template <class Element>
static void many_columns(const GroupsView<Element>& w, int groups, const Columns& x, int64_t column, int n,
                         float* y) {
  alignas(64) float piece[kFloatPiece * kFloatRows];  // [k][64]
  std::memset(y, 0, sizeof(float) * n * kFloatRows);
  for (int64_t k = 0; k < x.k; k += kFloatPiece) {
    const int count = static_cast<int>(x.k - k < kFloatPiece ? x.k - k : kFloatPiece);
    for (int r = 0; r < groups; ++r) convert_piece(w, r, k, count, piece + r * kGroupRows);
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
    GroupsView<Element> w{weight + g * x.k * kGroupRows, x.k, nullptr, a.run, 0};
    if constexpr (kScaled<Element>) {
      w.runs = (x.k + a.run - 1) / a.run;
      w.scale = a.run_scale + g * w.runs * kGroupRows;
    }
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
