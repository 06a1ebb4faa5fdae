#include "device/gpu_monitor.h"

#include <utility>

namespace deepinfer {

GpuMonitor::GpuMonitor(Source source, std::chrono::milliseconds lifetime)
    : source_(std::move(source)), lifetime_(lifetime) {}

std::shared_ptr<const GpuReport> GpuMonitor::fresh(Time now) const {
  const std::lock_guard lock(mutex_);
  return report_ && now - taken_ < lifetime_ ? report_ : nullptr;
}

std::shared_ptr<const GpuReport> GpuMonitor::refresh() {
  const std::lock_guard one(refreshing_);
  if (auto report = fresh()) return report;
  auto report = std::make_shared<const GpuReport>(source_());
  const std::lock_guard lock(mutex_);
  report_ = report;
  taken_ = std::chrono::steady_clock::now();
  return report;
}

}  // namespace deepinfer
