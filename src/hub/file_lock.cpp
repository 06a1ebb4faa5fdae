#include "hub/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "base/check.h"

namespace deepinfer::hub {
namespace {

Error failed(const std::filesystem::path& file, int code) {
  return make_error(ErrorCode::kModel, "{}: cannot be locked: {}", file.string(), std::strerror(code));
}

}  // namespace

FileLock::~FileLock() {
  if (fd_ >= 0) close(fd_);
}

FileLock::FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

Result<std::optional<FileLock>> FileLock::try_take(const std::filesystem::path& file) {
  std::error_code error;
  std::filesystem::create_directories(file.parent_path(), error);
  if (error) return failed(file, error.value());
  for (;;) {
    const int fd = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0664);
    if (fd < 0) return failed(file, errno);
    FileLock lock(fd);
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return std::optional<FileLock>();
      if (errno != EINTR) return failed(file, errno);
    }
    // Its last owner may have removed the file between the two calls: then this lock excludes nobody.
    struct stat held{}, there{};
    if (fstat(fd, &held) == 0 && stat(file.c_str(), &there) == 0 && held.st_ino == there.st_ino &&
        held.st_dev == there.st_dev)
      return std::optional<FileLock>(std::move(lock));
  }
}

Result<FileLock> FileLock::take(const std::filesystem::path& file, const std::function<void()>& waiting,
                                const std::function<bool()>& stop) {
  for (bool told = false;;) {
    DI_ASSIGN(std::optional<FileLock> lock, try_take(file));
    if (lock) return std::move(*lock);
    if (!told) waiting();
    told = true;
    if (stop()) return make_error(ErrorCode::kCancelled, "stopped");
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

}  // namespace deepinfer::hub
