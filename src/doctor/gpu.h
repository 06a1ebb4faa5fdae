// Cards, driver and libraries: what NVML and CUDA said, judged.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/config.h"
#include "device/gpu_info.h"
#include "doctor/finding.h"

namespace deepinfer::doctor {

// `built_for`: cards that the build has code for ("80 89 90a 120f"), empty without CUDA.
Finding check_build(std::string_view built_for, const GpuReport& report, const Config::Gpu& settings);
// Driver, and what else keeps all cards from being used.
Finding check_driver(const GpuReport& report, const Config::Gpu& settings);
std::vector<Finding> check_libraries(const GpuReport& report);

// Of one card. `weights`: bytes of the model; 0: unknown.
std::vector<Finding> check_gpu(const GpuInfo& gpu, std::string_view built_for, const Config::Gpu& settings,
                               size_t weights);

}  // namespace deepinfer::doctor
