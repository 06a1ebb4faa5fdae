// The layer between the built-in values and the YAML file: what suits the device that was found.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace deepinfer {

struct DeviceDescription {
  bool gpu = false;           // false: the CPU
  std::string name;           // as the driver says: "NVIDIA GeForce RTX 5090"
  uint64_t memory_bytes = 0;  // of one GPU
};

struct DeviceSetting {
  std::string key;     // "gpu.max_num_seqs"
  std::string value;   // as text
  std::string origin;  // "this device (NVIDIA GeForce RTX 5090)"
};

// A pure function: docs/CONFIG.md describes the table that it follows.
std::vector<DeviceSetting> device_settings(const DeviceDescription& device);

}  // namespace deepinfer
