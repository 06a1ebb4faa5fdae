#include "cli/gpu_info_command.h"

#include <fmt/format.h>

#include "device/gpu_detector.h"
#include "device/gpu_text.h"

namespace deepinfer {

int gpu_info_command(bool json) {
  const GpuReport report = GpuDetector().detect();
  if (json)
    fmt::print("{}\n", gpu_json(report, true));
  else
    fmt::print("{}", gpu_table(report));
  return 0;
}

}  // namespace deepinfer
