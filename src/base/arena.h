// A bump allocator over one block of memory: nothing is allocated per step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

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

  // Memory of another kind (a device's), which `owner` gives back when the last buffer of it is gone.
  static Buffer adopt(std::byte* data, size_t bytes, std::shared_ptr<const void> owner);

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  friend class BufferSlab;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::shared_ptr<const void> owner_;  // whose memory this is, if not a map of its own
};

// Many buffers cut out of few large maps, so that small ones stand in huge pages too. A buffer keeps its map
// alive; the slab may go before it. Not for several threads at once.
class BufferSlab {
 public:
  // 64-byte aligned and zeroed, like any Buffer.
  Result<Buffer> allocate(size_t bytes);
  // Of all that was cut out, whether or not it is still held.
  size_t allocated() const { return allocated_; }

 private:
  std::shared_ptr<const Buffer> map_;
  size_t used_ = 0;  // of the map
  size_t allocated_ = 0;
};

// Owner: whoever made it. Not for several threads at once.
class Arena {
 public:
  Arena() = default;
  // `align`: of every piece, in bytes (a cache line; 256 on a GPU, what its matrix library assumes).
  explicit Arena(Buffer buffer, size_t align = 64) : buffer_(std::move(buffer)), align_(align) {}

  // Aligned as the arena is. Throws InternalError when the arena is full: its size was computed from the
  // largest step.
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
  size_t align_ = 64;
  size_t used_ = 0;
};

}  // namespace deepinfer
