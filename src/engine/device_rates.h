// What the device of a configuration does at best, measured.
#pragma once

#include <optional>

#include "backend/cuda_rates.h"
#include "deepinfer/config.h"
#include "deepinfer/result.h"

namespace deepinfer {

// Opens the GPU that gpu.device names, measures and closes it; nobody else should hold much of its memory.
// Unset: the device is the CPU, which is not measured. Nothing is thrown.
Result<std::optional<cuda::DeviceRates>> measure_device(const Config& config,
                                                        const cuda::RateSizes& sizes = {});

}  // namespace deepinfer
