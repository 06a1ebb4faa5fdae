// gpu.device: which device a process runs on, and what is said when it cannot be.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/result.h"
#include "device/gpu_info.h"

namespace deepinfer {

struct DeviceChoice {
  std::optional<GpuInfo> gpu;         // unset: the CPU
  std::string reason;                 // with auto: why it is the CPU, for the log; else empty
  int others = 0;                     // further GPUs that could be used
  std::vector<GpuInfo> visible = {};  // all that were detected, where one was chosen
};

// `setting`: auto, cpu, cuda or cuda:N. auto takes the first usable GPU, else the CPU; the others get what
// they name or kMemory. `cuda_built`: whether this program has a CUDA backend.
Result<DeviceChoice> choose_device(std::string_view setting, const GpuReport& report, bool cuda_built);

// What to say of the GPUs that are left over when a model has been loaded on one; empty when there are none.
// `peer_access`: whether that one reads the memory of any of them directly; unset: unknown.
std::string other_gpus_text(int others, std::optional<bool> peer_access);

// True when the answer can depend on the GPUs of this machine, so that they must be detected.
bool wants_detection(std::string_view setting, bool cuda_built);

}  // namespace deepinfer
