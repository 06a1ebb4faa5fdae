#include "engine/load_gpu.h"

#include <algorithm>
#include <exception>

#include "backend/cuda/staging.h"
#include "backend/cuda_error.h"
#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "device/gpu_text.h"
#include "device/tuning.h"
#include "engine/cuda_runner.h"
#include "engine/memory_plan.h"
#include "model/model.h"
#include "model/quantization.h"

namespace deepinfer {
namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

}  // namespace

Result<GpuTypes> gpu_types(const Config& c, const ModelConfig& model, const GpuTuning& tuning) {
  const std::string& wanted = c.model.dtype;
  if (wanted != "auto" && wanted != "bfloat16" && wanted != "float16")
    return make_error(ErrorCode::kConfig, "model.dtype: got {}, expected auto, bfloat16 or float16 on a GPU",
                      wanted);
  const bool half = wanted == "float16" || (wanted == "auto" && model.dtype == "float16");
  GpuTypes types;
  types.activation = half ? DType::kF16 : DType::kBF16;
  const char* own = half ? "float16" : "bfloat16";
  DI_ASSIGN(const std::string kv, wanted_kv_dtype(c, model));
  if (kv == "fp8" || (kv == "auto" && tuning.fp8_kv_cache))
    types.kv = DType::kF8E4M3;
  else if (kv == "auto" || kv == own)
    types.kv = types.activation;
  else
    return make_error(ErrorCode::kConfig,
                      "gpu.kv_cache_dtype: got {}, expected auto, fp8 or {} on a GPU with activations in {} "
                      "(model.dtype){}",
                      kv, own, own, kv == "int8" ? "; int8 is the CPU's, fp8 takes as much memory" : "");
  return types;
}

Result<void> check_gpu_block_size(int size) {
  if (size >= 16 && size <= 128 && (size & (size - 1)) == 0) return {};
  return make_error(ErrorCode::kConfig, "gpu.block_size: got {}, expected 16, 32, 64 or 128 on a GPU", size);
}

Result<void> check_gpu_model(const ModelConfig& model) {
  if (model.head_dim >= 16 && model.head_dim <= 256 && model.head_dim % 8 == 0) return {};
  return make_error(ErrorCode::kModel,
                    "head_dim: got {}, expected a multiple of 8 from 16 to 256 on a GPU: use gpu.device: cpu",
                    model.head_dim);
}

size_t gpu_weight_bytes(const Weights& weights, const std::string& name, const RawTensor& t) {
  const bool halved = t.dtype == DType::kF32 && t.shape.size() > 1 && !is_quantized_online(weights, name);
  return halved ? t.bytes / 2 : loaded_bytes(weights, name, t);
}

size_t gpu_weight_bytes(const Weights& weights) {
  size_t bytes = 0;
  for (const auto& [name, t] : weights.tensors) bytes += gpu_weight_bytes(weights, name, t);
  return bytes;
}

MemoryRequest gpu_memory_request(const Config& c, const GpuInfo& gpu, const GpuTuning& tuning,
                                 const Checkpoint& checkpoint, DType kv) {
  const std::string& dtype = checkpoint.config.dtype;
  return {.utilization = c.gpu.gpu_memory_utilization,
          .kv_cache_memory_bytes = c.gpu.kv_cache_memory_bytes,
          .headroom = tuning.headroom_bytes,
          .auto_max_model_len = c.model.max_model_len == 0,
          .fp8_kv_possible = kv != DType::kF8E4M3,
          .quantization_possible = checkpoint.weights.quant == nullptr && checkpoint.weights.online.empty() &&
                                   (dtype == "bfloat16" || dtype == "float16" || dtype == "float32"),
          .gpu = gpu.id < 0 ? gpu.name : fmt::format("GPU {} ({})", gpu.id, gpu.name),
          .holders = processes_text(gpu)};
}

namespace {

// Of the GPU's memory; of the host's there is other advice to give.
bool is_of_device(const Error& error) {
  return error.code == ErrorCode::kMemory && error.message.starts_with("GPU ");
}

}  // namespace

Result<std::unique_ptr<Model>> pack_model(const GpuJob& job, cuda::Gpu& gpu, Communicator* ranks) {
  const int wanted = job.config.cpu.threads, all = wanted != 0 ? wanted : machine_limits().threads;
  ThreadPool pool(std::max(ranks == nullptr ? all : all / ranks->size(), 1));  // steps run without
  Context context{.device = {Device::Kind::kCuda, gpu.facts().index},
                  .pool = &pool,
                  .gpu = &gpu,
                  .comm = ranks,
                  .activation = job.types.activation};
  auto model = make_model(job.checkpoint.config, job.checkpoint.weights, context);
  cuda::release_staging(gpu);
  job.checkpoint.weights.release_pages();
  if (!model && is_of_device(model.error()))
    return with_smaller_steps(std::move(model).error(), 0, 0, job.request);
  return model;
}

Result<void> check_card(const GpuJob& job, const cuda::Gpu& gpu, int ranks) {
  const cuda::MemoryInfo memory = gpu.memory_at_open();
  DI_TRY(check_free_memory(memory.free_bytes, memory.total_bytes, job.request));
  return check_weights(gpu_weight_bytes(job.checkpoint.weights) / static_cast<size_t>(ranks),
                       memory.free_bytes, memory.total_bytes, job.request);
}

CudaRunnerOptions runner_options(const GpuJob& job) {
  const Config::Gpu& settings = job.config.gpu;
  return {.max_num_seqs = settings.max_num_seqs,
          .max_num_batched_tokens = settings.max_num_batched_tokens,
          .max_model_len = job.max_model_len,
          .block_size = settings.block_size,
          .kv_dtype = job.types.kv,
          .activation = job.types.activation,
          .enforce_eager = !job.tuning.cuda_graphs,
          .graph_sizes = job.tuning.graph_sizes,
          .pdl_rows = job.tuning.pdl_max_batch,
          .logits_bytes = job.tuning.logits_bytes,
          .profiler = job.profiler,
          .plan_cache = [request = job.request](const MeasuredMemory& measured) {
            return plan_cache(measured, request);
          }};
}

Result<GpuJob> make_gpu_job(const Config& config, const Checkpoint& checkpoint, const GpuInfo& info,
                            Profiler* profiler) {
  GpuJob job{.config = config, .checkpoint = checkpoint, .tuning = resolve_tuning(config.gpu, info)};
  if (!job.tuning.warning.empty()) log::warn("{}", job.tuning.warning);
  DI_TRY(check_gpu_model(checkpoint.config));
  DI_TRY(check_gpu_block_size(config.gpu.block_size));
  DI_ASSIGN(job.types, gpu_types(config, checkpoint.config, job.tuning));
  DI_ASSIGN(job.max_model_len, wanted_model_len(config, checkpoint.config));
  job.request = gpu_memory_request(config, info, job.tuning, checkpoint, job.types.kv);
  job.profiler = profiler;
  return job;
}

std::string memory_text(const MeasuredMemory& m) {
  const auto gib = [](size_t bytes) { return static_cast<double>(bytes) / kGiB; };
  return fmt::format("weights {:.2f} GiB, buffers {:.2f}, step {:.2f}, graphs {:.2f}", gib(m.weights),
                     gib(m.fixed), gib(m.step), gib(m.graphs + m.later_graphs));
}

namespace {

LoadSummary summary_of(const GpuInfo& gpu, const CudaRunner& runner, DType kv) {
  const MeasuredMemory& m = runner.measured();
  return {.device =
              fmt::format("cuda:{} {} (compute capability {})", gpu.id, gpu.name, to_string(*gpu.capability)),
          .memory = memory_text(m),
          .weight_bytes = static_cast<int64_t>(m.weights),
          .kv_bytes = static_cast<int64_t>(m.block_bytes) * runner.info().num_blocks,
          .kv_blocks = runner.info().num_blocks,
          .block_size = static_cast<int>(m.block_size),
          .kv_dtype = std::string(info(kv).name)};
}

Result<std::unique_ptr<CudaRunner>> make_runner(const GpuJob& job, std::unique_ptr<cuda::Gpu> gpu) {
  DI_TRY(check_card(job, *gpu, 1));
  DI_ASSIGN(std::unique_ptr<Model> model, pack_model(job, *gpu, nullptr));
  const Config::Gpu& settings = job.config.gpu;
  const auto planned = std::make_shared<bool>(false);  // the runner keeps the function
  CudaRunnerOptions options = runner_options(job);
  options.plan_cache = [planned, plan = options.plan_cache](const MeasuredMemory& measured) {
    *planned = true;
    return plan(measured);
  };
  auto runner = CudaRunner::create(std::move(gpu), std::move(model), std::move(options));
  if (!runner && !*planned && is_of_device(runner.error()))
    return with_smaller_steps(std::move(runner).error(), settings.max_num_seqs,
                              settings.max_num_batched_tokens, job.request);
  return runner;
}

}  // namespace

Result<LoadedRunner> load_on_gpu(const Config& config, const Checkpoint& checkpoint,
                                 std::unique_ptr<cuda::Gpu> gpu, const GpuInfo& info, Profiler* profiler) {
  DI_ASSIGN(const GpuJob job, make_gpu_job(config, checkpoint, info, profiler));
  try {
    DI_ASSIGN(std::unique_ptr<CudaRunner> runner, make_runner(job, std::move(gpu)));
    const DType kv = runner->info().groups.front().dtype;
    LoadSummary summary = summary_of(info, *runner, kv);
    std::string kernels =
        fmt::format("{} {} {}", info.name, to_string(*info.capability), deepinfer::info(kv).name);
    return LoadedRunner{std::move(runner), std::move(kernels), std::move(summary)};
  } catch (const cuda::CudaError& fault) {
    return make_error(ErrorCode::kMemory, "{}: {}", job.request.gpu, fault.what());
  } catch (const cuda::CudaOutOfMemory& fault) {
    return make_error(ErrorCode::kMemory, "{}: out of memory while the model was loaded: {}", job.request.gpu,
                      fault.what());
  }
}

}  // namespace deepinfer
