// The paged KV cache: one pool of blocks of equal bytes, shared by groups of layers.
//
// A group is a set of layers with the same kind of attention and the same shapes; a sequence has one block
// table per group. A block holds `block_size` positions of every layer of its group. What the bytes of one
// (block, layer) mean is private to the backend that fills them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace deepinfer {

struct KvGroupSpec {
  enum class Kind : uint8_t { kFull, kWindow } kind = Kind::kFull;
  int window = 0;  // positions that are looked back on, for kWindow
  int num_layers = 0;
  int kv_heads = 0;  // of this rank
  int head_dim_k = 0;
  int head_dim_v = 0;
  DType dtype = DType::kF16;
};

// Bytes of one position of one head. I8 has a scale (BF16) for each; the scales of the other types belong to
// layers (KvLayer).
size_t kv_row_bytes(DType dtype, int head_dim);

// What a layer's operations need.
struct KvLayer {
  std::byte* base = nullptr;  // of the pool
  size_t block_stride = 0;    // bytes from block b to b + 1
  size_t offset = 0;          // bytes from a block's start to this layer's part: K first, then V
  int group = 0;              // index into StepBatch::block_table
  int block_size = 16;
  KvGroupSpec spec;
  float k_scale = 1, v_scale = 1;  // F8_E4M3: what a stored value is multiplied with

  size_t k_bytes() const;  // of one block of this layer
  size_t v_bytes() const;
  std::byte* k(int32_t block) const { return base + block_stride * block + offset; }
  std::byte* v(int32_t block) const { return k(block) + k_bytes(); }
};

class KvCache {
 public:
  // The memory is the caller's: num_blocks x block_bytes(groups, block_size), aligned to 64 bytes.
  KvCache(std::vector<KvGroupSpec> groups, int block_size, int64_t num_blocks, std::byte* memory,
          Device device);

  static size_t block_bytes(const std::vector<KvGroupSpec>& groups, int block_size);

  KvLayer layer(int group, int index_in_group) const;
  const std::vector<KvGroupSpec>& groups() const { return groups_; }
  int block_size() const { return block_size_; }
  int64_t num_blocks() const { return num_blocks_; }

 private:
  std::vector<KvGroupSpec> groups_;
  int block_size_;
  int64_t num_blocks_;
  size_t block_bytes_;
  std::byte* memory_;
};

}  // namespace deepinfer
