// Whether a model fits the cards of this machine, before gigabytes of it are fetched.
#pragma once

#include <span>

#include "deepinfer/config.h"
#include "deepinfer/result.h"
#include "device/gpu_info.h"

namespace deepinfer {

// kMemory when the weights alone are more than the cards of these settings may take, with the splits and
// quantizations that fit. What is nearer than that only loading can tell, and what cannot be described (no
// such model, no network) whoever loads it says.
Result<void> check_fit(const Config& config);
Result<void> check_fit(const Config& config, std::span<const GpuInfo> gpus);

}  // namespace deepinfer
