#include "device/select.h"

#include <algorithm>
#include <charconv>

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr const char* kNoCuda =
    "this build has no CUDA backend (it was configured with DEEPINFER_CUDA=OFF, or no CUDA toolkit was "
    "found)";
constexpr const char* kOrCpu = "or use the CPU with gpu.device: cpu";

std::string ids_of(const GpuReport& report) {
  std::string out;
  for (const GpuInfo& gpu : report.gpus)
    out += fmt::format("{}cuda:{}{}", out.empty() ? "" : ", ", gpu.id,
                       gpu.name.empty() ? "" : " (" + gpu.name + ")");
  return out;
}

const GpuInfo* first_usable(const GpuReport& report) {
  const auto at = std::find_if(report.gpus.begin(), report.gpus.end(),
                               [](const GpuInfo& gpu) { return gpu.problem.empty(); });
  return at == report.gpus.end() ? nullptr : &*at;
}

DeviceChoice chosen(const GpuInfo& gpu, const GpuReport& report) {
  const auto usable = std::count_if(report.gpus.begin(), report.gpus.end(),
                                    [](const GpuInfo& g) { return g.problem.empty(); });
  return {gpu, "", static_cast<int>(usable) - 1, report.gpus};
}

Result<DeviceChoice> named_gpu(std::string_view setting, const GpuReport& report) {
  if (report.gpus.empty())
    return make_error(ErrorCode::kMemory, "gpu.device: got {}, but {}; {}", setting, report.message, kOrCpu);
  const GpuInfo* gpu = first_usable(report);
  if (setting.starts_with("cuda:")) {
    size_t n = report.gpus.size();
    std::from_chars(setting.data() + 5, setting.data() + setting.size(), n);
    if (n >= report.gpus.size())
      return make_error(
          ErrorCode::kMemory,
          "gpu.device: got {}, but CUDA sees {} GPU{} here (CUDA_VISIBLE_DEVICES counts): expected one of {}",
          setting, report.gpus.size(), report.gpus.size() == 1 ? "" : "s", ids_of(report));
    gpu = &report.gpus[n];
  }
  if (gpu == nullptr) gpu = &report.gpus.front();
  if (!gpu->problem.empty())
    return make_error(ErrorCode::kMemory, "gpu.device: got {}, but {}; {}", setting, gpu->problem, kOrCpu);
  return chosen(*gpu, report);
}

}  // namespace

bool wants_detection(std::string_view setting, bool cuda_built) {
  return cuda_built && setting != "cpu";
}

std::string other_gpus_text(int others, std::optional<bool> peer_access) {
  if (others < 1) return "";
  return fmt::format(
      "{} more GPU{} could be used{}. This model fits one card, so data parallel serves it best: a server on "
      "each card (gpu.device: cuda:N, or CUDA_VISIBLE_DEVICES), {}",
      others, others == 1 ? "" : "s",
      peer_access == false ? ", but no card reads another one's memory directly (no NVLink, no peer access "
                             "over PCIe)"
                           : "",
      peer_access == false ? "not tensor parallel, whose every layer would wait for copies through the host"
                           : "before tensor parallel is thought of");
}

Result<DeviceChoice> choose_device(std::string_view setting, const GpuReport& report, bool cuda_built) {
  if (setting == "cpu") return DeviceChoice{};
  if (!cuda_built) {
    if (setting == "auto") return DeviceChoice{std::nullopt, kNoCuda, 0};
    return make_error(ErrorCode::kMemory,
                      "gpu.device: got {}, but {}: build with CUDA, or set gpu.device to auto or cpu",
                      setting, kNoCuda);
  }
  if (setting != "auto") return named_gpu(setting, report);
  if (const GpuInfo* gpu = first_usable(report)) return chosen(*gpu, report);
  return DeviceChoice{std::nullopt, report.message, 0};
}

}  // namespace deepinfer
