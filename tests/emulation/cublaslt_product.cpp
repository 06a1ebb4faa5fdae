// The loops of the cuBLASLt stand-in, compiled without sanitizers: extents were checked before.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "emulation/cublaslt.h"

namespace deepinfer::emulation {
namespace {

size_t offset(const MatrixLayout& l, int64_t row, int64_t col) {
  return static_cast<size_t>(l.order == CUBLASLT_ORDER_COL ? col * l.ld + row : row * l.ld + col);
}

template <class T>
float load_as(const void* p, size_t i) {
  T value;
  std::memcpy(&value, static_cast<const T*>(p) + i, sizeof value);
  return static_cast<float>(value);
}

float load(const void* p, size_t i, cudaDataType_t type) {
  switch (type) {
    case CUDA_R_16BF:
      return load_as<__nv_bfloat16>(p, i);
    case CUDA_R_16F:
      return load_as<__half>(p, i);
    case CUDA_R_8F_E4M3:
      return load_as<__nv_fp8_e4m3>(p, i);
    default:
      return load_as<float>(p, i);
  }
}

template <class T>
void store_as(void* p, size_t i, float value) {
  const T t = static_cast<T>(value);
  std::memcpy(static_cast<T*>(p) + i, &t, sizeof t);
}

void store(void* p, size_t i, cudaDataType_t type, float value) {
  switch (type) {
    case CUDA_R_16BF:
      return store_as<__nv_bfloat16>(p, i, value);
    case CUDA_R_16F:
      return store_as<__half>(p, i, value);
    case CUDA_R_8F_E4M3:
      return store_as<__nv_fp8_e4m3>(p, i, value);
    default:
      return store_as<float>(p, i, value);
  }
}

// op(matrix) as [outer][k]; `outer_is_row`: the outer index is the row of op(matrix).
std::vector<float> unpack(const void* p, const MatrixLayout& l, bool transposed, bool outer_is_row) {
  const bool row_of_matrix = transposed != outer_is_row;
  const int64_t outer = row_of_matrix ? l.rows : l.cols, k = row_of_matrix ? l.cols : l.rows;
  std::vector<float> values(static_cast<size_t>(outer * k));
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t i = 0; i < k; ++i)
      values[static_cast<size_t>(o * k + i)] =
          load(p, row_of_matrix ? offset(l, o, i) : offset(l, i, o), l.type);
  return values;
}

float dot(const float* a, const float* b, int64_t k, bool backwards) {
  float sum = 0;
  if (backwards)
    for (int64_t i = k; i-- > 0;) sum += a[i] * b[i];
  else
    for (int64_t i = 0; i < k; ++i) sum += a[i] * b[i];
  return sum;
}

// The sum with the factors of A's row and B's column.
float scaled_dot(const MatrixProduct& p, const float* a, const float* b, int64_t k, int64_t row,
                 int64_t col) {
  const bool vector = p.scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
  if (p.scale_mode != CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F) {
    float factor = 1;
    if (p.a_scale) factor *= p.a_scale[vector ? row : 0];
    if (p.b_scale) factor *= p.b_scale[vector ? col : 0];
    return factor * dot(a, b, k, p.backwards);
  }
  float sum = 0;
  for (int64_t first = 0; first < k; first += 128) {
    const float factor =
        p.a_scale[first / 128 * p.d_layout.rows + row] * p.b_scale[first / 128 * p.d_layout.cols + col];
    sum += factor * dot(a + first, b + first, std::min<int64_t>(128, k - first), p.backwards);
  }
  return sum;
}

}  // namespace

size_t element_bytes(cudaDataType_t type) {
  switch (type) {
    case CUDA_R_16BF:
    case CUDA_R_16F:
      return 2;
    case CUDA_R_8F_E4M3:
      return 1;
    case CUDA_R_32F:
      return 4;
    default:
      return 0;
  }
}

size_t extent(const MatrixLayout& l) {
  return l.rows && l.cols ? (offset(l, l.rows - 1, l.cols - 1) + 1) * element_bytes(l.type) : 0;
}

void multiply(const MatrixProduct& p) {
  const std::vector<float> a = unpack(p.a, p.a_layout, p.a_transposed, true);
  const std::vector<float> b = unpack(p.b, p.b_layout, p.b_transposed, false);
  const int64_t k = p.a_transposed ? p.a_layout.rows : p.a_layout.cols;
  for (int64_t col = 0; col < p.d_layout.cols; ++col)
    for (int64_t row = 0; row < p.d_layout.rows; ++row) {
      float value = p.alpha * scaled_dot(p, &a[static_cast<size_t>(row * k)],
                                         &b[static_cast<size_t>(col * k)], k, row, col);
      if (p.beta != 0) value += p.beta * load(p.c, offset(p.c_layout, row, col), p.c_layout.type);
      if (p.bias) value += load(p.bias, static_cast<size_t>(row), p.bias_type);
      if (p.d_scale) value *= *p.d_scale;
      store(p.d, offset(p.d_layout, row, col), p.d_layout.type, value);
    }
}

}  // namespace deepinfer::emulation
