#include "base/arena.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

Buffer::~Buffer() {
  if (data_ != nullptr) munmap(data_, size_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
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

void* Arena::allocate(size_t bytes) {
  const size_t start = (used_ + kAlign - 1) / kAlign * kAlign;
  DI_CHECK(start + bytes <= buffer_.size(), "arena: {} bytes asked for, {} of {} left", bytes,
           buffer_.size() - std::min(start, buffer_.size()), buffer_.size());
  used_ = start + bytes;
  return buffer_.data() + start;
}

}  // namespace deepinfer
