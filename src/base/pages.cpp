#include "base/pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>

namespace deepinfer {

size_t resident_bytes(const void* data, size_t bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  auto* begin = const_cast<std::byte*>(static_cast<const std::byte*>(data));
  std::array<unsigned char, size_t{1} << 14> there{};  // a page each
  size_t pages = 0;
  for (size_t at = 0; at < bytes; at += there.size() * page) {
    const size_t length = std::min(there.size() * page, bytes - at);
    if (mincore(begin + at, length, there.data()) != 0) return bytes;  // the system does not say
    const auto end = there.begin() + static_cast<int64_t>((length + page - 1) / page);
    pages +=
        static_cast<size_t>(std::count_if(there.begin(), end, [](unsigned char p) { return (p & 1) != 0; }));
  }
  return std::min(pages * page, bytes);
}

size_t drop_pages(void* data, size_t bytes) {
  const size_t resident = resident_bytes(data, bytes);
  return bytes > 0 && madvise(data, bytes, MADV_DONTNEED) == 0 ? resident : 0;
}

}  // namespace deepinfer
