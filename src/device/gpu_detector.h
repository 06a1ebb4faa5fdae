// Which GPUs this process can use, or why none.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/shared_library.h"
#include "config/device_settings.h"
#include "device/gpu_info.h"
#include "device/nvml.h"

namespace deepinfer {

// CUDA 13 wants a driver of this branch, and our kernels a card of this generation.
constexpr int kNeededCuda = 13000;
constexpr int kNeededDriver = 580;
constexpr ComputeCapability kNeededCapability{8, 0};

struct DetectorOptions {
  std::vector<LibraryFolder> folders;    // where NVML is looked for before the loader's path
  std::optional<std::string> visible;    // CUDA_VISIBLE_DEVICES; unset: all GPUs
  std::filesystem::path proc = "/proc";  // for the names of processes and the state of the driver
  bool health = false;                   // ask for GpuInfo::health too

  static DetectorOptions from_environment();
};

// One thread at a time. Keeps NVML open between calls.
class GpuDetector {
 public:
  explicit GpuDetector(DetectorOptions options = DetectorOptions::from_environment());

  // Asks the driver: usually a few milliseconds, more when it has to wake a card.
  GpuReport detect();

 private:
  std::string why_no_nvml(const Error& error) const;
  void add_gpu(const Result<Nvml::Handle>& device, GpuReport& report) const;

  const DetectorOptions options_;
  std::optional<Nvml> nvml_;
};

// What the settings of a device are chosen by.
DeviceDescription describe(const GpuInfo& gpu);

}  // namespace deepinfer
