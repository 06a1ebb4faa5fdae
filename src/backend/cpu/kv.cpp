// The cache's bytes on the CPU. K of a block: [kv_head][dim_k][16 positions], so that lanes are keys and a
// score needs no sum across lanes; V: [kv_head][16 positions][dim_v]. I8: behind each head its scales in
// BF16, [16 positions].
#include "backend/cpu/kv.h"

#include <cmath>
#include <cstring>

#include "backend/cpu.h"
#include "backend/cpu/kernels.h"
#include "base/check.h"

namespace deepinfer::cpu {

void check_kv(const KvLayer& kv) {
  const DType d = kv.spec.dtype;
  DI_CHECK(kv.block_size == kKvBlock, "KV block size: got {}, the CPU's is {}", kv.block_size, kKvBlock);
  DI_CHECK(
      d == DType::kF16 || d == DType::kF32 || d == DType::kBF16 || d == DType::kI8 || d == DType::kF8E4M3,
      "KV dtype: got {}, the CPU has F16, BF16, F32, I8 and F8_E4M3", info(d).name);
  DI_CHECK(kv.k_scale > 0 && kv.v_scale > 0 && std::isfinite(kv.k_scale) && std::isfinite(kv.v_scale),
           "KV scales: got {} and {}", kv.k_scale, kv.v_scale);
  DI_CHECK(kv.spec.kv_heads > 0 && kv.spec.head_dim_k > 0 && kv.spec.head_dim_v > 0,
           "KV shape: {} heads of {} and {}", kv.spec.kv_heads, kv.spec.head_dim_k, kv.spec.head_dim_v);
}

size_t k_head_bytes(const KvLayer& kv) {
  return kKvBlock * kv_row_bytes(kv.spec.dtype, kv.spec.head_dim_k);
}

size_t v_head_bytes(const KvLayer& kv) {
  return kKvBlock * kv_row_bytes(kv.spec.dtype, kv.spec.head_dim_v);
}

float k_scale(const KvLayer& kv) {
  return kv.spec.dtype == DType::kF8E4M3 ? kv.k_scale : 1.0f;
}

float v_scale(const KvLayer& kv) {
  return kv.spec.dtype == DType::kF8E4M3 ? kv.v_scale : 1.0f;
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
