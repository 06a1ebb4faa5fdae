#include "backend/cuda/staging.h"

#include <algorithm>
#include <bit>

#include "backend/cuda/parts.h"
#include "base/check.h"

namespace deepinfer::cuda {

Result<std::byte*> Staging::next(Gpu& gpu, size_t bytes) {
  DI_CHECK(bytes <= kSlotBytes, "staging: {} bytes asked for, a buffer has {}", bytes, kSlotBytes);
  Slot& slot = slots_[at_];
  if (slot.copied) gpu.wait(slot.copied);
  slot.copied = {};
  if (slot.buffer.size() < bytes) {
    slot.buffer = {};
    DI_ASSIGN(slot.buffer, gpu.allocate_pinned(std::max<size_t>(std::bit_ceil(bytes), 64 << 10)));
  }
  return slot.buffer.data();
}

void Staging::sent(Gpu& gpu) {
  slots_[at_].copied = gpu.record();
  at_ = (at_ + 1) % slots_.size();
}

void Staging::release(Gpu& gpu) {
  for (Slot& slot : slots_) {
    if (slot.copied) gpu.wait(slot.copied);
    slot = {};
  }
}

void want_staging(Gpu& gpu) {
  if (gpu.parts().staging == nullptr) gpu.parts().staging = std::make_shared<Staging>();
}

void release_staging(Gpu& gpu) {
  if (gpu.parts().staging == nullptr) return;
  gpu.parts().staging->release(gpu);
  gpu.parts().staging = nullptr;
}

void share_work(ThreadPool* pool, int64_t n, int64_t bytes,
                const std::function<void(int64_t, int64_t)>& work) {
  constexpr int64_t kWorthwhile = 1 << 20;
  if (pool == nullptr || pool->size() == 1 || bytes < kWorthwhile) return work(0, n);
  const int threads = pool->size();
  pool->run([&](int t) { work(n * t / threads, n * (t + 1) / threads); });
}

}  // namespace deepinfer::cuda
