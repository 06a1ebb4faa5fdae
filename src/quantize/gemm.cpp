#include "quantize/gemm.h"

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace deepinfer::quantize {
namespace {

// Tiles after Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): a panel of b
// [kDepth, kWide] stays in the second cache, a block of a [kTall, kDepth] in the first and second.
constexpr int64_t kDepth = 256, kTall = 96, kWide = 576;
constexpr int64_t kTileRows = 288;  // what a thread takes at a time, with kWide columns

// a: [depth][Rows], b: [depth][Vectors vectors], out: [Rows][Vectors vectors].
template <class V, int Rows, int Vectors>
[[gnu::always_inline]] inline void micro_tile(int64_t depth, const float* a, const float* b, float* out) {
  constexpr int64_t kLanes = sizeof(V) / sizeof(float);
  V sums[Rows][Vectors];
#pragma clang loop unroll(full)
  for (int i = 0; i < Rows; ++i)
#pragma clang loop unroll(full)
    for (int v = 0; v < Vectors; ++v) sums[i][v] = V{};
  for (int64_t k = 0; k < depth; ++k) {
    V columns[Vectors];
    __builtin_memcpy(columns, b + k * Vectors * kLanes, sizeof columns);
#pragma clang loop unroll(full)
    for (int i = 0; i < Rows; ++i) {
      const V x = V{} + a[k * Rows + i];
#pragma clang loop unroll(full)
      for (int v = 0; v < Vectors; ++v) sums[i][v] = x * columns[v] + sums[i][v];
    }
  }
  __builtin_memcpy(out, sums, sizeof sums);
}

using V4 = float __attribute__((vector_size(16)));
using V8 = float __attribute__((vector_size(32)));
using V16 = float __attribute__((vector_size(64)));

struct Kernel {
  int64_t rows, cols;  // of the micro tile
  void (*run)(int64_t depth, const float* a, const float* b, float* out);
};

void run_portable(int64_t depth, const float* a, const float* b, float* out) {
  micro_tile<V4, 4, 2>(depth, a, b, out);
}
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void run_avx2(int64_t depth, const float* a, const float* b, float* out) {
  micro_tile<V8, 6, 2>(depth, a, b, out);
}
__attribute__((target("avx512f"))) void run_avx512(int64_t depth, const float* a, const float* b,
                                                   float* out) {
  micro_tile<V16, 12, 2>(depth, a, b, out);
}
#endif

Kernel kernel() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return {12, 32, run_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {6, 16, run_avx2};
#endif
  return {4, 8, run_portable};
}
constexpr int64_t kMostRows = 12, kMostCols = 32;

// Strips of `width` rows of m, zeros after the last row: out[strip][column][row in the strip].
void pack(const MatrixView& m, int64_t width, float sign, float* out) {
  for (int64_t first = 0; first < m.rows; first += width, out += width * m.cols) {
    const int64_t rows = std::min(width, m.rows - first);
    if (rows < width) std::fill_n(out, width * m.cols, 0.0f);
    const float* from = m.data + first * m.row_stride;
    if (m.row_stride == 1) {
      for (int64_t k = 0; k < m.cols; ++k)
        for (int64_t i = 0; i < rows; ++i) out[k * width + i] = sign * from[k * m.col_stride + i];
    } else {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = 0; k < m.cols; ++k)
          out[k * width + i] = sign * from[i * m.row_stride + k * m.col_stride];
    }
  }
}

// c [rows, cols] gets the micro tile's valid part.
void store(const float* tile, int64_t tile_cols, int64_t rows, int64_t cols, float* c, int64_t stride,
           bool add) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j)
      c[i * stride + j] = add ? c[i * stride + j] + tile[i * tile_cols + j] : tile[i * tile_cols + j];
}

struct Panels {
  std::vector<float> a, b;
};

// One block of a with one panel of b, both packed.
void block_product(const Kernel& kernel, const Panels& panels, int64_t depth, int64_t rows, int64_t cols,
                   const Product& p) {
  alignas(64) float tile[kMostRows * kMostCols];
  for (int64_t j = 0; j < cols; j += kernel.cols)
    for (int64_t i = 0; i < rows; i += kernel.rows) {
      kernel.run(depth, panels.a.data() + i * depth, panels.b.data() + j * depth, tile);
      store(tile, kernel.cols, std::min(kernel.rows, rows - i), std::min(kernel.cols, cols - j),
            p.c + i * p.c_stride + j, p.c_stride, p.add);
    }
}

void multiply_tile(const Product& p, Panels& panels) {
  const Kernel k = kernel();
  const int64_t M = p.a.rows, N = p.b.cols, K = p.a.cols;
  panels.a.resize((kTall + k.rows) * kDepth);
  panels.b.resize((kWide + k.cols) * kDepth);
  for (int64_t n = 0; n < N; n += kWide) {
    const int64_t cols = std::min(kWide, N - n);
    for (int64_t d = 0; d < K; d += kDepth) {
      const int64_t depth = std::min(kDepth, K - d);
      pack(p.b.block(d, n, depth, cols).transposed(), k.cols, 1.0f, panels.b.data());
      for (int64_t m = 0; m < M; m += kTall) {
        const int64_t rows = std::min(kTall, M - m);
        pack(p.a.block(m, d, rows, depth), k.rows, p.negate ? -1.0f : 1.0f, panels.a.data());
        Product here = p;
        here.c = p.c + m * p.c_stride + n;
        here.add = p.add || d > 0;
        block_product(k, panels, depth, rows, cols, here);
      }
    }
  }
}

void check(const Product& p) {
  DI_CHECK(p.a.cols == p.b.rows && p.a.cols > 0 && p.c_stride >= p.b.cols, "a [{}, {}], b [{}, {}], c {}",
           p.a.rows, p.a.cols, p.b.rows, p.b.cols, p.c_stride);
}

}  // namespace

void multiply(const Product& product) {
  check(product);
  Panels panels;
  multiply_tile(product, panels);
}

void multiply(ThreadPool& pool, const Product& product) {
  check(product);
  const int64_t M = product.a.rows, N = product.b.cols, K = product.a.cols;
  const int64_t down = (M + kTileRows - 1) / kTileRows, across = (N + kWide - 1) / kWide;
  pool.run([&](int thread) {
    Panels panels;
    for (int64_t i = thread; i < down * across; i += pool.size()) {
      const int64_t row = i / across * kTileRows, col = i % across * kWide;
      const int64_t rows = std::min(kTileRows, M - row), cols = std::min(kWide, N - col);
      if (product.upper_only && col + cols <= row) continue;
      Product tile = product;
      tile.a = product.a.block(row, 0, rows, K);
      tile.b = product.b.block(0, col, K, cols);
      tile.c = product.c + row * product.c_stride + col;
      multiply_tile(tile, panels);
    }
  });
}

}  // namespace deepinfer::quantize
