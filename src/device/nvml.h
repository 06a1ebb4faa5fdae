// NVML, the driver's own library of facts about GPUs, loaded at run time. Declares what it calls by itself:
// the machines that build this have no nvml.h.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/shared_library.h"
#include "deepinfer/result.h"
#include "device/gpu_info.h"

namespace deepinfer {

// Initialized while it lives. NVML itself is thread-safe, and so is this.
class Nvml {
 public:
  struct Functions;
  using Handle = void*;  // a device of NVML, valid as long as the Nvml

  // kUnavailable with one line: no library, a library without the needed functions, or what its
  // initialization said (driver not loaded, versions that differ, no permission).
  static Result<Nvml> open(const std::vector<LibraryFolder>& folders);
  ~Nvml();
  Nvml(Nvml&&) noexcept;
  Nvml& operator=(Nvml&&) = delete;

  std::optional<std::string> driver_version() const;
  std::optional<int> cuda_version() const;

  // All GPUs of the machine in the order of their PCI addresses, which is nvidia-smi's.
  Result<int> count() const;
  Result<Handle> device(int index) const;
  Result<Handle> device(const std::string& uuid) const;  // MIG devices too

  std::string uuid(Handle device) const;  // empty: unknown
  // Every fact but `id`, `problem` and `health`; names of processes are not filled in.
  GpuInfo info(Handle device) const;
  GpuHealth health(Handle device) const;

 private:
  explicit Nvml(std::unique_ptr<Functions> functions);
  Error error(const char* what, int code) const;
  std::vector<GpuProcess> processes(Handle device) const;

  std::unique_ptr<Functions> functions_;  // null: moved from
};

}  // namespace deepinfer
