#include "tensor/kv_cache.h"

#include <algorithm>

#include "base/check.h"

namespace deepinfer {

size_t kv_row_bytes(DType dtype, int head_dim) {
  return static_cast<size_t>(row_bytes(dtype, head_dim)) + (dtype == DType::kI8 ? sizeof(uint16_t) : 0);
}

namespace {

size_t part_bytes(const KvGroupSpec& g, int block_size, int head_dim) {
  return static_cast<size_t>(g.kv_heads) * block_size * kv_row_bytes(g.dtype, head_dim);
}

size_t layer_bytes(const KvGroupSpec& g, int block_size) {
  return part_bytes(g, block_size, g.head_dim_k) + part_bytes(g, block_size, g.head_dim_v);
}

}  // namespace

size_t KvLayer::k_bytes() const {
  return part_bytes(spec, block_size, spec.head_dim_k);
}
size_t KvLayer::v_bytes() const {
  return part_bytes(spec, block_size, spec.head_dim_v);
}

KvCache::KvCache(std::vector<KvGroupSpec> groups, int block_size, int64_t num_blocks, std::byte* memory,
                 Device)
    : groups_(std::move(groups)),
      block_size_(block_size),
      num_blocks_(num_blocks),
      block_bytes_(block_bytes(groups_, block_size)),
      memory_(memory) {}

// Blocks of all groups come from one pool, so the largest group sets their size.
size_t KvCache::block_bytes(const std::vector<KvGroupSpec>& groups, int block_size) {
  size_t bytes = 0;
  for (const KvGroupSpec& g : groups) bytes = std::max(bytes, g.num_layers * layer_bytes(g, block_size));
  return (bytes + 63) / 64 * 64;
}

KvLayer KvCache::layer(int group, int index_in_group) const {
  DI_CHECK(group >= 0 && group < static_cast<int>(groups_.size()), "KV group {} of {}", group,
           groups_.size());
  const KvGroupSpec& g = groups_[group];
  DI_CHECK(index_in_group >= 0 && index_in_group < g.num_layers, "layer {} of {} in KV group {}",
           index_in_group, g.num_layers, group);
  return KvLayer{.base = memory_,
                 .block_stride = block_bytes_,
                 .offset = index_in_group * layer_bytes(g, block_size_),
                 .group = group,
                 .block_size = block_size_,
                 .spec = g};
}

}  // namespace deepinfer
