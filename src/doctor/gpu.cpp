#include "doctor/gpu.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <sstream>
#include <utility>

#include "device/gpu_detector.h"
#include "device/gpu_text.h"
#include "engine/memory_plan.h"

namespace deepinfer::doctor {
namespace {

constexpr const char* kDriver = "NVIDIA driver";
constexpr int kHot = 83;                // degrees, where consumer cards begin to slow down
constexpr double kLowLimit = 0.9;       // of the power that the card was made for
constexpr double kOthersMemory = 0.05;  // of the card's

std::string topic_of(const GpuInfo& gpu, const char* what) {
  return fmt::format("GPU {} {}", gpu.id, what);
}

bool wants_gpu(const Config::Gpu& settings) {
  return settings.device.starts_with("cuda");
}

// As a problem where a GPU was asked for by name; where the CPU would be taken instead, it is only told.
Finding missing(const char* topic, std::string text, std::string command, const Config::Gpu& settings) {
  if (wants_gpu(settings)) return problem(topic, std::move(text), std::move(command));
  return ok(topic, std::move(text) + "; models run on the CPU");
}

// "90a" is for 9.0 alone, "120f" for 12.x, "89" for 8.9 and later of 8.
bool has_code_for(std::string_view built_for, ComputeCapability card) {
  std::istringstream words{std::string(built_for)};
  for (std::string word; words >> word;) {
    int number = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
    if (error != std::errc{}) continue;
    const ComputeCapability code{number / 10, number % 10};
    const std::string_view kind(end, static_cast<size_t>(word.data() + word.size() - end));
    if (kind == "a" ? code == card : code.major == card.major && code <= card) return true;
  }
  return false;
}

std::optional<Finding> check_capability(const GpuInfo& gpu, std::string_view built_for) {
  if (!gpu.capability || built_for.empty() || has_code_for(built_for, *gpu.capability)) return {};
  return warning(
      topic_of(gpu, "kernels"),
      fmt::format("this build has code for {}, not for {}: the driver compiles the oldest one's at the "
                  "first start, which takes minutes, and faster paths are missing",
                  built_for, to_string(*gpu.capability)),
      fmt::format("./quickstart.sh -- --help (build here), or cmake --preset release "
                  "-DDEEPINFER_CUDA_ARCHITECTURES={}{}",
                  gpu.capability->major, gpu.capability->minor));
}

MemoryRequest request_of(const GpuInfo& gpu, const Config::Gpu& settings) {
  MemoryRequest request;
  request.utilization = settings.gpu_memory_utilization;
  request.kv_cache_memory_bytes = settings.kv_cache_memory_bytes;
  request.gpu = fmt::format("GPU {} ({})", gpu.id, gpu.name);
  request.holders = processes_text(gpu);
  request.quantization_possible = true;
  return request;
}

// With the engine's own arithmetic and words.
Finding check_memory(const GpuInfo& gpu, const Config::Gpu& settings, size_t weights) {
  const std::string topic = topic_of(gpu, "memory");
  if (!gpu.total_bytes || !gpu.free_bytes) return ok(topic, "unknown");
  const MemoryRequest request = request_of(gpu, settings);
  Result<void> fits = check_free_memory(*gpu.free_bytes, *gpu.total_bytes, request);
  if (fits && weights > 0) fits = check_weights(weights, *gpu.free_bytes, *gpu.total_bytes, request);
  const std::string held = gpu.processes.empty() ? "" : fmt::format("; held by {}", processes_text(gpu));
  const std::string end_it = gpu.processes.empty() ? "" : fmt::format("kill {}", gpu.processes.front().pid);
  if (!fits)
    return gpu.problem.empty() ? problem(topic, fits.error().message, end_it)
                               : warning(topic, fits.error().message);
  const std::string text = fmt::format("{} free of {}{}", size_text(static_cast<int64_t>(*gpu.free_bytes)),
                                       size_text(static_cast<int64_t>(*gpu.total_bytes)), held);
  const uint64_t used = *gpu.total_bytes - std::min(*gpu.free_bytes, *gpu.total_bytes);
  if (gpu.processes.empty() ||
      static_cast<double>(used) < kOthersMemory * static_cast<double>(*gpu.total_bytes))
    return ok(topic, text);
  return warning(topic, text + ": what others hold is no KV cache, and they take the card's time too",
                 end_it);
}

// NVML's bits of why the clock is low; those that say no more than "idle" or "as set" are left out.
std::string throttle_text(uint64_t reasons) {
  constexpr std::pair<uint64_t, const char*> kReasons[] = {
      {0x04, "the power limit"},          {0x08, "the hardware's slowdown (heat, power supply)"},
      {0x20, "the temperature"},          {0x40, "the hardware's thermal limit"},
      {0x80, "the power supply's brake"},
  };
  std::string out;
  for (const auto& [bit, text] : kReasons)
    if (reasons & bit) out += (out.empty() ? "" : ", ") + std::string(text);
  return out;
}

std::optional<Finding> check_clocks(const GpuInfo& gpu, const GpuHealth& health) {
  const std::string topic = topic_of(gpu, "clocks");
  const std::string reasons = throttle_text(health.throttle_reasons.value_or(0));
  const std::string clock = health.clock && health.max_clock
                                ? fmt::format("{} of {} MHz", *health.clock, *health.max_clock)
                                : "clock unknown";
  if (!reasons.empty())
    return warning(
        topic, fmt::format("{}, held down by {}", clock, reasons),
        fmt::format("nvidia-smi -i {} -q -d PERFORMANCE,TEMPERATURE,POWER; more air, or a higher limit with "
                    "nvidia-smi -pl",
                    gpu.id));
  if (gpu.temperature.value_or(0) >= kHot)
    return warning(topic, fmt::format("{}, {} C: the card is about to slow down", clock, *gpu.temperature),
                   fmt::format("nvidia-smi -i {} -q -d TEMPERATURE; more air for it", gpu.id));
  if (!health.throttle_reasons) return {};
  return ok(topic, clock + ", not held down");
}

std::optional<Finding> check_power(const GpuInfo& gpu, const GpuHealth& health) {
  if (!gpu.power_limit || !health.default_power_limit) return {};
  const std::string topic = topic_of(gpu, "power");
  const std::string text =
      fmt::format("limit {:.0f} W, made for {:.0f} W", *gpu.power_limit, *health.default_power_limit);
  if (*gpu.power_limit >= kLowLimit * *health.default_power_limit) return ok(topic, text);
  return warning(topic, text + ": prefill, which multiplies most, is slower",
                 fmt::format("sudo nvidia-smi -i {} -pl {:.0f}", gpu.id, *health.default_power_limit));
}

std::optional<Finding> check_ecc(const GpuInfo& gpu, const GpuHealth& health) {
  const std::string topic = topic_of(gpu, "ECC");
  if (health.uncorrected_errors.value_or(0) > 0)
    return problem(
        topic,
        fmt::format("{} errors of memory could not be corrected since the driver was loaded: answers may be "
                    "wrong, and programs end",
                    *health.uncorrected_errors),
        fmt::format("nvidia-smi -i {0} -q -d ECC,ROW_REMAPPER; sudo nvidia-smi -i {0} --gpu-reset; replace a "
                    "card that goes on so",
                    gpu.id));
  if (!health.ecc) return {};
  return ok(topic, *health.ecc ? "on, no errors" : "off");
}

std::optional<Finding> check_persistence(const GpuInfo& gpu, const GpuHealth& health) {
  if (!health.persistence) return {};
  const std::string topic = topic_of(gpu, "persistence");
  if (*health.persistence) return ok(topic, "on");
  return warning(
      topic, "off: without a program on the card the driver unloads it, and the next start waits for seconds",
      fmt::format("sudo nvidia-smi -i {} -pm 1", gpu.id));
}

std::optional<Finding> check_link(const GpuInfo& gpu, const GpuHealth& health) {
  if (!health.link_width || !health.max_link_width) return {};
  const std::string topic = topic_of(gpu, "PCIe");
  if (*health.link_width >= *health.max_link_width)
    return ok(topic, fmt::format("{} lanes", *health.link_width));
  return warning(topic,
                 fmt::format("{} of {} lanes: models load more slowly, and so do several cards together",
                             *health.link_width, *health.max_link_width),
                 "sudo lspci -vv | grep -i lnksta; put the card into another slot");
}

}  // namespace

Finding check_build(std::string_view built_for, const GpuReport& report, const Config::Gpu& settings) {
  const char* topic = "CUDA";
  if (!built_for.empty()) return ok(topic, fmt::format("built for compute capabilities {}", built_for));
  const char* command =
      "cmake --preset release -DDEEPINFER_CUDA=ON (a toolkit of CUDA 13 is needed; see docs/GPU.md)";
  if (wants_gpu(settings))
    return problem(
        topic, fmt::format("gpu.device is {}, but this build has no CUDA backend", settings.device), command);
  if (!report.gpus.empty())
    return warning(topic, "this machine has a GPU, but this build has no CUDA backend: models run on the CPU",
                   command);
  return ok(topic, "this build is for CPUs");
}

Finding check_driver(const GpuReport& report, const Config::Gpu& settings) {
  if (!report.message.empty())
    return missing(kDriver, report.message, "nvidia-smi (what it says is what the driver says)", settings);
  return ok(kDriver,
            fmt::format("{}, runs CUDA up to {}", report.driver_version.value_or("of unknown version"),
                        report.cuda_version ? cuda_version_text(*report.cuda_version) : "?"));
}

std::vector<Finding> check_libraries(const GpuReport& report) {
  std::vector<Finding> out;
  for (const LibraryInfo& library : report.libraries) {
    const bool several = library.name == "NCCL";
    if (library.problem.empty())
      out.push_back(ok(library.name, fmt::format("{} ({})", library.version, library.path)));
    else if (several && report.gpus.size() < 2)
      out.push_back(ok(library.name, "none, which one GPU does not need"));
    else
      out.push_back(
          warning(library.name, library.problem, "export DEEPINFER_CUDA_LIB_DIR=FOLDER_OF_THE_LIBRARY"));
  }
  return out;
}

std::vector<Finding> check_gpu(const GpuInfo& gpu, std::string_view built_for, const Config::Gpu& settings,
                               size_t weights) {
  std::vector<Finding> out;
  const std::string name = gpu.name.empty() ? "unknown card" : gpu.name;
  const std::string card =
      fmt::format("{}, compute capability {}", name, gpu.capability ? to_string(*gpu.capability) : "unknown");
  if (gpu.problem.empty())
    out.push_back(ok(topic_of(gpu, "card"), card));
  else
    out.push_back(warning(topic_of(gpu, "card"), fmt::format("cannot be used: {}", gpu.problem)));
  out.push_back(check_memory(gpu, settings, weights));
  const GpuHealth health = gpu.health.value_or(GpuHealth{});
  std::array<std::optional<Finding>, 6> rest = {check_capability(gpu, built_for), check_clocks(gpu, health),
                                                check_power(gpu, health),         check_ecc(gpu, health),
                                                check_persistence(gpu, health),   check_link(gpu, health)};
  for (std::optional<Finding>& finding : rest)
    if (finding) out.push_back(std::move(*finding));
  return out;
}

}  // namespace deepinfer::doctor
