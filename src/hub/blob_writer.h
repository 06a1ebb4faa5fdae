// A file on its way into the cache: written in order, hashed while it is written, renamed when it is right.
// What is on disk is always the file's beginning, so any later program can go on from there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "deepinfer/result.h"
#include "hub/repo_info.h"

namespace deepinfer::hub {

// Used by one thread at a time, which holds the lock of the blob (file_lock.h).
class BlobWriter {
 public:
  ~BlobWriter();
  BlobWriter(BlobWriter&&) noexcept;
  BlobWriter& operator=(BlobWriter&&) = delete;

  // Opens or makes `incomplete`, and hashes what an earlier try left in it. kModel; kCancelled by `stop`.
  static Result<BlobWriter> open(std::filesystem::path incomplete, const RemoteFile& file,
                                 const std::function<bool()>& stop);

  uint64_t size() const { return size_; }
  bool resumed() const { return resumed_; }  // it had a beginning when it was opened

  // kModel when the disk is full: what is missing, and that it can be resumed.
  Result<void> append(std::string_view bytes);

  // Back to an empty file.
  Result<void> restart();

  // Checks size and hash, makes the file last, and gives it its name. A wrong file is removed: kModel, and
  // `wrong_hash` tells it from other errors.
  Result<void> finish(const std::filesystem::path& blob, bool& wrong_hash);

 private:
  struct Hash;
  BlobWriter(std::filesystem::path path, const RemoteFile& file, int fd);
  Result<void> hash_beginning(uint64_t bytes, const std::function<bool()>& stop);
  Error failed(const char* what, int code) const;

  std::filesystem::path path_;
  RemoteFile file_;
  int fd_ = -1;
  uint64_t size_ = 0;
  bool resumed_ = false;
  std::unique_ptr<Hash> hash_;
};

// kModel unless the file system of `folder` (or of its first existing parent) has room for `bytes` more.
Result<void> check_space(const std::filesystem::path& folder, uint64_t bytes);

}  // namespace deepinfer::hub
