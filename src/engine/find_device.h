// gpu.device, answered for this machine and this build.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/cuda_gpu.h"
#include "deepinfer/config.h"
#include "deepinfer/result.h"
#include "device/select.h"

namespace deepinfer {

// Asks NVML, and where that is missing CUDA itself; neither when the setting or the build leaves no choice.
// kMemory when the named device cannot be used.
Result<DeviceChoice> find_device(const std::string& setting);

// The cards that a model may be split over: all usable ones, from the one that the setting names on; none: it
// is the CPU. Their peers are filled in where CUDA tells. kMemory as find_device().
Result<std::vector<GpuInfo>> find_gpus(const std::string& setting);

// What is known of so many devices of CUDA when there is no NVML to ask: that they are there.
GpuReport without_nvml(GpuReport report, int device_count);

// That GPU, opened; null: the CPU, and the log says why. `choice.gpu` gets the facts that the device itself
// tells.
Result<std::unique_ptr<cuda::Gpu>> open_device(const Config& config, DeviceChoice& choice);

// Once a model stands on that GPU: what the other ones are good for, by whether they reach its memory.
void log_other_gpus(const DeviceChoice& choice);

// What CUDA knows besides NVML: the libraries that are loaded at run time, and which GPUs are peers. Nothing
// where there is no GPU.
void add_cuda_facts(GpuReport& report);

}  // namespace deepinfer
