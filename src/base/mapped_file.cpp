#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace deepinfer {

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

Result<MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const ErrorCode code = errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kModel;
    return make_error(code, "{}: cannot be opened ({})", path.string(), std::strerror(errno));
  }
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  struct stat st{};
  if (fstat(fd, &st) != 0)
    return make_error(ErrorCode::kModel, "{}: cannot be read ({})", path.string(), std::strerror(errno));
  if (!S_ISREG(st.st_mode)) return make_error(ErrorCode::kModel, "{}: not a regular file", path.string());
  if (st.st_size == 0) return make_error(ErrorCode::kModel, "{}: the file is empty", path.string());
  void* p = mmap(nullptr, static_cast<size_t>(st.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
  if (p == MAP_FAILED)
    return make_error(ErrorCode::kModel, "{}: cannot be mapped ({})", path.string(), std::strerror(errno));
  MappedFile f;
  f.data_ = static_cast<const std::byte*>(p);
  f.size_ = static_cast<size_t>(st.st_size);
  f.path_ = path;
  return f;
}

void MappedFile::release_pages() const {
  if (data_ != nullptr) madvise(const_cast<std::byte*>(data_), size_, MADV_DONTNEED);
}

}  // namespace deepinfer
