// Uploads of weights: a ring of pinned buffers, filled by the host's threads while earlier ones are on their
// way.
#pragma once

#include <array>
#include <cstddef>
#include <functional>

#include "backend/cuda_gpu.h"
#include "base/thread_pool.h"

namespace deepinfer::cuda {

// Owner: the Gpu's parts; used on its thread. Pinned memory is taken at the first upload, more only for
// larger ones, and given back by release().
class Staging {
 public:
  static constexpr size_t kSlotBytes = size_t{16} << 20;  // at most

  // The next buffer, of at least `bytes` (at most kSlotBytes), once the copies out of it are done. kMemory.
  Result<std::byte*> next(Gpu& gpu, size_t bytes);
  // After the copies of the buffer of next() are in the stream.
  void sent(Gpu& gpu);
  // Waits for the copies.
  void release(Gpu& gpu);

 private:
  struct Slot {
    Buffer buffer;
    Event copied;
  };
  std::array<Slot, 4> slots_;
  size_t at_ = 0;
};

// Makes gpu.parts().staging if there is none.
void want_staging(Gpu& gpu);
// Gives the pinned memory of uploads back, when the weights are loaded.
void release_staging(Gpu& gpu);

// work(first, last) on shares of [0, n): by the pool's threads if there is a pool and enough to do.
void share_work(ThreadPool* pool, int64_t n, int64_t bytes,
                const std::function<void(int64_t, int64_t)>& work);

}  // namespace deepinfer::cuda
