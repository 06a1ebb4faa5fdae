// Paged attention on device pointers: what the own kernel and the fast paths have in common.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/device_batch.h"
#include "tensor/dtype.h"

namespace deepinfer::cuda {

class Gpu;

// Token t of row b attends to positions [max(0, p - window + 1), p] of its row, p = position[t]. Query head h
// reads KV head h / (heads / kv_heads). Scores are q.k * scale, then soft_cap * tanh(score / soft_cap) if
// set.
//
// One (block, layer) part of the cache holds K [kv_heads, block_size, dim_k], then V [kv_heads, block_size,
// dim_v]: every head's tile is contiguous. Block i of the layer stands at k + i * block_stride.
struct PagedAttention {
  int32_t rows = 0, tokens = 0;
  int32_t heads = 0, kv_heads = 0;
  int32_t dim_k = 0, dim_v = 0;
  int32_t block_size = 16;  // a power of two, 16 to 128
  int32_t window = 0;       // 0: all
  float scale = 1, soft_cap = 0;
  DType activation = DType::kBF16;  // of q and out: kBF16, kF16
  DType kv_dtype = DType::kBF16;    // as activation, or kF8E4M3
  float k_scale = 1, v_scale = 1;   // of kF8E4M3

  const void* q = nullptr;  // [tokens, heads, dim_k]
  void* out = nullptr;      // [tokens, heads, dim_v]; zeros for tokens of position -1
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  size_t block_stride = 0;              // bytes
  const DeviceBatch* batch = nullptr;   // on the host; its arrays on the device
  const int32_t* row_blocks = nullptr;  // of this layer's group: [rows][batch->max_blocks]
};

// The own kernels: every shape that PagedAttention allows with head dimensions of 16 to 256 that are
// multiples of 8. Split over the context where there are few rows; `scratch` holds partial results.
size_t attention_scratch_bytes(const Gpu& gpu, const PagedAttention& a);
struct AttentionRows {  // what is left to do
  bool decode = true, prefill = true;
};
void attention_plain(Gpu& gpu, const PagedAttention& a, void* scratch, AttentionRows rows = {});

}  // namespace deepinfer::cuda
