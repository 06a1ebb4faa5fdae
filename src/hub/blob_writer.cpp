#include "hub/blob_writer.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/check.h"
#include "hub/cache.h"
#include "hub/model_ref.h"

namespace deepinfer::hub {
namespace {

namespace fs = std::filesystem;

constexpr size_t kReadBytes = 1 << 20;

bool is_full(int code) {
  return code == ENOSPC || code == EDQUOT || code == EFBIG;
}

// What this user may still write where `folder` is or will be.
uint64_t free_bytes(fs::path folder) {
  struct statvfs info{};
  while (statvfs(folder.c_str(), &info) != 0) {
    if (errno != ENOENT || !folder.has_relative_path()) return UINT64_MAX;  // the write itself will tell
    folder = folder.parent_path();
  }
  return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
}

}  // namespace

Result<void> check_space(const fs::path& folder, uint64_t bytes) {
  const uint64_t free = free_bytes(folder);
  if (bytes <= free) return {};
  return make_error(
      ErrorCode::kModel,
      "{}: the disk is too full: {} more are needed, {} are free, {} are missing; make room, or set "
      "HF_HUB_CACHE to another disk",
      folder.string(), size_text(bytes), size_text(free), size_text(bytes - free));
}

// SHA-256 of a large file; of a small one git's name of a blob, SHA-1 over a head and the bytes.
struct BlobWriter::Hash {
  explicit Hash(const RemoteFile& file) : context(EVP_MD_CTX_new()) {
    DI_CHECK(context != nullptr, "no memory for a hash");
    const bool sha256 = file.etag.size() == 64;
    DI_CHECK(EVP_DigestInit_ex(context, sha256 ? EVP_sha256() : EVP_sha1(), nullptr) == 1, "no hash");
    if (sha256) return;
    const std::string head = fmt::format("blob {}", file.size);
    update({head.c_str(), head.size() + 1});
  }
  ~Hash() { EVP_MD_CTX_free(context); }
  Hash(const Hash&) = delete;

  void update(std::string_view bytes) { EVP_DigestUpdate(context, bytes.data(), bytes.size()); }

  std::string hex() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned length = 0;
    EVP_DigestFinal_ex(context, digest.data(), &length);
    std::string out;
    for (unsigned i = 0; i < length; ++i) out += fmt::format("{:02x}", digest[i]);
    return out;
  }

  EVP_MD_CTX* context;
};

BlobWriter::BlobWriter(fs::path path, const RemoteFile& file, int fd)
    : path_(std::move(path)), file_(file), fd_(fd), hash_(std::make_unique<Hash>(file)) {}

BlobWriter::~BlobWriter() {
  if (fd_ >= 0) close(fd_);
}

BlobWriter::BlobWriter(BlobWriter&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::move(other.file_)),
      fd_(std::exchange(other.fd_, -1)),
      size_(other.size_),
      resumed_(other.resumed_),
      hash_(std::move(other.hash_)) {}

Error BlobWriter::failed(const char* what, int code) const {
  if (!is_full(code))
    return make_error(ErrorCode::kModel, "{}: cannot be {}: {}", path_.string(), what, std::strerror(code));
  return make_error(
      ErrorCode::kModel,
      "{}: the disk is full ({}): {} of {} are there, {} are missing; make room and pull again, it goes "
      "on where it stopped",
      path_.string(), std::strerror(code), size_text(size_), size_text(file_.size),
      size_text(file_.size - size_));
}

Result<BlobWriter> BlobWriter::open(fs::path incomplete, const RemoteFile& file,
                                    const std::function<bool()>& stop) {
  std::error_code error;
  fs::create_directories(incomplete.parent_path(), error);
  if (error)
    return make_error(ErrorCode::kModel, "{}: cannot be made: {}", incomplete.parent_path().string(),
                      error.message());
  const int fd = ::open(incomplete.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd < 0)
    return make_error(ErrorCode::kModel, "{}: cannot be opened: {}", incomplete.string(),
                      std::strerror(errno));
  BlobWriter writer(std::move(incomplete), file, fd);
  struct stat info{};
  if (fstat(fd, &info) != 0) return writer.failed("read", errno);
  const auto there = static_cast<uint64_t>(info.st_size);
  if (there > file.size) {
    DI_TRY(writer.restart());
  } else if (there > 0) {
    DI_TRY(writer.hash_beginning(there, stop));
    writer.resumed_ = true;
  }
  return writer;
}

Result<void> BlobWriter::hash_beginning(uint64_t bytes, const std::function<bool()>& stop) {
  std::vector<char> buffer(kReadBytes);
  while (size_ < bytes) {
    if (stop()) return make_error(ErrorCode::kCancelled, "stopped");
    const ssize_t n = pread(fd_, buffer.data(), buffer.size(), static_cast<off_t>(size_));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return failed("read", n < 0 ? errno : EIO);
    hash_->update({buffer.data(), static_cast<size_t>(n)});
    size_ += static_cast<uint64_t>(n);
  }
  return {};
}

Result<void> BlobWriter::append(std::string_view bytes) {
  DI_CHECK(bytes.size() <= file_.size - size_, "{} bytes after {} of {}", bytes.size(), size_, file_.size);
  while (!bytes.empty()) {
    const ssize_t n = pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(size_));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return failed("written", n < 0 ? errno : ENOSPC);
    const auto written = static_cast<size_t>(n);
    hash_->update(bytes.substr(0, written));
    bytes.remove_prefix(written);
    size_ += written;
  }
  return {};
}

Result<void> BlobWriter::restart() {
  if (ftruncate(fd_, 0) != 0) return failed("emptied", errno);
  size_ = 0;
  resumed_ = false;
  hash_ = std::make_unique<Hash>(file_);
  return {};
}

Result<void> BlobWriter::finish(const fs::path& blob, bool& wrong_hash) {
  DI_CHECK(size_ == file_.size, "{} of {} bytes", size_, file_.size);
  const std::string hash = hash_->hex();
  wrong_hash = hash != file_.etag;
  std::error_code error;
  if (wrong_hash) {
    fs::remove(path_, error);
    return make_error(
        ErrorCode::kModel,
        "{}: what came is not the file: its hash is {}, expected {}; it was removed. Pull again; when it "
        "happens again, a proxy or a mirror (HF_ENDPOINT) changes the file",
        file_.name, hash, file_.etag);
  }
  if (fsync(fd_) != 0) return failed("written", errno);
  fs::rename(path_, blob, error);
  if (error) return failed("renamed", error.value());
  sync_folder(blob.parent_path());
  return {};
}

}  // namespace deepinfer::hub
