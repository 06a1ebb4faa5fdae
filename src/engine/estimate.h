// What fits on a device before anything is loaded: the plan that loading would make (engine/load_plan.h,
// engine/memory_plan.h), fed with what a checkpoint's header or config.json says. On the CPU it is the plan
// itself; on a GPU, where loading measures, buffers, steps and graphs are predicted.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "deepinfer/config.h"
#include "deepinfer/result.h"
#include "device/gpu_info.h"
#include "model/checkpoint.h"

namespace deepinfer {

// Where the model would run.
struct EstimateTarget {
  std::optional<GpuInfo>
      gpu;                   // name, total_bytes, capability; id -1: no card of this machine. Unset: the CPU
  int count = 1;             // GPUs that share every layer (tensor parallelism)
  int stages = 1;            // groups of so many GPUs, each with some of the layers (a pipeline)
  int64_t memory_bytes = 0;  // the CPU's memory limit
};

struct Estimate {
  std::string device;  // "NVIDIA GeForce RTX 5090", "CPU"
  int count = 1, stages = 1;
  int64_t total_bytes = 0;   // of one GPU, or the memory limit
  int64_t usable_bytes = 0;  // that the settings let this process take
  int64_t weight_bytes = 0;  // of one device: the one that holds most
  std::string weights;       // "bfloat16", "AWQ 4-bit, groups of 128"
  int64_t buffer_bytes = 0;  // GPU: buffers, the largest step, CUDA graphs, the driver's own: predicted
  std::string kv_dtype;
  int64_t kv_token_bytes = 0;  // of one device
  int64_t kv_bytes = 0;        // of the whole pool; 0 when it does not fit
  int64_t kv_blocks = 0;
  int block_size = 16;
  int max_num_seqs = 0;
  int model_context = 0;                           // that the model was made for
  int max_model_len = 0;                           // that serve would offer
  std::vector<std::pair<int, int64_t>> sequences;  // at a context: how many at the same time
  std::string problem;                             // why it does not fit, and what would; empty: it fits
  std::vector<std::string> remedies;  // values and cards that were tried and fit, when it does not

  bool fits() const { return problem.empty(); }
  int64_t tokens() const { return kv_blocks * block_size; }
};

// kConfig, kModel: settings or a model that cannot be run there at all. What does not fit is no error here.
Result<Estimate> estimate(const Config& config, const Checkpoint& checkpoint, const EstimateTarget& target);

// Whether so many GPUs can share every layer of a model: kConfig when its heads cannot be dealt evenly.
Result<void> check_gpu_ranks(const ModelConfig& model, int ranks);

// The settings that a process on another card would have.
using ConfigFor = std::function<Config(const GpuInfo& gpu)>;

// The same, and when it does not fit: which quantization, KV cache, and known cards would do, each tried.
Result<Estimate> estimate_with_remedies(const Config& config, Checkpoint& checkpoint,
                                        const EstimateTarget& target, const ConfigFor& config_for);

}  // namespace deepinfer
