// What the phases share about the cache's bytes (kv.cpp says what they mean).
#pragma once

#include <cstddef>

#include "tensor/kv_cache.h"

namespace deepinfer::cpu {

// Throws InternalError unless the CPU's kernels can read and write this layer.
void check_kv(const KvLayer& kv);

// Bytes of one head in a block.
size_t k_head_bytes(const KvLayer& kv);
size_t v_head_bytes(const KvLayer& kv);

// The layer's scale where its dtype has one, else 1.
float k_scale(const KvLayer& kv);
float v_scale(const KvLayer& kv);

}  // namespace deepinfer::cpu
