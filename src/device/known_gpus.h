// Cards that are not in this machine: what is known of them by name, for estimates. Facts about a card that
// is here come from the card.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "deepinfer/result.h"
#include "device/gpu_info.h"

namespace deepinfer {

struct KnownGpu {
  const char* name;  // as the driver says
  int mib;           // memory.total of nvidia-smi
  ComputeCapability capability;

  uint64_t bytes() const { return static_cast<uint64_t>(mib) << 20; }
};

// Ascending by memory.
std::span<const KnownGpu> known_gpus();

// By its name; case, "NVIDIA", "GeForce" and punctuation do not matter, and fewer words are enough where they
// leave one card ("5090", "h200"). kConfig: several cards fit (they are listed), or none (with the nearest).
Result<KnownGpu> find_known_gpu(std::string_view name);

}  // namespace deepinfer
