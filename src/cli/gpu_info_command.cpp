#include "cli/gpu_info_command.h"

#include <fmt/format.h>

#include "device/gpu_detector.h"
#include "device/gpu_text.h"
#include "engine/find_device.h"

namespace deepinfer {

int gpu_info_command(bool json) {
  GpuReport report = GpuDetector().detect();
  add_cuda_facts(report);
  if (json)
    fmt::print("{}\n", gpu_json(report, true));
  else
    fmt::print("{}", gpu_table(report));
  return 0;
}

}  // namespace deepinfer
