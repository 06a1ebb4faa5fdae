#include "cli/estimate_command.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <charconv>
#include <cstdio>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/shown.h"
#include "cli/estimate_model.h"
#include "cli/exit_code.h"
#include "deepinfer/version.h"
#include "device/gpu_detector.h"
#include "device/known_gpus.h"
#include "engine/estimate.h"
#include "engine/find_device.h"

namespace deepinfer {
namespace {

namespace json = boost::json;

std::string size_text(int64_t bytes) {
  const auto b = static_cast<double>(bytes);
  if (b < 1024.0 * 1024.0) return fmt::format("{:.1f} KiB", b / 1024.0);
  if (b < 1024.0 * 1024.0 * 1024.0) return fmt::format("{:.1f} MiB", b / (1024.0 * 1024.0));
  return fmt::format("{:.2f} GiB", b / (1024.0 * 1024.0 * 1024.0));
}

// The GPU that was named, or the one of this machine that gpu.device means; none: the CPU.
Result<EstimateTarget> find_target(const EstimateOptions& o, const std::string& device) {
  EstimateTarget target{.count = o.count, .memory_bytes = machine_limits().memory_bytes};
  if (!o.gpu.empty() && !o.memory.empty())
    return make_error(ErrorCode::kConfig, "--gpu and --memory both say how large the device is: give one");
  if (!o.gpu.empty()) {
    DI_ASSIGN(const KnownGpu card, find_known_gpu(o.gpu));
    target.gpu =
        GpuInfo{.id = -1, .name = card.name, .total_bytes = card.bytes(), .capability = card.capability};
    return target;
  }
  if (!o.memory.empty()) {
    DI_ASSIGN(const int64_t bytes, parse_memory_size(o.memory));
    target.memory_bytes = bytes;
    if (device != "cpu")
      target.gpu = GpuInfo{.id = -1, .name = "a GPU", .total_bytes = static_cast<uint64_t>(bytes)};
    return target;
  }
  DI_ASSIGN(const DeviceChoice choice, find_device(device));
  if (choice.gpu && choice.gpu->total_bytes) target.gpu = choice.gpu;
  return target;
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

void print_text(const DescribedModel& model, const Estimate& e, bool gpu) {
  line("model", fmt::format("{}: {}", model.checkpoint.path.string(), shape_text(model.checkpoint.config)));
  line("read", model.source);
  line("device",
       fmt::format("{}{}: {}, of which {} may be used", e.count > 1 ? fmt::format("{} x ", e.count) : "",
                   e.device, size_text(e.total_bytes), size_text(e.usable_bytes)));
  line("weights", fmt::format("{}{}, {}", size_text(e.weight_bytes), e.count > 1 ? " each" : "", e.weights));
  if (gpu)
    line("buffers, graphs", fmt::format("{}, predicted: loading measures them", size_text(e.buffer_bytes)));
  line("KV cache a token", fmt::format("{}, {}", size_text(e.kv_token_bytes), e.kv_dtype));
  if (e.count > 1)
    line("note", "as tensor parallelism would cut it; this version runs a model on one GPU only");
  if (e.fits()) return print_cache(e);
  fmt::print("\nIt does not fit: {}\n", e.problem);
  if (e.remedies.empty()) return;
  fmt::print("\nTried, and fits:\n");
  for (const std::string& remedy : e.remedies) fmt::print("  {}\n", remedy);
}

json::object to_json(const DescribedModel& model, const Estimate& e, bool gpu) {
  const ModelConfig& m = model.checkpoint.config;
  json::array sequences;
  for (const auto& [context, count] : e.sequences)
    sequences.push_back(json::object{{"context", context}, {"sequences", count}});
  json::object out{{"version", version()},
                   {"model", model.checkpoint.path.string()},
                   {"source", model.source},
                   {"architecture", m.arch},
                   {"device", e.device},
                   {"device_count", e.count},
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
  return out;
}

Result<int> run_estimate(const ConfigFlags& flags, const EstimateOptions& o) {
  DI_ASSIGN(LoadedConfig loaded, flags.load());
  set_log_level("warning");
  DI_ASSIGN(const EstimateTarget target, find_target(o, loaded.config.gpu.device));
  if (target.gpu) {
    DI_ASSIGN(loaded, flags.load(describe(*target.gpu)));
  } else if (o.count != 1) {
    return make_error(ErrorCode::kConfig, "--count: got {}, expected 1 on the CPU", o.count);
  }
  for (const std::string& warning : loaded.warnings) log::warn("{}", warning);
  DI_ASSIGN(DescribedModel model, describe_model(loaded.config));
  const auto config_for = [&](const GpuInfo& gpu) {
    const Result<LoadedConfig> other = flags.load(describe(gpu));
    return other ? other->config : loaded.config;
  };
  DI_ASSIGN(const Estimate e, estimate_with_remedies(loaded.config, model.checkpoint, target, config_for));
  if (o.json)
    fmt::print("{}\n", json::serialize(to_json(model, e, target.gpu.has_value())));
  else
    print_text(model, e, target.gpu.has_value());
  return e.fits() ? 0 : exit_code(ErrorCode::kMemory);
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
  app_->add_option("--count", options_.count, "GPUs that share the model")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app_->add_flag("--json", options_.json, "Print JSON");
}

std::optional<int> EstimateCommand::run() const {
  if (!app_->parsed()) return std::nullopt;
  const Result<int> code = run_estimate(flags_, options_);
  return code ? *code : report(code.error());
}

}  // namespace deepinfer
