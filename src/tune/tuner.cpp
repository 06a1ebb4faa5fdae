#include "tune/tuner.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <optional>

#include "base/check.h"
#include "base/limits.h"
#include "base/shown.h"
#include "config/keys.h"
#include "config/value.h"
#include "engine/find_device.h"
#include "engine/llm.h"
#include "engine/load.h"
#include "engine/split.h"
#include "tune/limited_runner.h"
#include "tune/load_run.h"

namespace deepinfer::tune {
namespace {

using Clock = std::chrono::steady_clock;

// Of the budget: how long the first run sends requests, and may take in all.
constexpr double kSendShare = 1.0 / 12, kFirstShare = 0.4;
constexpr double kLongestSend = 60;  // seconds
constexpr size_t kToldSplits = 4;
constexpr double kRatesFrom = 15;  // seconds of budget that leave one for measuring a layer

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// `values` in order with `start` among them.
Axis make_axis(const std::string& key, std::vector<std::string> values, const std::string& start) {
  const auto number = [](const std::string& text) { return std::strtod(text.c_str(), nullptr); };
  if (std::find(values.begin(), values.end(), start) == values.end()) values.push_back(start);
  std::sort(values.begin(), values.end(),
            [&](const std::string& a, const std::string& b) { return number(a) < number(b); });
  values.erase(std::unique(values.begin(), values.end()), values.end());
  const auto at = std::find(values.begin(), values.end(), start) - values.begin();
  return {key, std::move(values), static_cast<size_t>(at)};
}

Axis ladder(const std::string& key, std::initializer_list<int> steps, int start, int enough) {
  std::vector<std::string> values;
  for (const int step : steps) {
    values.push_back(std::to_string(step));
    if (step >= enough) break;
  }
  return make_axis(key, std::move(values), std::to_string(start));
}

void set_setting(Config& config, const std::string& key, const std::string& value) {
  const Key* found = find_key(key);
  DI_CHECK(found != nullptr, "no setting {}", key);
  const Result<void> set = set_value(*found, {.items = {value}}, "tune", config);
  DI_CHECK(set.ok(), "{}", set.ok() ? "" : set.error().message);
}

// Owns the model while it is tuned.
class Session {
 public:
  Session(const Config& config, const TuneOptions& options, const TuneHooks& hooks)
      : config_(config), options_(options), hooks_(hooks), start_(Clock::now()) {}

  Result<TuneResult> run() {
    DI_TRY(open());
    note(fmt::format("{} on {}", result_.model, result_.device));
    note(result_.workload);
    const SearchHooks search_hooks{
        .measure = [this](const Point& p, double seconds) { return measure(p, seconds); },
        .elapsed = [this] { return seconds_since(start_); },
        .on_trial =
            [this](const Trial& t, bool best) {
              if (hooks_.on_trial) hooks_.on_trial(result_.axes, t, best, seconds_since(start_));
            }};
    DI_ASSIGN(result_.outcome, search(result_.axes, options_.slo, budget(), search_hooks));
    if (!result_.outcome.best) return make_error(ErrorCode::kCancelled, "stopped");
    result_.requests = requests_.value_or(0);
    result_.seconds = seconds_since(start_);
    return std::move(result_);
  }

 private:
  double budget() const { return options_.minutes * 60; }
  void note(const std::string& line) const {
    if (hooks_.note) hooks_.note(line);
  }
  bool from_file() const {
    const auto& names = Workload::names();
    return std::find(names.begin(), names.end(), options_.workload) == names.end();
  }

  Result<void> open() {
    std::error_code ec;
    if (from_file() && !std::filesystem::exists(options_.workload, ec))
      return Workload::named(options_.workload, false, 1, 1).error();
    DI_ASSIGN(const std::filesystem::path path, locate_model(config_));
    DI_ASSIGN(checkpoint_, from_file() ? open_checkpoint(path) : open_weights(path));
    DI_TRY(load(config_));
    DI_ASSIGN(workload_, make_workload());
    if (options_.concurrency > 0) workload_->set_concurrency(options_.concurrency);
    DI_ASSIGN(const SplitMachine machine, find_machine());
    tell_splits(machine);
    result_.axes =
        axes_for(config_, {.gpu = loaded_.on_gpu, .devices = shared_by(machine)}, workload_->concurrency());
    const std::vector<std::string>& names = config_.model.served_model_name;
    result_.model = fmt::format("{} ({})", names.empty() ? path.stem().string() : names.front(),
                                checkpoint_.config.dtype);
    result_.device = loaded_.summary.device;
    result_.workload = workload_->text();
    return {};
  }

  Result<std::optional<Workload>> make_workload() {
    const int vocab = checkpoint_.config.vocab_size, context = loaded_.runner->info().max_model_len;
    if (!from_file()) {
      DI_ASSIGN(Workload w, Workload::named(options_.workload, loaded_.on_gpu, vocab, context));
      return std::optional(std::move(w));
    }
    std::optional<ChatTemplate> chat_template;
    if (!checkpoint_.chat_template.empty()) {
      auto parsed = ChatTemplate::parse(checkpoint_.chat_template);
      if (parsed) chat_template = std::move(*parsed);
    }
    DI_ASSIGN(Workload w, Workload::from_file(options_.workload, *checkpoint_.tokenizer,
                                              chat_template ? &*chat_template : nullptr, vocab, context));
    return std::optional(std::move(w));
  }

  Result<SplitMachine> find_machine() const {
    const MachineLimits limits = machine_limits();
    const int threads = config_.cpu.threads != 0 ? config_.cpu.threads : limits.threads;
    SplitMachine machine{.threads = threads, .memory_bytes = limits.memory_bytes};
    if (loaded_.on_gpu) {
      DI_ASSIGN(machine.gpus, find_gpus(config_.gpu.device));
      return machine;
    }
    if (threads == 1 || budget() < kRatesFrom) return machine;
    // Without the rates of this CPU splits are tried all the same.
    if (const Result<HostRates> host = measure_host(config_, checkpoint_, threads)) machine.host = *host;
    return machine;
  }

  // The most devices that the model can be dealt to, up to those that there are.
  int shared_by(const SplitMachine& machine) const {
    if (config_.cluster.nnodes > 1) return 1;
    const ModelConfig& model = checkpoint_.config;
    int most = 1;
    if (!loaded_.on_gpu) return std::min(machine.threads, model.heads);
    for (int n = 2; n <= static_cast<int>(machine.gpus.size()); ++n)
      if (check_gpu_ranks(model, n)) most = n;
    return most;
  }

  // What is expected of them: replicas are not measured here.
  void tell_splits(const SplitMachine& machine) const {
    const auto plans = plan_splits(config_, checkpoint_, machine, {}, {});
    if (!plans || plans->size() < 2) return;
    size_t told = 0;
    for (const SplitPlan& p : *plans) {
      if (!p.usable() || !p.rates || told++ == kToldSplits) continue;
      note(
          fmt::format("predicted: {}: {:.2f} requests of 1024 + 256 tokens a second, one answer {:.1f} tok/s",
                      split_text(p.split), p.rates->requests_per_second, p.rates->stream_per_second));
    }
  }

  Config config_at(const Point& point) const {
    Config c = config_;
    for (size_t i = 0; i < point.size(); ++i)
      set_setting(c, result_.axes[i].key, result_.axes[i].values[point[i]]);
    return c;
  }

  // The CPU's memory counts when it is touched: there a runner has room for the largest limits that may be
  // asked for, and smaller ones need no other. A GPU's cache gets what the buffers leave.
  bool serves(const Config& c) const {
    if (loaded_.runner == nullptr) return false;
    const Config::Gpu &a = loaded_config_.gpu, &b = c.gpu;
    if (a.tensor_parallel_size != b.tensor_parallel_size ||
        a.pipeline_parallel_size != b.pipeline_parallel_size)
      return false;
    if (loaded_.on_gpu)
      return a.max_num_seqs == b.max_num_seqs && a.max_num_batched_tokens == b.max_num_batched_tokens &&
             a.gpu_memory_utilization == b.gpu_memory_utilization && a.enforce_eager == b.enforce_eager;
    return a.max_num_seqs >= b.max_num_seqs && a.max_num_batched_tokens >= b.max_num_batched_tokens &&
           loaded_config_.cpu.threads == c.cpu.threads;
  }

  Result<void> load(const Config& wanted) {
    Config c = wanted;
    for (const Axis& axis : result_.axes) {
      if (loaded_.on_gpu) break;
      const int largest = std::atoi(axis.values.back().c_str());
      if (axis.key == "gpu.max_num_seqs") c.gpu.max_num_seqs = std::max(c.gpu.max_num_seqs, largest);
      if (axis.key == "gpu.max_num_batched_tokens")
        c.gpu.max_num_batched_tokens = std::max(c.gpu.max_num_batched_tokens, largest);
    }
    const Clock::time_point start = Clock::now();
    loaded_.runner.reset();  // two would need the memory of two
    DI_ASSIGN(loaded_, load_runner(c, checkpoint_));
    loaded_config_ = c;
    load_seconds_ = seconds_since(start);
    return {};
  }

  Result<Measurement> measure(const Point& point, double seconds) {
    if (hooks_.interrupted()) return make_error(ErrorCode::kCancelled, "stopped");
    const Config c = config_at(point);
    if (!serves(c)) {
      if (seconds_since(start_) + load_seconds_ > budget()) return Measurement{};
      const Result<void> loaded = load(c);
      // The model may not be dealt to so many.
      const bool other_split = c.gpu.tensor_parallel_size != config_.gpu.tensor_parallel_size ||
                               c.gpu.pipeline_parallel_size != config_.gpu.pipeline_parallel_size;
      if (!loaded && loaded.error().code != ErrorCode::kMemory && !other_split) return loaded.error();
      if (!loaded) return Measurement{.failure = loaded.error().message};
    }
    EngineOptions options = engine_options(c, checkpoint_);
    options.max_queue = std::numeric_limits<int>::max();
    options.queue_timeout = options.timeout = 0;
    options.event_log.clear();
    Engine engine(std::make_unique<LimitedRunner>(*loaded_.runner, c.gpu.max_num_seqs), options);
    if (!requests_) return first_run(engine);
    const RunLimits limits{.requests = requests_, .seconds = seconds};
    return run_workload(engine, *workload_, limits, hooks_.interrupted);
  }

  // As many requests as can be sent in a share of the budget: all later runs have the same ones.
  Result<Measurement> first_run(Engine& engine) {
    const RunLimits limits{.send_seconds = std::min(budget() * kSendShare, kLongestSend),
                           .seconds = budget() * kFirstShare};
    DI_ASSIGN(const Measurement m, run_workload(engine, *workload_, limits, hooks_.interrupted));
    if (!m.complete)
      return make_error(
          ErrorCode::kConfig,
          "tune: {} requests at a time take longer than {:.0f} s, too long for a search of {:g} minutes: "
          "give more --minutes (several times as many), a lower --concurrency or a smaller workload",
          workload_->concurrency(), limits.seconds, options_.minutes);
    requests_ = m.requests;
    note(fmt::format("a run: {} requests, {:.1f} s with the settings to start from", m.requests, m.seconds));
    return m;
  }

  const Config& config_;
  const TuneOptions& options_;
  const TuneHooks& hooks_;
  const Clock::time_point start_;
  Checkpoint checkpoint_;
  LoadedRunner loaded_;
  Config loaded_config_;
  double load_seconds_ = 0;
  std::optional<Workload> workload_;
  std::optional<int> requests_;
  TuneResult result_;
};

}  // namespace

Result<Slo> parse_slo(const std::string& text) {
  Slo slo;
  std::string_view rest = text;
  const auto wrong = [&](std::string_view part) {
    return make_error(ErrorCode::kConfig,
                      "--slo: got '{}', expected seconds for ttft, itl or both, as in ttft=0.5,itl=0.05",
                      shown(part));
  };
  if (rest.empty()) return wrong(rest);
  while (!rest.empty()) {
    const size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view part = rest.substr(0, comma);
    if (comma + 1 == rest.size()) return wrong(rest);
    rest.remove_prefix(std::min(comma + 1, rest.size()));
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos) return wrong(part);
    const std::string_view name = part.substr(0, equals), number = part.substr(equals + 1);
    double value = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
    double* const limit = name == "ttft" ? &slo.ttft : name == "itl" ? &slo.itl : nullptr;
    if (limit == nullptr || *limit != 0 || error != std::errc() || end != number.data() + number.size() ||
        !std::isfinite(value) || value <= 0)
      return wrong(part);
    *limit = value;
  }
  return slo;
}

std::vector<Axis> axes_for(const Config& config, const TuneMachine& machine, int concurrency) {
  std::vector<Axis> axes = {ladder("gpu.max_num_seqs", {2, 4, 8, 16, 32, 64, 128, 256, 384, 512, 768, 1024},
                                   config.gpu.max_num_seqs, concurrency)};
  // Without chunks a step must hold the longest prompt.
  if (config.gpu.enable_chunked_prefill)
    axes.push_back(ladder("gpu.max_num_batched_tokens", {256, 512, 1024, 2048, 4096, 8192, 16384},
                          config.gpu.max_num_batched_tokens, std::numeric_limits<int>::max()));
  const auto dealt = [&](const char* key, int start) {
    std::vector<std::string> sizes;
    for (int n = 1; n <= machine.devices; n *= 2) sizes.push_back(std::to_string(n));
    if (machine.devices > 1) axes.push_back(make_axis(key, std::move(sizes), std::to_string(start)));
  };
  dealt("gpu.tensor_parallel_size", config.gpu.tensor_parallel_size);
  if (!machine.gpu) dealt("gpu.pipeline_parallel_size", config.gpu.pipeline_parallel_size);
  if (machine.gpu) {
    axes.push_back(
        {"gpu.enforce_eager", {"false", "true"}, config.gpu.enforce_eager ? size_t{1} : size_t{0}});
    if (config.gpu.kv_cache_memory_bytes == 0)
      axes.push_back(make_axis("gpu.gpu_memory_utilization", {"0.85", "0.88", "0.90", "0.92", "0.95"},
                               fmt::format("{:.2f}", config.gpu.gpu_memory_utilization)));
    return axes;
  }
  const MachineLimits limits = machine_limits();
  const int threads = config.cpu.threads != 0 ? config.cpu.threads : limits.threads;
  if (limits.affinity > 1) {
    std::vector<std::string> values;
    for (const int n : {limits.threads / 2, limits.threads, limits.affinity})
      if (n > 0) values.push_back(std::to_string(n));
    axes.push_back(make_axis("cpu.threads", std::move(values), std::to_string(threads)));
  }
  return axes;
}

Result<TuneResult> tune(const Config& config, const TuneOptions& options, const TuneHooks& hooks) {
  return Session(config, options, hooks).run();
}

}  // namespace deepinfer::tune
