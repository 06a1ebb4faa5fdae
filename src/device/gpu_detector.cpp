#include "device/gpu_detector.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <fstream>
#include <system_error>
#include <utility>

#include "base/log.h"
#include "device/visible_devices.h"

namespace deepinfer {
namespace {

// Empty: new enough, or nobody knows. A compatibility package makes an old driver run a newer CUDA, so the
// version of CUDA decides where it is known.
std::string old_driver(const GpuReport& report) {
  int branch = kNeededDriver;
  if (report.driver_version)
    std::from_chars(report.driver_version->data(),
                    report.driver_version->data() + report.driver_version->size(), branch);
  const bool old = report.cuda_version ? *report.cuda_version < kNeededCuda : branch < kNeededDriver;
  if (!old) return "";
  return fmt::format(
      "the NVIDIA driver {}{} is too old: expected {} or newer, which runs CUDA {}; update the driver",
      report.driver_version.value_or("(version unknown)"),
      report.cuda_version ? fmt::format(" (CUDA {})", cuda_version_text(*report.cuda_version)) : "",
      kNeededDriver, cuda_version_text(kNeededCuda));
}

std::string old_card(const GpuInfo& gpu) {
  if (!gpu.capability || *gpu.capability >= kNeededCapability) return "";
  return fmt::format("{} has compute capability {}, expected {} or newer (RTX 30 series, A100 and later)",
                     gpu.name.empty() ? fmt::format("GPU {}", gpu.id) : gpu.name, to_string(*gpu.capability),
                     to_string(kNeededCapability));
}

std::string first_line(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

}  // namespace

std::string to_string(ComputeCapability capability) {
  return fmt::format("{}.{}", capability.major, capability.minor);
}

std::string cuda_version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

DetectorOptions DetectorOptions::from_environment() {
  DetectorOptions options{.folders = library_folders()};
  if (const char* visible = std::getenv("CUDA_VISIBLE_DEVICES")) options.visible = visible;
  return options;
}

GpuDetector::GpuDetector(DetectorOptions options) : options_(std::move(options)) {}

std::string GpuDetector::why_no_nvml(const Error& error) const {
  if (error.code != ErrorCode::kUnavailable) return error.message;
  log::debug("{}", error.message);
  std::error_code ignored;
  if (std::filesystem::exists(options_.proc / "driver/nvidia/version", ignored))
    return "an NVIDIA driver is loaded, but its library libnvidia-ml.so.1 (NVML) is not to be found: in a "
           "container, ask for it with NVIDIA_DRIVER_CAPABILITIES=compute,utility";
  return "no NVIDIA driver was found (libnvidia-ml.so.1 is not there): install driver 580 or newer; a "
         "container must be started with its GPUs (docker run --gpus all)";
}

void GpuDetector::add_gpu(const Result<Nvml::Handle>& device, GpuReport& report) const {
  GpuInfo gpu;
  if (device) gpu = nvml_->info(*device);
  if (device && options_.health) gpu.health = nvml_->health(*device);
  gpu.id = static_cast<int>(report.gpus.size());
  if (!device)
    gpu.problem = device.error().message;
  else if (gpu.problem = old_driver(report); gpu.problem.empty())
    gpu.problem = old_card(gpu);
  for (GpuProcess& process : gpu.processes)
    process.name = first_line(options_.proc / std::to_string(process.pid) / "comm");
  report.gpus.push_back(std::move(gpu));
}

GpuReport GpuDetector::detect() {
  GpuReport report;
  if (!nvml_) {
    Result<Nvml> opened = Nvml::open(options_.folders);
    report.nvml = opened || opened.error().code != ErrorCode::kUnavailable;
    if (!opened) {
      report.message = why_no_nvml(opened.error());
      return report;
    }
    nvml_.emplace(std::move(*opened));
  }
  report.nvml = true;
  report.driver_version = nvml_->driver_version();
  report.cuda_version = nvml_->cuda_version();
  const Result<int> count = nvml_->count();
  if (!count) {
    report.message = count.error().message;
    return report;
  }
  std::vector<Result<Nvml::Handle>> devices;
  std::vector<std::string> uuids;
  for (int i = 0; i < *count; ++i) {
    devices.push_back(nvml_->device(i));
    uuids.push_back(devices.back() ? nvml_->uuid(*devices.back()) : "");
  }
  if (devices.empty()) {
    report.message = "the NVIDIA driver is loaded, but it sees no GPU";
  } else if (!options_.visible) {
    for (const auto& device : devices) add_gpu(device, report);
  } else {
    VisibleDevices visible = visible_devices(*options_.visible, uuids);
    for (const VisibleDevice& v : visible.devices)
      add_gpu(v.index >= 0 ? devices[static_cast<size_t>(v.index)] : nvml_->device(v.mig_uuid), report);
    if (report.gpus.empty()) report.message = std::move(visible.message);
  }
  bool usable = false;
  for (const GpuInfo& gpu : report.gpus) usable = usable || gpu.problem.empty();
  if (!usable && !report.gpus.empty()) report.message = report.gpus.front().problem;
  return report;
}

DeviceDescription describe(const GpuInfo& gpu) {
  return {.gpu = true, .name = gpu.name, .memory_bytes = gpu.total_bytes.value_or(0)};
}

}  // namespace deepinfer
