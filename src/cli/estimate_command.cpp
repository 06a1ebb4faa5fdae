#include "cli/estimate_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <cstdio>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/shown.h"
#include "cli/estimate_model.h"
#include "cli/exit_code.h"
#include "cli/split_table.h"
#include "deepinfer/version.h"
#include "device/gpu_detector.h"
#include "device/known_gpus.h"
#include "device/tuning.h"
#include "engine/estimate.h"
#include "engine/find_device.h"
#include "model/quantization.h"

namespace deepinfer {
namespace {

namespace json = boost::json;

std::string size_text(int64_t bytes) {
  const auto b = static_cast<double>(bytes);
  if (b < 1024.0 * 1024.0) return fmt::format("{:.1f} KiB", b / 1024.0);
  if (b < 1024.0 * 1024.0 * 1024.0) return fmt::format("{:.1f} MiB", b / (1024.0 * 1024.0));
  return fmt::format("{:.2f} GiB", b / (1024.0 * 1024.0 * 1024.0));
}

GpuInfo card_of(const KnownGpu& card) {
  return {.id = -1, .name = card.name, .total_bytes = card.bytes(), .capability = card.capability};
}

// As many cards of a kind as were asked for.
std::vector<GpuInfo> cards_like(const GpuInfo& gpu, const EstimateOptions& o) {
  const SplitWish& w = o.wish;
  const int taken = std::max(w.tensor, 1) * std::max(w.pipeline, 1) * std::max(w.data, 1);
  return std::vector<GpuInfo>(static_cast<size_t>(o.count != 0 ? o.count : taken), gpu);
}

// The cards that were named, or those of this machine that gpu.device means; none: the CPU.
Result<SplitMachine> find_machine(const EstimateOptions& o, const std::string& device) {
  const MachineLimits limits = machine_limits();
  SplitMachine machine{.threads = limits.threads, .memory_bytes = limits.memory_bytes};
  if (!o.gpu.empty() && !o.memory.empty())
    return make_error(ErrorCode::kConfig, "--gpu and --memory both say how large the device is: give one");
  if (!o.gpu.empty()) {
    DI_ASSIGN(const KnownGpu card, find_known_gpu(o.gpu));
    machine.gpus = cards_like(card_of(card), o);
    return machine;
  }
  if (!o.memory.empty()) {
    DI_ASSIGN(const int64_t bytes, parse_memory_size(o.memory));
    machine.memory_bytes = bytes;
    const GpuInfo gpu{.id = -1, .name = "a GPU", .total_bytes = static_cast<uint64_t>(bytes)};
    if (device != "cpu") machine.gpus = cards_like(gpu, o);
    return machine;
  }
  DI_ASSIGN(std::vector<GpuInfo> here, find_gpus(device));
  std::erase_if(here, [](const GpuInfo& gpu) { return !gpu.total_bytes; });
  if (!here.empty()) machine.gpus = o.count != 0 ? cards_like(here.front(), o) : std::move(here);
  return machine;
}

std::string shape_text(const ModelConfig& m) {
  return fmt::format("{}, {} layers, {} heads of {}, {} for K and V, context {}", m.arch, m.layers, m.heads,
                     m.head_dim, m.kv_heads, m.max_position);
}

void line(const char* name, const std::string& text) {
  fmt::print("{:<18} {}\n", name, text);
}

void print_cache(const Estimate& e) {
  line("KV cache", fmt::format("{} in {} blocks of {} tokens: {} tokens", size_text(e.kv_bytes), e.kv_blocks,
                               e.block_size, e.tokens()));
  line("largest context",
       e.max_model_len == e.model_context
           ? fmt::format("{}, all that the model was made for", e.max_model_len)
           : fmt::format("{} of the {} that the model was made for", e.max_model_len, e.model_context));
  for (const auto& [context, count] : e.sequences)
    line(
        "sequences",
        fmt::format("{} of {} tokens each{}", count, context,
                    count > e.max_num_seqs ? fmt::format("; gpu.max_num_seqs runs {}", e.max_num_seqs) : ""));
}

constexpr size_t kShownSplits = 12;

// What was found of a model on a machine; `plans` is not empty, the best is the first.
struct Answer {
  const DescribedModel& model;
  const SplitMachine& machine;
  const std::vector<SplitPlan>& plans;
  Estimate chosen;  // of the first, with remedies when it does not fit

  bool gpu() const { return !machine.gpus.empty(); }
};

bool shows_splits(const Answer& a, const EstimateOptions& o) {
  return o.splits || a.machine.gpus.size() > 1 || a.plans.front().split.devices() > 1;
}

void print_text(const Answer& a, const EstimateOptions& o) {
  const DescribedModel& model = a.model;
  const Estimate& e = a.chosen;
  const Split& split = a.plans.front().split;
  const bool gpu = a.gpu();
  const size_t cards = a.machine.gpus.size();
  line("model", fmt::format("{}: {}", model.checkpoint.path.string(), shape_text(model.checkpoint.config)));
  line("read", model.source);
  line("device",
       fmt::format("{}{}: {}, of which {} may be used", cards > 1 ? fmt::format("{} x ", cards) : "",
                   e.device, size_text(e.total_bytes), size_text(e.usable_bytes)));
  if (split.devices() > 1) line("split", split_text(split));
  line("weights", fmt::format("{}{}, {}", size_text(e.weight_bytes),
                              split.devices() > 1 && gpu ? " each" : "", e.weights));
  if (gpu)
    line("buffers, graphs", fmt::format("{}, predicted: loading measures them", size_text(e.buffer_bytes)));
  line("KV cache a token", fmt::format("{}, {}", size_text(e.kv_token_bytes), e.kv_dtype));
  if (e.fits()) {
    print_cache(e);
  } else {
    fmt::print("\nIt does not fit: {}\n", e.problem);
    if (!e.remedies.empty()) fmt::print("\nTried, and fits:\n");
    for (const std::string& remedy : e.remedies) fmt::print("  {}\n", remedy);
  }
  if (!shows_splits(a, o)) return;
  fmt::print("\n{}{}", split_table(a.plans, o.load, kShownSplits), split_notes(a.plans, a.machine));
}

json::object to_json(const Answer& a, const EstimateOptions& o) {
  const DescribedModel& model = a.model;
  const Estimate& e = a.chosen;
  const bool gpu = a.gpu();
  const ModelConfig& m = model.checkpoint.config;
  json::array sequences;
  for (const auto& [context, count] : e.sequences)
    sequences.push_back(json::object{{"context", context}, {"sequences", count}});
  json::object out{{"version", version()},
                   {"model", model.checkpoint.path.string()},
                   {"source", model.source},
                   {"architecture", m.arch},
                   {"device", e.device},
                   {"device_count", a.plans.front().split.devices()},
                   {"split", split_text(a.plans.front().split)},
                   {"fits", e.fits()},
                   {"memory_bytes", e.total_bytes},
                   {"usable_bytes", e.usable_bytes},
                   {"weight_bytes", e.weight_bytes},
                   {"weights", e.weights},
                   {"kv_dtype", e.kv_dtype},
                   {"kv_bytes_per_token", e.kv_token_bytes},
                   {"kv_bytes", e.kv_bytes},
                   {"kv_blocks", e.kv_blocks},
                   {"block_size", e.block_size},
                   {"kv_tokens", e.tokens()},
                   {"max_num_seqs", e.max_num_seqs},
                   {"model_context", e.model_context},
                   {"max_model_len", e.max_model_len},
                   {"sequences", std::move(sequences)},
                   {"problem", nullptr},
                   {"remedies", json::value_from(e.remedies)}};
  if (!e.fits()) out["problem"] = e.problem;
  if (gpu) out["buffer_bytes"] = e.buffer_bytes;
  if (shows_splits(a, o)) out["splits"] = splits_json(a.plans);
  return out;
}

// What the settings say of a split stands where no flag of this command does.
SplitWish wish_of(const EstimateOptions& o, const Config& config) {
  SplitWish wish = o.wish;
  if (wish.tensor == 0 && config.gpu.tensor_parallel_size > 1) wish.tensor = config.gpu.tensor_parallel_size;
  if (wish.pipeline == 0 && config.gpu.pipeline_parallel_size > 1)
    wish.pipeline = config.gpu.pipeline_parallel_size;
  return wish;
}

// On the CPU the threads are one rank, unless something was asked for.
Result<void> prepare_cpu(const Config& config, const Checkpoint& checkpoint, EstimateOptions& o,
                         SplitMachine& machine) {
  if (o.count > 1) return make_error(ErrorCode::kConfig, "--count: got {}, expected 1 on the CPU", o.count);
  if (config.cpu.threads != 0) machine.threads = config.cpu.threads;
  const SplitWish& w = o.wish;
  if (!o.splits && w.tensor <= 1 && w.pipeline <= 1 && w.data <= 1) {
    o.wish = {1, 1, 1};
    return {};
  }
  const int ranks = std::max(w.tensor, 1) * std::max(w.pipeline, 1) * std::max(w.data, 1);
  machine.threads = std::max(machine.threads, ranks);
  Result<HostRates> host = measure_host(config, checkpoint, machine.threads);
  if (host)
    machine.host = *host;
  else
    log::warn("no rates: {}", host.error().message);
  return {};
}

Result<Estimate> with_remedies(const Config& config, Checkpoint& checkpoint, const SplitMachine& machine,
                               const SplitPlan& best, const ConfigFor& config_for) {
  if (best.memory.fits()) return best.memory;
  EstimateTarget target{
      .count = best.split.tensor, .stages = best.split.pipeline, .memory_bytes = machine.memory_bytes};
  if (!machine.gpus.empty()) target.gpu = smallest_card(machine.gpus);
  DI_ASSIGN(Estimate e, estimate_with_remedies(config, checkpoint, target, config_for));
  std::vector<std::string> splits;
  if (machine.gpus.size() > 1) splits = fitting_splits(config, checkpoint, machine.gpus);
  e.remedies.insert(e.remedies.begin(), splits.begin(), splits.end());
  return e;
}

Result<int> run_estimate(const ConfigFlags& flags, EstimateOptions o) {
  DI_ASSIGN(LoadedConfig loaded, flags.load());
  set_log_level("warning");
  o.wish = wish_of(o, loaded.config);
  DI_ASSIGN(SplitMachine machine, find_machine(o, loaded.config.gpu.device));
  if (!machine.gpus.empty()) {
    DI_ASSIGN(loaded, flags.load(describe(machine.gpus.front())));
  }
  for (const std::string& warning : loaded.warnings) log::warn("{}", warning);
  DI_ASSIGN(DescribedModel model, describe_model(loaded.config));
  const auto config_for = [&](const GpuInfo& gpu) {
    const Result<LoadedConfig> other = flags.load(describe(gpu));
    return other ? other->config : loaded.config;
  };
  const std::optional<GpuInfo> gpu =
      machine.gpus.empty() ? std::nullopt : std::optional(machine.gpus.front());
  DI_TRY(set_quantization(model.checkpoint, loaded.config.model.quantization,
                          preferred_weights(loaded.config.gpu, gpu)));
  if (!gpu) DI_TRY(prepare_cpu(loaded.config, model.checkpoint, o, machine));
  DI_ASSIGN(const std::vector<SplitPlan> plans,
            plan_splits(loaded.config, model.checkpoint, machine, o.wish, o.load));
  DI_ASSIGN(Estimate chosen,
            with_remedies(loaded.config, model.checkpoint, machine, plans.front(), config_for));
  const Answer answer{model, machine, plans, std::move(chosen)};
  if (o.json)
    fmt::print("{}\n", json::serialize(to_json(answer, o)));
  else
    print_text(answer, o);
  return answer.chosen.fits() ? 0 : exit_code(ErrorCode::kMemory);
}

}  // namespace

Result<int64_t> parse_memory_size(const std::string& text) {
  const struct {
    const char* unit;
    double bytes;
  } units[] = {{"", 1},        {"B", 1},         {"MB", 1e6},    {"GB", 1e9},      {"TB", 1e12},
               {"M", 1 << 20}, {"MiB", 1 << 20}, {"G", 1 << 30}, {"GiB", 1 << 30}, {"TiB", 1099511627776.0}};
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  for (const auto& u : units) {
    const double bytes = number * u.bytes;
    if (error == std::errc() && unit == u.unit && bytes >= 1 && bytes <= 1e18)
      return static_cast<int64_t>(bytes);
  }
  return make_error(ErrorCode::kConfig, "--memory: got '{}', expected a size like 24GiB, 24GB or 500MiB",
                    shown(text));
}

EstimateCommand::EstimateCommand(CLI::App& app)
    : app_(app.add_subcommand("estimate", "Print what of a model fits on a GPU or on this machine")),
      flags_(*app_) {
  app_->add_option("--gpu", options_.gpu, "A card by name, as in \"RTX 5090\"; left out: this machine's");
  app_->add_option("--memory", options_.memory,
                   "A card by its memory, as in 24GiB (--device cpu: a machine)");
  app_->add_option("--count", options_.count, "GPUs that there are; left out: this machine's, or one")
      ->check(CLI::Range(1, 1024));
  const auto size = [this](const char* flag, int& field, const char* text) {
    app_->add_option(flag, field, text)->check(CLI::Range(1, 1 << 20));
  };
  size("--tp", options_.wish.tensor, "Devices that share every layer; left out: all that fit are compared");
  size("--pp", options_.wish.pipeline, "Groups of devices that have some of the layers each");
  size("--dp", options_.wish.data, "Replicas");
  app_->add_flag("--splits", options_.splits,
                 "Compare all splits; on the CPU of its threads; some layers are measured");
  size("--prompt-tokens", options_.load.prompt, "Of the requests that rates are for [1024]");
  size("--answer-tokens", options_.load.answer, "The same [256]");
  size("--sequences", options_.load.batch,
       "Answers that a replica computes at a time; left out: all that fit");
  app_->add_flag("--json", options_.json, "Print JSON");
}

std::optional<int> EstimateCommand::run() const {
  if (!app_->parsed()) return std::nullopt;
  const Result<int> code = run_estimate(flags_, options_);
  return code ? *code : report(code.error());
}

}  // namespace deepinfer
