// How much of the host's memory becomes KV cache on a CPU, and what to say when a model does not fit. Pure:
// numbers in, a plan or an Error (kMemory) out, whose remedies are values that would fit.
#pragma once

#include <cstdint>
#include <string>

#include "deepinfer/result.h"
#include "engine/measured_memory.h"

namespace deepinfer {

struct HostMemory {
  int64_t limit = 0;               // that this process may use (base/limits.h)
  int64_t weights = 0;             // bytes, as loaded
  int weight_bits = 0;             // 16 or 32: of plain weights, which could be quantized; 0: they are
  int64_t given = 0;               // gpu.kv_cache_memory_bytes; 0: derived
  int block_size = 16;             // tokens
  int64_t block_bytes = 0;         // of the KV cache
  int64_t int8_block_bytes = 0;    // with gpu.kv_cache_dtype int8; 0: it is of 8 bits already
  int max_model_len = 0;           // wanted
  bool auto_max_model_len = true;  // a shorter context is fine
};

// `model`: what messages call it.
Result<void> check_host_weights(const HostMemory& m, const std::string& model);

// The pool: what was given, else min(0.4 x limit, max(512 MiB, one context)), and no more than the weights
// leave.
Result<CachePlan> plan_host_cache(const HostMemory& m);

}  // namespace deepinfer
