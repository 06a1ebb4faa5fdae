#include "base/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr size_t kAlign = 64;  // of pieces of a slab: a cache line
constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

Buffer::~Buffer() {
  if (data_ != nullptr && owner_ == nullptr) munmap(data_, size_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      owner_(std::move(other.owner_)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(owner_, other.owner_);
  return *this;
}

Result<Buffer> Buffer::allocate(size_t bytes) {
  Buffer b;
  if (bytes == 0) return b;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    return make_error(ErrorCode::kMemory, "memory: the system refused {} bytes ({})", bytes,
                      std::strerror(errno));
  if (bytes >= kHugePage) madvise(p, bytes, MADV_HUGEPAGE);  // a wish: a refusal changes speed only
  b.data_ = static_cast<std::byte*>(p);
  b.size_ = bytes;
  return b;
}

Buffer Buffer::adopt(std::byte* data, size_t bytes, std::shared_ptr<const void> owner) {
  DI_CHECK(owner != nullptr || data == nullptr, "a buffer of {} adopted bytes without an owner", bytes);
  Buffer b;
  b.data_ = data;
  b.size_ = bytes;
  b.owner_ = std::move(owner);
  return b;
}

Result<Buffer> BufferSlab::allocate(size_t bytes) {
  constexpr size_t kMapBytes = size_t{64} << 20;  // of addresses: only touched pages count
  Buffer b;
  if (bytes == 0) return b;
  const size_t size = (bytes + kAlign - 1) / kAlign * kAlign;
  if (map_ == nullptr || map_->size() - used_ < size) {
    // Room to start on a huge page's boundary.
    DI_ASSIGN(Buffer map, Buffer::allocate(std::max(kMapBytes, size) + kHugePage));
    map_ = std::make_shared<const Buffer>(std::move(map));
    used_ = (kHugePage - reinterpret_cast<uintptr_t>(map_->data()) % kHugePage) % kHugePage;
  }
  b.data_ = map_->data() + used_;
  b.size_ = bytes;
  b.owner_ = map_;
  used_ += size;
  allocated_ += size;
  return b;
}

void* Arena::allocate(size_t bytes) {
  const size_t start = (used_ + align_ - 1) / align_ * align_;
  DI_CHECK(start + bytes <= buffer_.size(), "arena: {} bytes asked for, {} of {} left", bytes,
           buffer_.size() - std::min(start, buffer_.size()), buffer_.size());
  used_ = start + bytes;
  return buffer_.data() + start;
}

}  // namespace deepinfer
