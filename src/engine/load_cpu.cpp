#include <algorithm>

#include "backend/cpu_kernels.h"
#include "base/check.h"
#include "base/limits.h"
#include "engine/cpu_runner.h"
#include "engine/load.h"
#include "engine/load_plan.h"
#include "model/model.h"
#include "model/quantization.h"

namespace deepinfer {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;

}  // namespace

// auto, where the checkpoint says nothing of its cache: F16 whatever the weights are (activations are F32);
// asking for a float32 model asks for a float32 cache too.
Result<DType> cpu_kv_dtype(const Config& c, const ModelConfig& model) {
  DI_ASSIGN(const std::string name, wanted_kv_dtype(c, model));
  if (name == "auto") return c.model.dtype == "float32" ? DType::kF32 : DType::kF16;
  if (name == "float32") return DType::kF32;
  if (name == "float16") return DType::kF16;
  if (name == "bfloat16") return DType::kBF16;
  if (name == "fp8") return DType::kF8E4M3;
  if (name == "int8") return DType::kI8;
  return make_error(
      ErrorCode::kConfig,
      "gpu.kv_cache_dtype: got {}, expected auto, float32, float16, bfloat16, fp8 or int8 on the CPU", name);
}

Result<CachePlan> plan_cpu_cache(const Config& c, int wanted, int64_t block_bytes, int64_t memory_limit) {
  const int bs = c.gpu.block_size;
  const bool auto_len = c.model.max_model_len == 0;
  const int64_t blocks_of_one = (wanted + bs - 1) / bs;
  const int64_t given = c.gpu.kv_cache_memory_bytes;
  const int64_t bytes = given != 0
                            ? given
                            : std::min<int64_t>(memory_limit * 2 / 5,
                                                std::max<int64_t>(512 << 20, blocks_of_one * block_bytes));
  if (given > memory_limit)
    return make_error(ErrorCode::kMemory,
                      "gpu.kv_cache_memory_bytes: got {} ({:.0f} MiB), but this machine's memory limit is {} "
                      "({:.0f} MiB): ask for less, or leave it out",
                      given, static_cast<double>(given) / kMiB, memory_limit,
                      static_cast<double>(memory_limit) / kMiB);
  const int64_t blocks = bytes / block_bytes;
  if (blocks < 1 || (!auto_len && blocks < blocks_of_one))
    return make_error(
        ErrorCode::kMemory,
        "KV cache: one sequence of model.max_model_len {} needs {} bytes, but the pool has {}: set "
        "model.max_model_len to {} or less, or gpu.kv_cache_memory_bytes to {} or more",
        wanted, blocks_of_one * block_bytes, bytes, blocks * bs, blocks_of_one * block_bytes);
  return CachePlan{blocks, static_cast<int>(std::min<int64_t>(wanted, blocks * bs))};
}

Result<void> check_cpu_block_size(int size) {
  if (size == 16) return {};
  return make_error(ErrorCode::kConfig, "gpu.block_size: got {}, expected 16 on the CPU", size);
}

Result<void> check_cpu_weights(const Checkpoint& checkpoint, int64_t memory_limit) {
  const int64_t weight_bytes = loaded_bytes(checkpoint.weights);
  if (weight_bytes <= memory_limit) return {};
  return make_error(
      ErrorCode::kMemory,
      "{}: the weights are {:.0f} MiB, but this machine's memory limit is {:.0f} MiB: choose a "
      "smaller or more strongly quantized model (model.quantization fp8 or int4 quantizes plain weights "
      "while loading)",
      checkpoint.path.string(), static_cast<double>(weight_bytes) / kMiB,
      static_cast<double>(memory_limit) / kMiB);
}

Result<LoadedRunner> load_on_cpu(const Config& config, const Checkpoint& checkpoint, Profiler* profiler) {
  DI_ASSIGN(const DType kv, cpu_kv_dtype(config, checkpoint.config));
  DI_TRY(check_cpu_block_size(config.gpu.block_size));
  const MachineLimits limits = machine_limits();
  DI_TRY(check_cpu_weights(checkpoint, limits.memory_bytes));
  DI_ASSIGN(const int wanted, wanted_model_len(config, checkpoint.config));

  auto pool = std::make_unique<ThreadPool>(config.cpu.threads != 0 ? config.cpu.threads : limits.threads);
  Context context{.pool = pool.get()};
  DI_ASSIGN(std::unique_ptr<Model> model, make_model(checkpoint.config, checkpoint.weights, context));
  checkpoint.weights.release_pages();  // packed copies serve from here on

  const auto block_bytes =
      static_cast<int64_t>(KvCache::block_bytes(model->kv_groups(kv), config.gpu.block_size));
  DI_ASSIGN(const CachePlan plan, plan_cpu_cache(config, wanted, block_bytes, limits.memory_bytes));
  LoadSummary summary{.device = fmt::format("CPU: {} threads, {} kernels", pool->size(), cpu::kernels_name()),
                      .weight_bytes = static_cast<int64_t>(context.weights->allocated()),
                      .kv_bytes = plan.num_blocks * block_bytes,
                      .kv_blocks = plan.num_blocks,
                      .block_size = config.gpu.block_size,
                      .kv_dtype = std::string(info(kv).name)};
  DI_ASSIGN(std::unique_ptr<CpuRunner> runner,
            CpuRunner::create(std::move(pool), std::move(model),
                              {.max_num_seqs = config.gpu.max_num_seqs,
                               .max_num_batched_tokens = config.gpu.max_num_batched_tokens,
                               .max_model_len = plan.max_model_len,
                               .num_blocks = plan.num_blocks,
                               .kv_dtype = kv,
                               .profiler = profiler}));
  return LoadedRunner{std::move(runner), std::string(info(kv).name), std::move(summary)};
}

}  // namespace deepinfer
