#include "engine/device_rates.h"

#include <exception>

#include "base/check.h"
#include "engine/find_device.h"

namespace deepinfer {

Result<std::optional<cuda::DeviceRates>> measure_device(const Config& config, const cuda::RateSizes& sizes) {
  try {
    DeviceChoice choice;
    DI_ASSIGN(const std::unique_ptr<cuda::Gpu> gpu, open_device(config, choice));
    if (gpu == nullptr) return std::optional<cuda::DeviceRates>();
    DI_ASSIGN(cuda::DeviceRates rates, cuda::measure_rates(*gpu, sizes));
    return std::optional(std::move(rates));
  } catch (const std::exception& fault) {
    return make_error(ErrorCode::kInternal, "{}", fault.what());
  }
}

}  // namespace deepinfer
