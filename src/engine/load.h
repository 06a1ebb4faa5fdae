// The parts of Llm::load that differ between devices.
#pragma once

#include <memory>
#include <string>

#include "backend/cuda_gpu.h"
#include "deepinfer/config.h"
#include "deepinfer/engine.h"
#include "deepinfer/result.h"
#include "device/select.h"
#include "engine/load_summary.h"
#include "engine/model_runner.h"
#include "model/checkpoint.h"

namespace deepinfer {

struct LoadedRunner {
  std::unique_ptr<ModelRunner> runner;
  std::string kernels;  // what besides build, weights and settings decides bits: dtypes, the card
  LoadSummary summary;
  bool on_gpu = false;
};

// Weights packed, KV cache sized.
// `profiler` outlives the runner.
Result<LoadedRunner> load_on_cpu(const Config& config, const Checkpoint& checkpoint, Profiler* profiler);
Result<LoadedRunner> load_on_gpu(const Config& config, const Checkpoint& checkpoint,
                                 std::unique_ptr<cuda::Gpu> gpu, const GpuInfo& info, Profiler* profiler);

// The same on gpu.tensor_parallel_size GPUs, `gpu` and those behind it. kConfig, kMemory, kUnavailable
// (NCCL).
Result<LoadedRunner> load_on_gpus(const Config& config, const Checkpoint& checkpoint,
                                  std::unique_ptr<cuda::Gpu> gpu, const DeviceChoice& choice,
                                  Profiler* profiler);

// What of a checkpoint is in a fingerprint, and what besides decides bits.
std::string fingerprint_of(const Checkpoint& checkpoint, const std::string& kernels);

// On the device that gpu.device means, for those who make engines of their own (tune/): kConfig, kModel,
// kMemory. model.quantization is noted in the checkpoint, which can be loaded again.
Result<LoadedRunner> load_runner(const Config& config, Checkpoint& checkpoint);
EngineOptions engine_options(const Config& config, const Checkpoint& checkpoint);

// The context length that is wanted: the setting, else what the model was made for. kConfig.
Result<int> wanted_model_len(const Config& config, const ModelConfig& model);

// gpu.kv_cache_dtype, where auto becomes fp8 when the checkpoint was made for such a cache. kConfig when it
// was made for one that there is not.
Result<std::string> wanted_kv_dtype(const Config& config, const ModelConfig& model);

}  // namespace deepinfer
