// The newest report on GPUs for many readers, asked of the driver at most once in a while.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>

#include "device/gpu_info.h"

namespace deepinfer {

// Any thread may call its methods.
class GpuMonitor {
 public:
  using Source = std::function<GpuReport()>;  // called by one thread at a time; may be slow
  using Time = std::chrono::steady_clock::time_point;

  explicit GpuMonitor(Source source, std::chrono::milliseconds lifetime = std::chrono::seconds(1));

  // A report that is young enough; null when refresh() has to get one. Never waits for the driver.
  std::shared_ptr<const GpuReport> fresh(Time now = std::chrono::steady_clock::now()) const;

  // Asks the source when the report is too old; those who come meanwhile wait and share the answer.
  std::shared_ptr<const GpuReport> refresh();

 private:
  const Source source_;
  const std::chrono::milliseconds lifetime_;
  std::mutex refreshing_;
  mutable std::mutex mutex_;
  std::shared_ptr<const GpuReport> report_;  // guarded by mutex_
  Time taken_;                               // guarded by mutex_
};

}  // namespace deepinfer
