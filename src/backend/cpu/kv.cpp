// The cache's bytes on the CPU. K of a block: [kv_head][dim_k][16 positions], so that lanes are keys and a
// score needs no sum across lanes; V: [kv_head][16 positions][dim_v].
#include "backend/cpu/kv.h"

#include <cstring>

#include "backend/cpu.h"
#include "backend/cpu/kernels.h"
#include "base/check.h"

namespace deepinfer::cpu {

void check_kv(const KvLayer& kv) {
  const DType d = kv.spec.dtype;
  DI_CHECK(kv.block_size == kKvBlock, "KV block size: got {}, the CPU's is {}", kv.block_size, kKvBlock);
  DI_CHECK(d == DType::kF16 || d == DType::kF32 || d == DType::kBF16,
           "KV dtype: got {}, the CPU has F16, BF16 and F32", info(d).name);
  DI_CHECK(kv.spec.kv_heads > 0 && kv.spec.head_dim_k > 0 && kv.spec.head_dim_v > 0,
           "KV shape: {} heads of {} and {}", kv.spec.kv_heads, kv.spec.head_dim_k, kv.spec.head_dim_v);
}

size_t k_head_bytes(const KvLayer& kv) {
  return static_cast<size_t>(kKvBlock) * kv.spec.head_dim_k * info(kv.spec.dtype).block_bytes;
}

size_t v_head_bytes(const KvLayer& kv) {
  return static_cast<size_t>(kKvBlock) * kv.spec.head_dim_v * info(kv.spec.dtype).block_bytes;
}

void copy_blocks(Context&, const KvCache& cache, std::span<const BlockCopy> copies) {
  const size_t bytes = KvCache::block_bytes(cache.groups(), cache.block_size());
  std::byte* const base = cache.layer(0, 0).base;
  for (const BlockCopy& c : copies) {
    DI_CHECK(c.src >= 0 && c.src < cache.num_blocks() && c.dst >= 0 && c.dst < cache.num_blocks(),
             "copy of block {} to {}, the cache has {}", c.src, c.dst, cache.num_blocks());
    if (c.src != c.dst) std::memcpy(base + bytes * c.dst, base + bytes * c.src, bytes);
  }
}

}  // namespace deepinfer::cpu
