// Products of F32 matrices on the CPU, for quantization alone: inference has its own kernels (backend/cpu).
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace deepinfer::quantize {

// A matrix somebody else owns; element (i, j) stands at data[i * row_stride + j * col_stride].
struct MatrixView {
  const float* data = nullptr;
  int64_t rows = 0, cols = 0;
  int64_t row_stride = 0, col_stride = 1;

  MatrixView transposed() const { return {data, cols, rows, col_stride, row_stride}; }
  MatrixView block(int64_t row, int64_t col, int64_t n_rows, int64_t n_cols) const {
    return {data + row * row_stride + col * col_stride, n_rows, n_cols, row_stride, col_stride};
  }
};

inline MatrixView row_major(const float* data, int64_t rows, int64_t cols) {
  return {data, rows, cols, cols, 1};
}

// c[i, j] (+)= sum over k of a[i, k] * b[k, j]; c is row-major with c_stride between rows and is neither a
// nor b. Each element's terms are added in an order that depends on the shape alone, whatever the threads.
struct Product {
  MatrixView a, b;
  float* c = nullptr;
  int64_t c_stride = 0;
  bool add = false;         // to what stands in c
  bool negate = false;      // the product
  bool upper_only = false;  // tiles that lie below the diagonal altogether are left as they are
};

void multiply(const Product& product);                    // on this thread
void multiply(ThreadPool& pool, const Product& product);  // by tiles on all of the pool's threads

}  // namespace deepinfer::quantize
