// A lock between processes, the one that huggingface_hub takes: flock on a file below .locks.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>

#include "deepinfer/result.h"

namespace deepinfer::hub {

// Held while it lives. The file stays: another process may wait at it.
class FileLock {
 public:
  ~FileLock();
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&&) = delete;

  // Makes the folder and the file. Nothing when another process holds it. kModel: the file cannot be made.
  static Result<std::optional<FileLock>> try_take(const std::filesystem::path& file);

  // Waits for it; `waiting` is called once if it must, `stop` ends the wait with kCancelled.
  static Result<FileLock> take(const std::filesystem::path& file, const std::function<void()>& waiting,
                               const std::function<bool()>& stop);

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

}  // namespace deepinfer::hub
