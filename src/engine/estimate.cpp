#include "engine/estimate.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "device/gpu_detector.h"
#include "device/known_gpus.h"
#include "device/tuning.h"
#include "engine/load.h"
#include "engine/load_plan.h"
#include "engine/measured_memory.h"
#include "engine/step_time.h"
#include "model/quantization.h"
#include "model/shape.h"
#include "model/shard.h"
#include "ops/params.h"
#include "tensor/kv_cache.h"

namespace deepinfer {
namespace {

constexpr size_t kMiB = 1 << 20;

// Predictions, until a card has been measured: what the driver and a context take before anything is loaded,
// what kernels' code and the libraries' workspaces take in the largest step, and what a graph takes.
constexpr size_t kDriverBytes = 450 * kMiB;
constexpr size_t kStepBytes = 200 * kMiB;
constexpr size_t kGraphBytes = kMiB;
// Of the scratch that operations share (backend/cuda/scratch.h), at most: an expanded weight, the sums of
// gate and up, the product of q, k and v, split attention; and the sampler's.
constexpr size_t kSliceBytes = 64 * kMiB, kSumsBytes = 96 * kMiB, kQkvBytes = 64 * kMiB,
                 kPartBytes = 32 * kMiB;
constexpr size_t kSamplerBytes = 64 * kMiB;
constexpr size_t kGranularity = 2 * kMiB;  // of mapped memory

// Buffers whose size follows from the settings; the terms are those of CudaRunner::allocate().
size_t predicted_buffers(const Config& c, const ModelConfig& m, const GpuTuning& tuning, int max_model_len) {
  const auto seqs = static_cast<size_t>(c.gpu.max_num_seqs);
  const size_t tokens = std::max(static_cast<size_t>(c.gpu.max_num_batched_tokens), seqs);
  const size_t head = static_cast<size_t>(m.head_dim), q = static_cast<size_t>(m.heads) * head;
  const size_t kv = static_cast<size_t>(m.kv_heads) * head;
  const auto hidden = static_cast<size_t>(m.hidden), ffn = static_cast<size_t>(m.ffn);
  const auto vocab = static_cast<size_t>(m.vocab_size);
  const size_t columns = hidden + head + 2 * q + ffn, widest = std::max({hidden, ffn, q});
  const size_t rows = std::max({q + 2 * kv, 2 * ffn, vocab});
  const size_t products = tokens * widest * 2 + std::min(rows * widest * 2, kSliceBytes) +
                          std::min(tokens * rows * 2, kSumsBytes) + std::min(tokens * rows * 4, kQkvBytes);
  const size_t scratch = tokens * columns * sizeof(float) + std::max(products, kPartBytes);
  const size_t logit_row = vocab * sizeof(float), piece = std::max(seqs, std::min<size_t>(128, tokens));
  const size_t fitting = std::max<size_t>(tuning.logits_bytes / logit_row, 1);
  const size_t logits = std::min(piece, fitting) * logit_row;
  const auto blocks = static_cast<size_t>((max_model_len + c.gpu.block_size - 1) / c.gpu.block_size);
  const size_t tables = (2 * seqs + 1) * blocks * sizeof(int32_t);
  const size_t scores = tokens * 2 * kMaxTopLogprobs * sizeof(float);  // ids and log probabilities
  return scratch + logits + std::min(2 * seqs * logit_row, kSamplerBytes) + tables + scores;
}

int kv_heads_of_rank(const ModelConfig& model, int ranks) {
  return std::max(model.kv_heads / ranks, 1);
}

// What one of `count` ranks holds of a tensor: norms whole, and K and V of a head on several ranks where
// there are fewer of them.
double rank_part(const std::string& name, double bytes, const ModelConfig& model, int count) {
  if (name.find("norm") != std::string::npos) return bytes;
  if (name.find(".k_proj.") == std::string::npos && name.find(".v_proj.") == std::string::npos)
    return bytes / count;
  return bytes * kv_heads_of_rank(model, count) / model.kv_heads;
}

// Of the fullest stage: the first one has embedding and head, and perhaps fewer layers.
int64_t device_weight_bytes(const Checkpoint& checkpoint, const EstimateTarget& target) {
  const ModelConfig& model = checkpoint.config;
  double layers = 0, ends = 0;
  for (const auto& [name, t] : checkpoint.weights.tensors) {
    const auto bytes = static_cast<double>(gpu_weight_bytes(checkpoint.weights, name, t));
    const bool of_layer = name.starts_with("model.layers.");
    (of_layer ? layers : ends) += rank_part(name, bytes, model, target.count);
  }
  const StageLayers stages = stage_layers(model, target.stages);
  const double layer = layers / model.layers;
  return static_cast<int64_t>(std::ceil(std::max(stages.first * layer + ends, stages.others * layer)));
}

std::vector<std::pair<int, int64_t>> sequences_at(const Estimate& e) {
  std::vector<std::pair<int, int64_t>> out;
  std::vector<int> contexts = {2048, 8192, 32768, 131072};
  std::erase_if(contexts, [&](int n) { return n >= e.max_model_len; });
  contexts.push_back(e.max_model_len);
  for (const int context : contexts) {
    const int64_t blocks = (context + e.block_size - 1) / e.block_size;
    out.emplace_back(context, e.kv_blocks / blocks);
  }
  return out;
}

void take_plan(const Result<CachePlan>& plan, int64_t block_bytes, Estimate& e) {
  if (!plan) {
    e.problem = plan.error().message;
    return;
  }
  e.kv_blocks = plan->num_blocks;
  e.kv_bytes = plan->num_blocks * block_bytes;
  e.max_model_len = plan->max_model_len;
  e.sequences = sequences_at(e);
}

struct Cache {
  DType dtype = DType::kF16;
  int64_t block_bytes = 0;  // of one device
};

struct CachePart {
  int layers = 0, kv_heads = 0;
};

Cache cache_of(const Config& config, const ModelConfig& model, DType dtype, const CachePart& part,
               Estimate& e) {
  std::vector<KvGroupSpec> groups = full_attention_groups(model, part.layers, dtype);
  for (KvGroupSpec& g : groups) g.kv_heads = part.kv_heads;
  const auto bytes = static_cast<int64_t>(KvCache::block_bytes(groups, config.gpu.block_size));
  e.block_size = config.gpu.block_size;
  e.kv_dtype = info(dtype).name;
  e.kv_token_bytes = bytes / config.gpu.block_size;
  return {dtype, bytes};
}

Result<Estimate> on_cpu(const Config& config, const Checkpoint& checkpoint, const EstimateTarget& target,
                        Estimate e) {
  DI_ASSIGN(const DType kv, cpu_kv_dtype(config, checkpoint.config));
  DI_TRY(check_cpu_block_size(config.gpu.block_size));
  e.device = "CPU";
  e.total_bytes = e.usable_bytes = target.memory_bytes;
  e.weight_bytes = loaded_bytes(checkpoint.weights);
  // All ranks share one memory. A KV head at their border stands there twice.
  DI_ASSIGN(const int kv_heads, kv_heads_of_ranks(checkpoint.config, config.gpu.tensor_parallel_size));
  const CachePart part{checkpoint.config.layers, kv_heads};
  const Cache cache = cache_of(config, checkpoint.config, kv, part, e);
  DI_ASSIGN(const int wanted, wanted_model_len(config, checkpoint.config));
  HostMemory memory = host_memory(config, checkpoint, target.memory_bytes);
  if (const Result<void> fit = check_host_weights(memory, checkpoint.path.string()); !fit) {
    e.problem = fit.error().message;
    return e;
  }
  memory.max_model_len = wanted;
  memory.block_bytes = cache.block_bytes;
  Estimate unused;
  if (kv != DType::kI8 && kv != DType::kF8E4M3)
    memory.int8_block_bytes = cache_of(config, checkpoint.config, DType::kI8, part, unused).block_bytes;
  take_plan(plan_host_cache(memory), cache.block_bytes, e);
  return e;
}

Result<void> check_gpu(const GpuInfo& gpu, int count, const ModelConfig& model) {
  if (gpu.capability && *gpu.capability < kNeededCapability)
    return make_error(ErrorCode::kConfig,
                      "{}: compute capability {}, expected {} or newer (RTX 30 series, A100 and later)",
                      gpu.name, to_string(*gpu.capability), to_string(kNeededCapability));
  return check_gpu_ranks(model, count);
}

// What a runner would have measured after its first steps.
MeasuredMemory predicted(const Config& config, const ModelConfig& model, const GpuTuning& tuning,
                         const EstimateTarget& target, const Estimate& e) {
  MeasuredMemory m{.total = static_cast<size_t>(e.total_bytes), .others = kDriverBytes};
  m.weights = static_cast<size_t>(e.weight_bytes);
  m.step = kStepBytes;
  m.graphs = std::min<size_t>(tuning.graph_sizes.size(), 2) * kGraphBytes;
  m.later_graphs = tuning.graph_sizes.size() * kGraphBytes - m.graphs;
  m.granularity = kGranularity;
  m.block_size = config.gpu.block_size;
  m.max_blocks = INT32_MAX;
  m.max_num_seqs = config.gpu.max_num_seqs;
  m.max_num_batched_tokens = config.gpu.max_num_batched_tokens;
  m.max_model_len = e.max_model_len;
  m.fixed = predicted_buffers(config, model, tuning, e.max_model_len) / static_cast<size_t>(target.count);
  const size_t taken = m.others + m.weights + m.fixed + m.step + m.graphs;
  m.free = m.total > taken ? m.total - taken : 0;
  return m;
}

Result<Estimate> on_gpu(const Config& config, const Checkpoint& checkpoint, const EstimateTarget& target,
                        Estimate e) {
  const GpuInfo& gpu = *target.gpu;
  DI_TRY(check_gpu(gpu, target.count, checkpoint.config));
  DI_TRY(check_gpu_model(checkpoint.config));
  DI_TRY(check_gpu_block_size(config.gpu.block_size));
  const GpuTuning tuning = resolve_tuning(config.gpu, gpu);
  DI_ASSIGN(const GpuTypes types, gpu_types(config, checkpoint.config, tuning));
  DI_ASSIGN(e.max_model_len, wanted_model_len(config, checkpoint.config));
  const MemoryRequest request = gpu_memory_request(config, gpu, tuning, checkpoint, types.kv);
  e.device = gpu.name;
  e.count = target.count;
  e.total_bytes = static_cast<int64_t>(gpu.total_bytes.value_or(0));
  const auto total = static_cast<size_t>(e.total_bytes);
  e.usable_bytes = static_cast<int64_t>(requested_bytes(total, request.utilization));
  e.stages = target.stages;
  e.weight_bytes = device_weight_bytes(checkpoint, target);
  const StageLayers stages = stage_layers(checkpoint.config, target.stages);
  const CachePart part{std::max(stages.first, stages.others),
                       kv_heads_of_rank(checkpoint.config, target.count)};
  const Cache cache = cache_of(config, checkpoint.config, types.kv, part, e);
  MeasuredMemory m = predicted(config, checkpoint.config, tuning, target, e);
  // A block's tokens stand in the history besides.
  m.block_bytes =
      static_cast<size_t>(cache.block_bytes) + static_cast<size_t>(m.block_size) * sizeof(int32_t);
  e.buffer_bytes = static_cast<int64_t>(m.fixed + m.step + m.graphs + m.later_graphs + m.others);
  e.max_model_len = 0;
  const size_t free = total > kDriverBytes ? total - kDriverBytes : 0;
  if (const Result<void> fit = check_weights(m.weights, free, total, request); !fit) {
    e.problem = fit.error().message;
    return e;
  }
  take_plan(plan_cache(m, request), static_cast<int64_t>(m.block_bytes), e);
  return e;
}

std::string fitting_text(const Estimate& e) {
  return fmt::format("{} tokens of KV cache, context {}", e.tokens(), e.max_model_len);
}

// Cards on which it fits, the smallest ones first.
void try_cards(const ConfigFor& config_for, Checkpoint& checkpoint, EstimateTarget target, Estimate& e) {
  int found = 0;
  for (const KnownGpu& card : known_gpus()) {
    if (found == 3) return;
    if (static_cast<int64_t>(card.bytes()) <= e.total_bytes || card.capability < kNeededCapability) continue;
    target.gpu =
        GpuInfo{.id = -1, .name = card.name, .total_bytes = card.bytes(), .capability = card.capability};
    const Config config = config_for(*target.gpu);
    if (!set_quantization(checkpoint, config.model.quantization, preferred_weights(config.gpu, target.gpu)))
      continue;
    const Result<Estimate> other = estimate(config, checkpoint, target);
    if (!other || !other->fits()) continue;
    ++found;
    e.remedies.push_back(fmt::format("--gpu '{}': {}", card.name, fitting_text(*other)));
  }
}

}  // namespace

Result<void> check_gpu_ranks(const ModelConfig& model, int ranks) {
  const bool kv = model.kv_heads % ranks == 0 || ranks % model.kv_heads == 0;
  if (model.heads % ranks == 0 && kv) return {};
  return make_error(ErrorCode::kConfig,
                    "gpu.tensor_parallel_size: got {}, expected on GPUs a divisor of the model's {} heads{}",
                    ranks, model.heads,
                    kv ? "" : fmt::format(" that fits its {} heads of K and V", model.kv_heads));
}

Result<Estimate> estimate(const Config& config, const Checkpoint& checkpoint, const EstimateTarget& target) {
  Estimate e{.weights = weights_text(checkpoint),
             .max_num_seqs = config.gpu.max_num_seqs,
             .model_context = checkpoint.config.max_position};
  return target.gpu ? on_gpu(config, checkpoint, target, std::move(e))
                    : on_cpu(config, checkpoint, target, std::move(e));
}

Result<Estimate> estimate_with_remedies(const Config& config, Checkpoint& checkpoint,
                                        const EstimateTarget& target, const ConfigFor& config_for) {
  DI_TRY(set_quantization(checkpoint, config.model.quantization, preferred_weights(config.gpu, target.gpu)));
  DI_ASSIGN(Estimate e, estimate(config, checkpoint, target));
  if (e.fits()) return e;
  const std::string online = checkpoint.weights.online;
  const auto attempt = [&](const Config& changed, const std::string& what) {
    const Result<Estimate> other = estimate(changed, checkpoint, target);
    if (other && other->fits()) e.remedies.push_back(fmt::format("{}: {}", what, fitting_text(*other)));
  };
  Config shorter = config;
  shorter.model.max_model_len = 0;
  if (config.model.max_model_len != 0) attempt(shorter, "--max-model-len auto");
  Config small_cache = config;
  small_cache.gpu.kv_cache_dtype = "fp8";
  if (config.gpu.kv_cache_dtype != "fp8") attempt(small_cache, "--kv-cache-dtype fp8");
  if (online.empty()) {
    for (const char* method : {"fp8", "int4"}) {
      if (!set_quantization(checkpoint, method)) continue;
      attempt(config, fmt::format("--quantization {}", method));
      checkpoint.weights.online.clear();
    }
  }
  if (target.gpu) try_cards(config_for, checkpoint, target, e);
  checkpoint.weights.online = online;
  return e;
}

}  // namespace deepinfer
