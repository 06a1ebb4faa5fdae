// CUDA_VISIBLE_DEVICES as CUDA reads it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace deepinfer {

struct VisibleDevice {
  int index = -1;        // in NVML's order; -1: a MIG device, which its UUID names
  std::string mig_uuid;  // "MIG-..."
};

struct VisibleDevices {
  std::vector<VisibleDevice> devices;
  std::string message;  // what hides GPUs, when something does: the variable's value and why
};

// `uuids`: of all GPUs of the machine, in NVML's order. Entries are indices, UUIDs or unambiguous beginnings
// of UUIDs, or MIG UUIDs; the first that names no GPU ends the list, and one that repeats a GPU empties it.
VisibleDevices visible_devices(std::string_view variable, const std::vector<std::string>& uuids);

}  // namespace deepinfer
