// What loading decides before it loads: types, bytes and the size of the KV cache, as functions of settings
// and shapes. `deepinfer estimate` asks them too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "deepinfer/config.h"
#include "deepinfer/result.h"
#include "device/gpu_info.h"
#include "device/tuning.h"
#include "engine/host_memory_plan.h"
#include "engine/memory_plan.h"
#include "model/checkpoint.h"

namespace deepinfer {

// On the CPU.
Result<DType> cpu_kv_dtype(const Config& config, const ModelConfig& model);
Result<void> check_cpu_block_size(int size);
// What the plan of a CPU's cache starts from (engine/host_memory_plan.h); the sizes of its blocks and the
// wanted length are the caller's to add.
HostMemory host_memory(const Config& config, const Checkpoint& checkpoint, int64_t memory_limit);

// On a GPU.
struct GpuTypes {
  DType activation = DType::kBF16;
  DType kv = DType::kBF16;
};
// auto: float16 for checkpoints that are in it, else bfloat16. kConfig.
Result<GpuTypes> gpu_types(const Config& config, const ModelConfig& model, const GpuTuning& tuning);
// Dense matrices are kept in the dtype of the activations, vectors in F32, quantized blocks as they are.
size_t gpu_weight_bytes(const Weights& weights);
size_t gpu_weight_bytes(const Weights& weights, const std::string& name, const RawTensor& tensor);
MemoryRequest gpu_memory_request(const Config& config, const GpuInfo& gpu, const GpuTuning& tuning,
                                 const Checkpoint& checkpoint, DType kv);
// What of a model or of the settings the CUDA backend does not take. kModel, kConfig.
Result<void> check_gpu_model(const ModelConfig& model);
Result<void> check_gpu_block_size(int size);

}  // namespace deepinfer
