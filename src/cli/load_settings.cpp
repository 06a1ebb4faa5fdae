#include "cli/load_settings.h"

#include "base/check.h"
#include "device/gpu_detector.h"
#include "engine/find_device.h"

namespace deepinfer {

Result<LoadedConfig> load_settings(const ConfigFlags& flags) {
  DI_ASSIGN(LoadedConfig loaded, flags.load());
  const Result<DeviceChoice> choice = find_device(loaded.config.gpu.device);
  if (!choice || !choice->gpu) return loaded;
  return flags.load(describe(*choice->gpu));
}

}  // namespace deepinfer
