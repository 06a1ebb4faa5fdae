// Events that are used again: one is recorded a step.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "backend/cuda/error.h"

namespace deepinfer::cuda {

// Used by the thread that owns the Gpu. An event that is held keeps its pool alive.
class EventPool {
 public:
  EventPool() = default;
  EventPool(const EventPool&) = delete;
  ~EventPool() {
    for (cudaEvent_t e : free_) (void)cudaEventDestroy(e);
  }

  static std::shared_ptr<void> take(const std::shared_ptr<EventPool>& pool) {
    cudaEvent_t e = nullptr;
    if (pool->free_.empty()) {
      // Room for its return, which must not throw.
      pool->free_.reserve(++pool->made_);
      DI_CUDA_CHECK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    } else {
      e = pool->free_.back();
      pool->free_.pop_back();
    }
    return {e, [pool](void* p) { pool->free_.push_back(static_cast<cudaEvent_t>(p)); }};
  }

 private:
  std::vector<cudaEvent_t> free_;
  size_t made_ = 0;
};

}  // namespace deepinfer::cuda
