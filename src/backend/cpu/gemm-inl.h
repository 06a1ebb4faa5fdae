// c += a b in F32, all row-major: the inner loop of attention and of float weights.
//
// Every element of c is one chain over k, continued where an earlier call left it: how rows, columns and k
// are cut changes no bit.
#pragma once

#include "backend/cpu/simd-inl.h"

namespace deepinfer::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileVectors = 4;
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kTileVectors = 1;
#else
constexpr int kTileRows = 2, kTileVectors = 1;
#endif

// c [M][16 V] += a [M][k] * b, each element one chain over k. b[v] is [k][16] of V places, rows ldb apart;
// its elements become F32 on their way.
template <class Element, int M, int V>
DI_INLINE void tile_accumulate(int k, const float* a, int64_t lda,
                               const typename Element::Type* const (&b)[V], int64_t ldb, float* c,
                               int64_t ldc) {
  F32 f[M][V];
  DI_UNROLL for (int m = 0; m < M; ++m) DI_UNROLL for (int v = 0; v < V; ++v) {
    f[m][v] = load(c + m * ldc + v * kLanes);
  }
  for (int i = 0; i < k; ++i) {
    F32 row[V];
    DI_UNROLL for (int v = 0; v < V; ++v) row[v] = Element::load16(b[v] + i * ldb);
    DI_UNROLL for (int m = 0; m < M; ++m) {
      const F32 x = splat(a[m * lda + i]);
      DI_UNROLL for (int v = 0; v < V; ++v) f[m][v] = fma(row[v], x, f[m][v]);
    }
  }
  DI_UNROLL for (int m = 0; m < M; ++m) DI_UNROLL for (int v = 0; v < V; ++v) {
    store(c + m * ldc + v * kLanes, f[m][v]);
  }
}

// V places side by side.
template <class Element, int M, int V>
DI_INLINE void tile_accumulate(int k, const float* a, int64_t lda, const typename Element::Type* b,
                               int64_t ldb, float* c, int64_t ldc) {
  const typename Element::Type* places[V];
  DI_UNROLL for (int v = 0; v < V; ++v) places[v] = b + v * kLanes;
  tile_accumulate<Element, M, V>(k, a, lda, places, ldb, c, ldc);
}

template <int M>
static void rows_accumulate(int64_t n, int k, const float* a, int64_t lda, const float* b, int64_t ldb,
                            float* c, int64_t ldc) {
  int64_t i = 0;
  for (; i + kTileVectors * kLanes <= n; i += kTileVectors * kLanes)
    tile_accumulate<ElementF32, M, kTileVectors>(k, a, lda, b + i, ldb, c + i, ldc);
  for (; i < n; i += kLanes) tile_accumulate<ElementF32, M, 1>(k, a, lda, b + i, ldb, c + i, ldc);
}

// The same for any number of rows; n is a multiple of 16.
static void accumulate(int rows, int64_t n, int k, const float* a, int64_t lda, const float* b, int64_t ldb,
                       float* c, int64_t ldc) {
  int m = 0;
  for (; m + kTileRows <= rows; m += kTileRows)
    rows_accumulate<kTileRows>(n, k, a + m * lda, lda, b, ldb, c + m * ldc, ldc);
  a += m * lda;
  c += m * ldc;
  switch (rows - m) {
    case 5:
      if constexpr (kTileRows > 5) rows_accumulate<5>(n, k, a, lda, b, ldb, c, ldc);
      break;
    case 4:
      if constexpr (kTileRows > 4) rows_accumulate<4>(n, k, a, lda, b, ldb, c, ldc);
      break;
    case 3:
      if constexpr (kTileRows > 3) rows_accumulate<3>(n, k, a, lda, b, ldb, c, ldc);
      break;
    case 2:
      if constexpr (kTileRows > 2) rows_accumulate<2>(n, k, a, lda, b, ldb, c, ldc);
      break;
    case 1:
      rows_accumulate<1>(n, k, a, lda, b, ldb, c, ldc);
      break;
    default:
      break;
  }
}

}  // namespace
}  // namespace deepinfer::cpu
