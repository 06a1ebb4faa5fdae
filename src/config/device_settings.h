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

// What suits a GPU, and why: "RTX 5090", "24 GB of memory".
struct RecommendedSettings {
  double gpu_memory_utilization = 0;
  int max_num_seqs = 0;
  int max_num_batched_tokens = 0;
  bool nvidia_5090_optimizations = false;
  std::string source;
};
RecommendedSettings recommended_settings(const DeviceDescription& device);

// By name. Laptop parts share it, but not the memory or the bandwidth: they are neither.
bool is_rtx_5090(const std::string& name);
bool is_rtx_4090(const std::string& name);

// Pure, as all of these: docs/CONFIG.md describes the table that they follow.
std::vector<DeviceSetting> device_settings(const DeviceDescription& device);

}  // namespace deepinfer
