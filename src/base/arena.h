// A bump allocator over one block of memory: nothing is allocated per step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "deepinfer/result.h"

namespace deepinfer {

// Anonymous memory from mmap, in huge pages where the system grants them; touched pages only count. Zeroed.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  // kMemory when the system refuses.
  static Result<Buffer> allocate(size_t bytes);

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  friend class BufferSlab;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::shared_ptr<const Buffer> map_;  // whose memory this is, if it is a piece of another
};

// Many buffers cut out of few large maps, so that small ones stand in huge pages too. A buffer keeps its map
// alive; the slab may go before it. Not for several threads at once.
class BufferSlab {
 public:
  // 64-byte aligned and zeroed, like any Buffer.
  Result<Buffer> allocate(size_t bytes);

 private:
  std::shared_ptr<const Buffer> map_;
  size_t used_ = 0;
};

// Owner: whoever made it. Not for several threads at once.
class Arena {
 public:
  Arena() = default;
  explicit Arena(Buffer buffer) : buffer_(std::move(buffer)) {}

  // 64-byte aligned. Throws InternalError when the arena is full: its size was computed from the largest
  // step.
  void* allocate(size_t bytes);
  template <class T>
  T* allocate_n(size_t n) {
    return static_cast<T*>(allocate(n * sizeof(T)));
  }

  size_t used() const { return used_; }
  size_t capacity() const { return buffer_.size(); }
  void reset(size_t mark = 0) { used_ = mark; }

 private:
  Buffer buffer_;
  size_t used_ = 0;
};

}  // namespace deepinfer
