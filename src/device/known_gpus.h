// Cards that are not in this machine: what is known of them by name, for estimates. Facts about a card that
// is here come from the card.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "deepinfer/result.h"
#include "device/gpu_info.h"

namespace deepinfer {

// What cards of one machine exchange data over.
struct CardLink {
  const char* name;
  double gb_per_second;  // in one direction, by its standard
  bool peer;             // they read each other's memory; false: copies go through the host
  bool nvlink;
};

struct KnownGpu {
  const char* name;  // as the driver says
  int mib;           // memory.total of nvidia-smi
  ComputeCapability capability;
  double gb_per_second;  // of its memory
  double tflops;         // of products of 16 bits; of FP8 twice as many from 8.9 on
  CardLink link;

  uint64_t bytes() const { return static_cast<uint64_t>(mib) << 20; }
};

// Ascending by memory.
std::span<const KnownGpu> known_gpus();

// The card that a driver's name ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB") means; none for cards that
// are not in the table, and for those of laptops, which share names but not speeds.
std::optional<KnownGpu> card_called(std::string_view name);

// By its name; case, "NVIDIA", "GeForce" and punctuation do not matter, and fewer words are enough where they
// leave one card ("5090", "h200"). kConfig: several cards fit (they are listed), or none (with the nearest).
Result<KnownGpu> find_known_gpu(std::string_view name);

}  // namespace deepinfer
