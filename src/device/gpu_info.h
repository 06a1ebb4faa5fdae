// What is known about the GPUs of this machine. Plain data; a fact that nobody could tell stays unset.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace deepinfer {

struct ComputeCapability {
  int major = 0;
  int minor = 0;
  auto operator<=>(const ComputeCapability&) const = default;
};

struct GpuProcess {
  uint32_t pid = 0;
  std::optional<uint64_t> bytes;  // of the GPU's memory
  std::string name;               // empty: not readable (another user's, or outside this container)
};

// What makes a card slower than it was made, or untrustworthy.
struct GpuHealth {
  std::optional<uint64_t> throttle_reasons;       // NVML's bits of why the clock is not higher
  std::optional<int> clock, max_clock;            // MHz of the multiprocessors
  std::optional<double> default_power_limit;      // watts
  std::optional<bool> ecc;                        // memory with error correction
  std::optional<uint64_t> uncorrected_errors;     // of it, since the driver was loaded
  std::optional<bool> persistence;                // the driver stays loaded when nobody uses the card
  std::optional<int> link_width, max_link_width;  // lanes of PCIe
};

struct GpuInfo {
  int id = 0;              // the N of `cuda:N`: its place among the visible GPUs, counted from 0
  std::string name;        // as the driver says: "NVIDIA GeForce RTX 5090"; empty: unknown
  std::string uuid;        // "GPU-..." or "MIG-..."; empty: unknown
  std::string pci_bus_id;  // "00000000:01:00.0"; empty: unknown
  std::optional<uint64_t> total_bytes;
  std::optional<uint64_t> free_bytes;
  std::optional<ComputeCapability> capability;
  std::optional<int> utilization;     // percent of the last sample period in which a kernel ran
  std::optional<int> temperature;     // degrees Celsius
  std::optional<double> power;        // watts
  std::optional<double> power_limit;  // watts
  std::vector<GpuProcess> processes;  // those that hold memory, largest first
  std::string problem;                // why this GPU cannot be used; empty: it can
  std::optional<GpuHealth> health;    // unset: nobody asked
  // Ids of the others whose memory it reads directly (NVLink, PCIe); unset: nobody asked.
  std::optional<std::vector<int>> peers;
};

// A library that is loaded at run time.
struct LibraryInfo {
  std::string name;           // "NCCL"
  std::string version, path;  // of the file that is taken
  std::string problem;        // why there is none; empty: there is one
};

struct GpuReport {
  std::vector<GpuInfo> gpus;                  // the visible ones, in the order of their ids
  std::optional<std::string> driver_version;  // "580.82.07"
  std::optional<int> cuda_version;            // the newest that the driver runs: 13000 for 13.0
  bool nvml = false;                          // NVML was there to be asked
  std::string message;                        // why there is no usable GPU; empty: there is one
  std::vector<LibraryInfo> libraries;         // that were asked for
};

// "12.0"; "13.0" for 13000.
std::string to_string(ComputeCapability capability);
std::string cuda_version_text(int version);

}  // namespace deepinfer
