// What the two files of the cuBLASLt stand-in share.
#pragma once

#include <cublasLt.h>

#include <cstdint>

namespace deepinfer::emulation {

struct MatrixLayout {
  cudaDataType_t type = CUDA_R_32F;
  int64_t rows = 0, cols = 0, ld = 0;
  cublasLtOrder_t order = CUBLASLT_ORDER_COL;
  int32_t batch = 1;
};

// D [m, n] = alpha * op(A) op(B) + beta * C, then the bias of each row.
struct MatrixProduct {
  const void *a = nullptr, *b = nullptr, *c = nullptr;
  void* d = nullptr;
  MatrixLayout a_layout, b_layout, c_layout, d_layout;
  bool a_transposed = false, b_transposed = false;
  float alpha = 1, beta = 0;
  // Device pointers or null, read when the product runs: one factor, one for each row of D (A) or column (B),
  // or [k / 128] times as many, one for 128 elements of each.
  const float *a_scale = nullptr, *b_scale = nullptr, *d_scale = nullptr;
  int32_t scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;  // of A and B
  const void* bias = nullptr;                                    // [m]
  cudaDataType_t bias_type = CUDA_R_32F;
  bool backwards = false;  // another order of the sum, as another algorithm has
};

size_t element_bytes(cudaDataType_t type);  // 0: none that the stand-in knows
// Bytes from the first element to behind the last one.
size_t extent(const MatrixLayout& layout);
// Plain loops; sums in F32 as tensor cores keep them.
void multiply(const MatrixProduct& product);

}  // namespace deepinfer::emulation
