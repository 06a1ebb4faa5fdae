#include "quantize/tensor_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "base/check.h"

namespace deepinfer::quantize {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

// A new file beside `path` that takes its place when all is on the disk.
class NewFile {
 public:
  explicit NewFile(const fs::path& path) : path_(path), part_(path.string() + ".new") {
    fd_ = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd_ < 0) error_ = errno;
  }
  ~NewFile() {
    if (fd_ >= 0) ::close(fd_);
    std::error_code ignored;
    if (!done_) fs::remove(part_, ignored);
  }
  NewFile(const NewFile&) = delete;

  void write(const void* data, size_t bytes) {
    const auto* at = static_cast<const std::byte*>(data);
    while (bytes > 0 && error_ == 0) {
      const ssize_t n = ::write(fd_, at, std::min<size_t>(bytes, 64 << 20));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) error_ = errno;
      if (n == 0) error_ = ENOSPC;
      if (n <= 0) return;
      at += n;
      bytes -= static_cast<size_t>(n);
    }
  }

  Result<void> finish() {
    if (error_ == 0 && ::fsync(fd_) != 0) error_ = errno;
    if (fd_ >= 0 && ::close(fd_) != 0 && error_ == 0) error_ = errno;
    fd_ = -1;
    std::error_code renaming;
    if (error_ == 0) fs::rename(part_, path_, renaming);
    if (error_ != 0 || renaming)
      return make_error(ErrorCode::kModel, "{}: cannot be written: {}", path_.string(),
                        renaming ? renaming.message() : std::strerror(error_));
    done_ = true;
    return {};
  }

 private:
  fs::path path_, part_;
  int fd_ = -1;
  int error_ = 0;
  bool done_ = false;
};

std::string header_of(const std::vector<TensorExtent>& tensors) {
  // "format": readers of Hugging Face's libraries ask for it.
  json::object header{{"__metadata__", {{"format", "pt"}}}};
  uint64_t at = 0;
  for (const TensorExtent& t : tensors) {
    header[t.name] = {
        {"dtype", t.dtype}, {"shape", json::value_from(t.shape)}, {"data_offsets", {at, at + t.bytes}}};
    at += t.bytes;
  }
  std::string text = json::serialize(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

}  // namespace

TensorExtent extent_of(const OutTensor& t) {
  return {t.name, t.dtype, t.shape, t.data.data(), t.data.size()};
}

Result<void> write_tensors(const fs::path& path, const std::vector<TensorExtent>& tensors) {
  const std::string header = header_of(tensors);
  const uint64_t size = header.size();
  NewFile file(path);
  file.write(&size, sizeof size);
  file.write(header.data(), header.size());
  for (const TensorExtent& t : tensors) file.write(t.data, t.bytes);
  return file.finish();
}

Result<void> write_bytes(const fs::path& path, const void* data, size_t bytes) {
  NewFile file(path);
  file.write(data, bytes);
  return file.finish();
}

Result<void> write_shards(const fs::path& folder, const std::vector<TensorExtent>& tensors,
                          uint64_t shard_bytes) {
  std::vector<std::vector<TensorExtent>> shards(1);
  uint64_t used = 0, total = 0;
  for (const TensorExtent& t : tensors) {
    if (used > 0 && used + t.bytes > shard_bytes) {
      shards.emplace_back();
      used = 0;
    }
    shards.back().push_back(t);
    used += t.bytes;
    total += t.bytes;
  }
  if (shards.size() == 1) return write_tensors(folder / "model.safetensors", shards.front());
  json::object map;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    for (const TensorExtent& t : shards[i]) map[t.name] = name;
    DI_TRY(write_tensors(folder / name, shards[i]));
  }
  const std::string index =
      json::serialize(json::object{{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}});
  return write_bytes(folder / "model.safetensors.index.json", index.data(), index.size());
}

}  // namespace deepinfer::quantize
