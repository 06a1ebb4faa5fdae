// A file, read-only in memory.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

#include "deepinfer/result.h"

namespace deepinfer {

class MappedFile {
 public:
  MappedFile() = default;
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  // kNotFound or kModel with path and reason: missing, a folder, empty, unreadable.
  static Result<MappedFile> open(const std::filesystem::path& path);

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }
  void release_pages() const;  // madvise(DONTNEED): the data is still there, read again when touched

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::filesystem::path path_;
};

}  // namespace deepinfer
