// How much of a GPU's memory becomes KV cache, and what to say when a model does not fit. Pure: numbers in,
// a plan or an Error (kMemory) out, whose remedies are values that would fit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "deepinfer/result.h"
#include "engine/measured_memory.h"

namespace deepinfer {

// The settings that decide it, and what messages call things.
struct MemoryRequest {
  double utilization = 0.9;           // gpu.gpu_memory_utilization, of the card's total memory
  int64_t kv_cache_memory_bytes = 0;  // 0: what the utilization leaves
  size_t headroom = 0;                // of the free memory, to be left alone
  bool auto_max_model_len = true;     // a shorter context is fine
  bool fp8_kv_possible = false;       // the KV cache is not fp8 yet, and could be
  // What a bfloat16 or float16 checkpoint could be quantized from; false: it is quantized.
  bool quantization_possible = false;
  std::string gpu = "GPU 0";  // "GPU 0 (NVIDIA GeForce RTX 4090)"
  std::string holders;        // who holds memory now: "python3 (pid 7) 3.1 GiB"; empty: unknown
};

// ceil(total x utilization).
size_t requested_bytes(size_t total, double utilization);

// Before anything is loaded: is there as much free memory as this process may use? Says who holds it. Not
// asked with kv_cache_memory_bytes, which replaces the utilization.
Result<void> check_free_memory(size_t free, size_t total, const MemoryRequest& request);

// Before weights of about so many bytes are copied.
Result<void> check_weights(size_t weights, size_t free, size_t total, const MemoryRequest& request);

// An allocation failed before there was anything to plan with: adds what takes less.
Error with_smaller_steps(Error error, int max_num_seqs, int max_num_batched_tokens,
                         const MemoryRequest& request);

// After the largest step ran.
Result<CachePlan> plan_cache(const MeasuredMemory& measured, const MemoryRequest& request);

}  // namespace deepinfer
