#include "engine/split.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"
#include "device/known_gpus.h"
#include "device/tuning.h"
#include "engine/load_plan.h"
#include "model/quantization.h"
#include "quant/method.h"

namespace deepinfer {
namespace {

// What of a data sheet's figures is reached. Predictions, until cards have been measured: those of
// docs/performance/gpu.md, as parts of the data sheet.
struct Reached {
  double memory, products;
};
constexpr Reached kPlain{0.75, 0.55}, kFp8{0.66, 0.45}, kCodes{0.58, 0.40};
constexpr double kLayerKernels = 7, kGap = 1.3e-6;  // inside a graph
constexpr double kStep = 30e-6, kSampledRow = 0.3e-6;
// Of an all-reduce by NCCL: what a call takes, and the part of the link's rate.
struct Sums {
  double seconds, part;
};
constexpr double kSummed = 4;  // bytes of a value that ranks exchange, on cards and CPUs
constexpr Sums kNvlinkSums{9e-6, 0.7}, kPeerSums{14e-6, 0.7}, kHostSums{25e-6, 0.35};

std::optional<KnownGpu> slowest_card(std::span<const GpuInfo> gpus) {
  std::optional<KnownGpu> least;
  for (const GpuInfo& gpu : gpus) {
    const std::optional<KnownGpu> card = card_called(gpu.name);
    if (!card) return std::nullopt;
    if (!least || card->gb_per_second < least->gb_per_second) least = card;
  }
  return least;
}

Reached reached(const Checkpoint& checkpoint, bool multiplies_fp8, double& rate) {
  const Weights& w = checkpoint.weights;
  const std::string kind = w.quant != nullptr ? std::string(w.quant->kind()) : w.online;
  const std::string& dtype = checkpoint.config.dtype;
  if (kind == "fp8") {
    if (multiplies_fp8) rate *= 2;
    return kFp8;
  }
  const bool plain = kind.empty() && (dtype == "bfloat16" || dtype == "float16" || dtype == "float32");
  return plain ? kPlain : kCodes;
}

std::optional<SplitSpeed> card_speed(std::span<const GpuInfo> gpus, const Checkpoint& checkpoint) {
  const std::optional<KnownGpu> card = slowest_card(gpus);
  if (!card) return std::nullopt;
  double rate = card->tflops * 1e12;
  const Reached part = reached(checkpoint, card->capability >= ComputeCapability{8, 9}, rate);
  const DeviceSpeed device{.bytes_per_second = card->gb_per_second * 1e9 * part.memory,
                           .flop_per_second = rate * part.products,
                           .layer_seconds = kLayerKernels * kGap,
                           .step_seconds = kStep,
                           .row_seconds = kSampledRow};
  const bool peers = have_peer_access(gpus);
  const Sums sums = !peers ? kHostSums : card->link.nvlink ? kNvlinkSums : kPeerSums;
  return SplitSpeed{device, device, {card->link.gb_per_second * 1e9 * sums.part, sums.seconds}};
}

std::optional<SplitSpeed> speed_of(const SplitMachine& machine, const Checkpoint& checkpoint,
                                   const Split& split) {
  if (!machine.gpus.empty()) return card_speed(machine.gpus, checkpoint);
  if (!machine.host) return std::nullopt;
  const int ranks = split.devices();
  return SplitSpeed{rank_speed(*machine.host, ranks, true), rank_speed(*machine.host, ranks, false),
                    machine.host->link};
}

int devices_of(const SplitMachine& machine) {
  return machine.gpus.empty() ? machine.threads : static_cast<int>(machine.gpus.size());
}

Result<Estimate> memory_of(const Config& config, const Checkpoint& checkpoint, const SplitMachine& machine,
                           const Split& split) {
  if (!machine.gpus.empty()) {
    const EstimateTarget target{
        .gpu = smallest_card(machine.gpus), .count = split.tensor, .stages = split.pipeline};
    return estimate(config, checkpoint, target);
  }
  Config changed = config;
  changed.gpu.tensor_parallel_size = split.tensor;
  return estimate(changed, checkpoint, {.memory_bytes = machine.memory_bytes});
}

DType cache_dtype(const Estimate& e) {
  for (const DType type : {DType::kF8E4M3, DType::kI8, DType::kF32})
    if (e.kv_dtype == info(type).name) return type;
  return DType::kF16;
}

// Sequences that a replica decodes together: as many as its settings and its cache allow.
int batch_of(const Estimate& e, const Load& load) {
  const int64_t fitting = e.tokens() / (load.prompt + load.answer);
  return static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(fitting, e.max_num_seqs), 1, INT32_MAX));
}

Result<SplitPlan> plan_of(const Config& config, const Checkpoint& checkpoint, const SplitMachine& machine,
                          const Split& split, Load load) {
  SplitPlan plan{.split = split};
  DI_ASSIGN(plan.memory, memory_of(config, checkpoint, machine, split));
  const bool cards = !machine.gpus.empty();
  if (cards && split.pipeline > 1) plan.unavailable = "pipelines run on CPUs alone in this version";
  if (!plan.memory.fits()) return plan;
  const std::optional<SplitSpeed> speed = speed_of(machine, checkpoint, split);
  load.chunk = config.gpu.max_num_batched_tokens;
  load.batch = plan.batch = load.batch > 0 ? load.batch : batch_of(plan.memory, load);
  const ModelWork work = model_work(checkpoint, cache_dtype(plan.memory), kSummed);
  if (speed) plan.rates = predict_rates(work, *speed, split, load);
  return plan;
}

// Which tensor and pipeline sizes are tried.
std::vector<int> sizes(int wished, int most) {
  if (wished != 0) return {wished};
  std::vector<int> all;
  for (int n = 1; n <= most; ++n) all.push_back(n);
  return all;
}

// Those that there are devices for. A rank on the CPU has as many threads as are there for it, so fewer ranks
// are no waste of them.
std::vector<Split> splits_of(const SplitWish& wish, const SplitMachine& machine) {
  const int devices = devices_of(machine);
  std::vector<Split> all;
  for (const int tensor : sizes(wish.tensor, devices))
    for (const int pipeline : sizes(wish.pipeline, devices / tensor)) {
      const int most = devices / (tensor * pipeline);
      if (most < std::max(wish.data, 1)) continue;
      all.push_back({tensor, pipeline, wish.data != 0 ? wish.data : most});
      if (machine.gpus.empty() && wish.data == 0 && most > 1) all.push_back({tensor, pipeline, 1});
    }
  return all;
}

// Whether the model can be dealt so at all.
Result<void> check_split(const ModelConfig& model, const SplitMachine& machine, const Split& split) {
  if (split.pipeline > model.layers)
    return make_error(ErrorCode::kConfig,
                      "gpu.pipeline_parallel_size: got {}, expected at most the model's {} layers",
                      split.pipeline, model.layers);
  if (!machine.gpus.empty()) return check_gpu_ranks(model, split.tensor);
  if (split.tensor <= model.heads) return {};
  return make_error(ErrorCode::kConfig,
                    "gpu.tensor_parallel_size: got {}, expected at most the model's {} query heads",
                    split.tensor, model.heads);
}

Error too_many(const SplitWish& wish, const SplitMachine& machine) {
  const Split split{std::max(wish.tensor, 1), std::max(wish.pipeline, 1), std::max(wish.data, 1)};
  return make_error(ErrorCode::kConfig, "split: {} takes {} {}, but there are {}", split_text(split),
                    split.devices(), machine.gpus.empty() ? "threads" : "cards", devices_of(machine));
}

void sort_plans(std::vector<SplitPlan>& plans, bool replicas_first) {
  const auto rank = [&](const SplitPlan& p) {
    const bool whole = p.split.tensor == 1 && p.split.pipeline == 1;
    // Of those that do not fit the nearest to it.
    const double missing = p.memory.fits() ? 0.0 : static_cast<double>(p.memory.weight_bytes);
    return std::tuple(!p.unavailable.empty(), missing, replicas_first && !whole,
                      p.rates ? -p.rates->requests_per_second : 0.0, p.split.tensor * p.split.pipeline,
                      p.split.devices(), p.split.tensor);
  };
  std::sort(plans.begin(), plans.end(),
            [&](const SplitPlan& a, const SplitPlan& b) { return rank(a) < rank(b); });
}

std::string gib_text(int64_t bytes) {
  return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / (1 << 30));
}

std::string fitting_text(const Estimate& e, const Split& split) {
  return fmt::format("{} of weights on each of {} cards, {} tokens of KV cache, context {}",
                     gib_text(e.weight_bytes), split.devices(), e.tokens(), e.max_model_len);
}

// The least tensor size that fits, none when none does.
std::optional<SplitPlan> least_split(const Config& config, const Checkpoint& checkpoint,
                                     std::span<const GpuInfo> gpus, int pipeline, int replicas) {
  const SplitMachine machine{.gpus = {gpus.begin(), gpus.end()}};
  for (int n = 1; n * pipeline * replicas <= static_cast<int>(gpus.size()); ++n) {
    const Split split{n, pipeline, replicas};
    if (!check_split(checkpoint.config, machine, split)) continue;
    Result<SplitPlan> plan = plan_of(config, checkpoint, machine, split, {});
    if (plan && plan->memory.fits()) return std::move(*plan);
  }
  return std::nullopt;
}

}  // namespace

std::string split_text(const Split& s) {
  std::string out;
  const auto add = [&](const char* name, int size) {
    if (size > 1) out += fmt::format("{}{} {}", out.empty() ? "" : ", ", name, size);
  };
  add("TP", s.tensor);
  add("PP", s.pipeline);
  add("DP", s.data);
  return out.empty() ? "one device" : out;
}

std::string split_flags(const Split& s) {
  std::string out;
  const auto add = [&](const char* flag, int size) {
    if (size > 1) out += fmt::format("{}{} {}", out.empty() ? "" : " ", flag, size);
  };
  add("--tensor-parallel-size", s.tensor);
  add("--pipeline-parallel-size", s.pipeline);
  add("--data-parallel-size", s.data);
  return out;
}

const GpuInfo& smallest_card(std::span<const GpuInfo> gpus) {
  return *std::min_element(gpus.begin(), gpus.end(), [](const GpuInfo& a, const GpuInfo& b) {
    return a.total_bytes.value_or(0) < b.total_bytes.value_or(0);
  });
}

bool have_peer_access(std::span<const GpuInfo> gpus) {
  for (const GpuInfo& gpu : gpus) {
    if (gpu.peers) {
      if (gpu.peers->size() + 1 < gpus.size()) return false;
      continue;
    }
    const std::optional<KnownGpu> card = card_called(gpu.name);
    if (!card || !card->link.peer) return false;
  }
  return true;
}

Result<std::vector<SplitPlan>> plan_splits(const Config& config, const Checkpoint& checkpoint,
                                           const SplitMachine& machine, const SplitWish& wish,
                                           const Load& load) {
  std::vector<SplitPlan> plans;
  std::optional<Error> refused;
  for (const Split& split : splits_of(wish, machine)) {
    if (Result<void> possible = check_split(checkpoint.config, machine, split); !possible) {
      if (!refused) refused = possible.error();
      continue;
    }
    DI_ASSIGN(SplitPlan plan, plan_of(config, checkpoint, machine, split, load));
    plans.push_back(std::move(plan));
  }
  if (plans.empty()) return refused ? *refused : too_many(wish, machine);
  sort_plans(plans, !machine.gpus.empty() && !have_peer_access(machine.gpus));
  return plans;
}

Result<Split> choose_split(const Config& config, const Checkpoint& checkpoint, std::span<const GpuInfo> gpus,
                           int replicas) {
  if (gpus.empty()) return Split{1, config.gpu.pipeline_parallel_size, replicas};
  const int pipeline = config.gpu.pipeline_parallel_size;
  if (pipeline * replicas > static_cast<int>(gpus.size()))
    return too_many({1, pipeline, replicas}, {.gpus = {gpus.begin(), gpus.end()}});
  if (const auto plan = least_split(config, checkpoint, gpus, pipeline, replicas)) return plan->split;
  const EstimateTarget target{.gpu = smallest_card(gpus), .stages = pipeline};
  DI_ASSIGN(const Estimate one, estimate(config, checkpoint, target));
  return make_error(ErrorCode::kMemory,
                    "gpu.tensor_parallel_size: got auto, but the model fits no number of the {} cards that "
                    "its heads can be dealt to. On one: {}",
                    gpus.size(), one.problem);
}

std::vector<std::string> fitting_splits(const Config& config, Checkpoint& checkpoint,
                                        std::span<const GpuInfo> gpus) {
  std::vector<std::string> found;
  if (gpus.empty()) return found;
  const std::string before = checkpoint.weights.online;
  const auto attempt = [&](const std::string& flags, const Config& changed) {
    const std::optional<SplitPlan> plan = least_split(changed, checkpoint, gpus, 1, 1);
    if (!plan) return false;
    const std::string split = split_flags(plan->split);
    found.push_back(fmt::format("{}{}{}: {}", flags, flags.empty() || split.empty() ? "" : " ", split,
                                fitting_text(plan->memory, plan->split)));
    return true;
  };
  // Weights of fewer and fewer bits, until one card holds them.
  bool fits = attempt("", config);
  for (const char* method : {"fp8", "int4"}) {
    if (checkpoint.weights.online == method || !set_quantization(checkpoint, method)) continue;
    fits |= attempt(fmt::format("--quantization {}", method), config);
    checkpoint.weights.online = before;
  }
  if (!fits && config.model.max_model_len != 0) {
    Config shorter = config;
    shorter.model.max_model_len = 0;
    attempt("--max-model-len auto", shorter);
  }
  return found;
}

}  // namespace deepinfer
