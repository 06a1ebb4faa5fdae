// A report on GPUs as text: the JSON of GET /v1/gpu/info, and the table of `deepinfer gpu-info`.
#pragma once

#include <string>

#include "device/gpu_info.h"

namespace deepinfer {

// {"gpu_count", "gpus": [...], "message"}; `*_gb` in 1024^3 bytes, utilization in percent, temperature in
// degrees Celsius, power in watts; unknown values null. `detail` adds uuid, pci_bus_id, power_limit,
// processes, problem and peers to each GPU, and the libraries.
std::string gpu_json(const GpuReport& report, bool detail = false);

std::string gpu_table(const GpuReport& report);

// "python3 (pid 1234) 1.9 GiB, pid 77 (size unknown)"; the largest `most`; empty when nobody is known.
std::string processes_text(const GpuInfo& gpu, size_t most = 5);

}  // namespace deepinfer
