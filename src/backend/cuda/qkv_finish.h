// What becomes of the product of a layer's q, k and v weights, as kernels take it, by value: the end of a
// skinny product (skinny.cuh), or a kernel behind any other one (qkv.cu).
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace deepinfer::cuda {

class Gpu;

struct HeadNorm {
  const float* weight = nullptr;  // [dim], or null: no norm
  float eps = 0;
};

// Dimensions of heads are multiples of 8.
struct QkvFinish {
  const float* product = nullptr;  // [tokens, rows], without the bias
  int64_t rows = 0;
  int first_token = 0;          // of the step: the product begins there
  const float* bias = nullptr;  // [rows], or null
  int32_t* arrived = nullptr;   // [heads + 2 kv_heads], zeros between launches: rows of a head that are done
  int heads = 0, kv_heads = 0, dim_k = 0, dim_v = 0;
  int lanes_shift = 0;  // 2^lanes_shift threads have a head, 8 columns each
  HeadNorm q_norm, k_norm;
  const float* rope = nullptr;  // [T, rope_stride]: cos [rotary / 2], sin; or null
  int64_t rope_stride = 0;
  int rotary = 0;
  bool interleaved = false;
  bool rope_by_8 =
      false;  // eight columns lie on one side of `rotary`, with 16-byte aligned partners and angles

  void* q = nullptr;  // [T, heads * dim_k]
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  size_t block_stride = 0;
  int block_shift = 4;
  bool fp8 = false;
  float k_scale = 1, v_scale = 1;

  const int32_t* position = nullptr;
  const int32_t* token_row = nullptr;
  const int32_t* row_blocks = nullptr;
  int32_t max_blocks = 0;
};

// The kernel of its own. At most 65,535 tokens.
void finish_qkv(Gpu& gpu, DType a, const QkvFinish& finish, int64_t tokens);

}  // namespace deepinfer::cuda
