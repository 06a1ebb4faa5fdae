#include <algorithm>
#include <chrono>

#include "backend/cpu_kernels.h"
#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "engine/cluster.h"
#include "engine/host_memory_plan.h"
#include "engine/load.h"
#include "engine/load_plan.h"
#include "engine/parallel_runner.h"
#include "engine/pipeline_stages.h"
#include "model/model.h"
#include "model/quantization.h"

namespace deepinfer {
namespace {

// Bits of plain weights, 0 for quantized ones.
int plain_bits(const Checkpoint& checkpoint) {
  const std::string& dtype = checkpoint.config.dtype;
  if (checkpoint.weights.quant != nullptr || !checkpoint.weights.online.empty()) return 0;
  return dtype == "float32" ? 32 : dtype == "bfloat16" || dtype == "float16" ? 16 : 0;
}

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

Result<void> check_cpu_block_size(int size) {
  if (size == 16) return {};
  return make_error(ErrorCode::kConfig, "gpu.block_size: got {}, expected 16 on the CPU", size);
}

HostMemory host_memory(const Config& config, const Checkpoint& checkpoint, int64_t memory_limit) {
  return {.limit = memory_limit,
          .weights = loaded_bytes(checkpoint.weights),
          .weight_bits = plain_bits(checkpoint),
          .given = config.gpu.kv_cache_memory_bytes,
          .block_size = config.gpu.block_size,
          .auto_max_model_len = config.model.max_model_len == 0};
}

namespace {

PipelinePlace grid_of(const Config& c) {
  return {.stages = c.gpu.pipeline_parallel_size, .shares = c.gpu.tensor_parallel_size};
}

Result<RankModels> make_models(const Config& config, const Checkpoint& checkpoint, int threads) {
  const PipelinePlace grid = grid_of(config);
  if (threads < grid.ranks())
    log::warn("{}: there are {} threads (cpu.threads), so ranks share a CPU's time",
              grid.stages == 1 ? fmt::format("gpu.tensor_parallel_size {}", grid.shares)
                               : fmt::format("gpu.pipeline_parallel_size {} of gpu.tensor_parallel_size {}",
                                             grid.stages, grid.shares),
              threads);
  if (grid.stages > 1) return make_stage_models(checkpoint, grid, threads);
  return make_rank_models(checkpoint, grid.shares, threads, stall_limit(config));
}

// "4 ranks of 1 thread in 2 stages".
std::string threads_text(const RankModels& ranks, int stages) {
  const int most = ranks.pools.front()->size(), least = ranks.pools.back()->size();
  const auto threads = [](int n) { return fmt::format("{} thread{}", n, n == 1 ? "" : "s"); };
  if (ranks.pools.size() == 1) return fmt::format("{} threads", most);
  const std::string each = most == least ? threads(most) : fmt::format("{} or {} threads", most, least);
  return fmt::format("{} ranks of {}{}", ranks.pools.size(), each,
                     stages == 1 ? "" : fmt::format(" in {} stages", stages));
}

Result<std::unique_ptr<ModelRunner>> make_runner(RankModels ranks, const PipelinePlace& grid,
                                                 const CpuRunnerOptions& options,
                                                 std::chrono::milliseconds timeout) {
  if (grid.stages > 1) {
    DI_ASSIGN(std::unique_ptr<PipelineRunner> all, make_pipeline(std::move(ranks), grid, options, timeout));
    return std::unique_ptr<ModelRunner>(std::move(all));
  }
  if (ranks.models.size() == 1) {
    DI_ASSIGN(std::unique_ptr<CpuRunner> one,
              CpuRunner::create(std::move(ranks.pools.front()), std::move(ranks.models.front()), options));
    return std::unique_ptr<ModelRunner>(std::move(one));
  }
  DI_ASSIGN(std::unique_ptr<ParallelRunner> all, ParallelRunner::create(std::move(ranks), options, timeout));
  return std::unique_ptr<ModelRunner>(std::move(all));
}

}  // namespace

Result<LoadedRunner> load_on_cpu(const Config& config, const Checkpoint& checkpoint, Profiler* profiler) {
  if (config.cluster.nnodes > 1) return load_leader(config, checkpoint, profiler);
  DI_ASSIGN(const DType kv, cpu_kv_dtype(config, checkpoint.config));
  DI_TRY(check_cpu_block_size(config.gpu.block_size));
  const MachineLimits limits = machine_limits();
  HostMemory memory = host_memory(config, checkpoint, limits.memory_bytes);
  DI_TRY(check_host_weights(memory, checkpoint.path.string()));
  DI_ASSIGN(const int wanted, wanted_model_len(config, checkpoint.config));

  const int threads = config.cpu.threads != 0 ? config.cpu.threads : limits.threads;
  DI_ASSIGN(RankModels ranks, make_models(config, checkpoint, threads));
  checkpoint.weights.release_pages();  // packed copies serve from here on

  const PipelinePlace grid = grid_of(config);
  memory.max_model_len = wanted;
  memory.block_bytes = block_bytes(ranks, kv, config.gpu.block_size);
  if (kv != DType::kI8 && kv != DType::kF8E4M3)
    memory.int8_block_bytes = block_bytes(ranks, DType::kI8, config.gpu.block_size);
  DI_ASSIGN(const CachePlan plan, plan_host_cache(memory));
  LoadSummary summary{
      .device = fmt::format("CPU: {}, {} kernels", threads_text(ranks, grid.stages), cpu::kernels_name()),
      .weight_bytes = ranks.weight_bytes,
      .kv_bytes = plan.num_blocks * memory.block_bytes,
      .kv_blocks = plan.num_blocks,
      .block_size = config.gpu.block_size,
      .kv_dtype = std::string(info(kv).name)};
  DI_ASSIGN(std::unique_ptr<ModelRunner> runner,
            make_runner(std::move(ranks), grid,
                        {.max_num_seqs = config.gpu.max_num_seqs,
                         .max_num_batched_tokens = config.gpu.max_num_batched_tokens,
                         .max_model_len = plan.max_model_len,
                         .num_blocks = plan.num_blocks,
                         .kv_dtype = kv,
                         .profiler = profiler},
                        stall_limit(config)));
  std::string kernels(info(kv).name);
  if (grid.shares > 1)
    kernels += fmt::format(" tp{}", grid.shares);  // sums over ranks have an order of their own
  return LoadedRunner{std::move(runner), std::move(kernels), std::move(summary)};
}

}  // namespace deepinfer
