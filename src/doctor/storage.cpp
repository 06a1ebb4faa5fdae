#include "doctor/storage.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <system_error>

#include "base/check.h"

namespace deepinfer::doctor {

namespace fs = std::filesystem;

namespace {

constexpr size_t kChunk = 4 << 20;   // bytes of a read
constexpr size_t kAlignment = 4096;  // that reading around the page cache wants
constexpr double kSlowDisk = 200e6;  // bytes/s, what a SATA SSD exceeds
constexpr int64_t kLowSpace = int64_t{5} << 30;

struct File {
  int fd = -1;
  ~File() {
    if (fd >= 0) ::close(fd);
  }
};

fs::path largest_file(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) return path;
  fs::path best;
  uintmax_t most = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(path, ignored)) {
    const uintmax_t size = entry.is_regular_file(ignored) ? entry.file_size(ignored) : 0;
    if (size == static_cast<uintmax_t>(-1) || size <= most) continue;
    most = size;
    best = entry.path();
  }
  return best;
}

// Reads on until a limit; less than nothing: it failed.
int64_t read_until(int fd, char* buffer, int64_t max_bytes, double max_seconds, double& seconds) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  int64_t total = 0;
  do {
    const ssize_t n = ::read(fd, buffer, kChunk);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -1;
    if (n == 0) break;
    total += n;
    seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  } while (total < max_bytes && seconds < max_seconds);
  return total;
}

}  // namespace

Result<ReadSpeed> measure_read(const fs::path& path, int64_t max_bytes, double max_seconds) {
  const fs::path file = largest_file(path);
  const std::unique_ptr<char, decltype(&std::free)> buffer(
      static_cast<char*>(std::aligned_alloc(kAlignment, kChunk)), &std::free);
  ReadSpeed speed;
  for (const int flag : {O_DIRECT, 0}) {
    const File opened{::open(file.c_str(), O_RDONLY | O_CLOEXEC | flag)};
    speed = {.from_disk = flag != 0};
    if (opened.fd >= 0)
      speed.bytes = read_until(opened.fd, buffer.get(), max_bytes, max_seconds, speed.seconds);
    if (opened.fd >= 0 && speed.bytes >= 0) return speed;
  }
  return make_error(ErrorCode::kModel, "{}: cannot read: {}", file.string(),
                    std::generic_category().message(errno));
}

Finding check_read_speed(const fs::path& path, const ReadSpeed& speed, int64_t model_bytes) {
  const char* topic = "Disk speed";
  const double rate = speed.bytes_per_second();
  if (rate <= 0) return ok(topic, fmt::format("unknown: {} is too small to measure it", path.string()));
  const double seconds = static_cast<double>(model_bytes) / rate;
  const std::string what = fmt::format(
      "{:.2f} GB/s where {} lies{}: a first start reads {} in {:.1f} s", rate / 1e9, path.string(),
      speed.from_disk ? "" : " (partly from memory)", size_text(model_bytes), seconds);
  constexpr double kPatience = 5;  // seconds, below which a slow disk does not matter
  if (rate >= kSlowDisk || seconds < kPatience) return ok(topic, what);
  return warning(topic, what + "; an SSD reads at least 0.5 GB/s",
                 fmt::format("cp -r {} TO_A_LOCAL_SSD, and give that to --model", path.string()));
}

Space space_of(const fs::path& folder) {
  Space space{folder};
  std::error_code error;
  fs::path there = folder;
  while (!there.empty() && !fs::exists(there, error) && there != there.parent_path())
    there = there.parent_path();
  if (there.empty()) there = ".";
  space.writable = ::access(there.c_str(), W_OK | X_OK) == 0;
  const fs::space_info info = fs::space(there, error);
  if (!error) space.free = static_cast<int64_t>(std::min<uintmax_t>(info.available, INT64_MAX));
  return space;
}

Finding check_space(const std::string& what, const Space& space, const std::string& variable) {
  const std::string move = fmt::format("export {}=A_FOLDER_WITH_ROOM", variable);
  if (!space.writable)
    return warning(
        what, fmt::format("{} cannot be written: models cannot be fetched into it", space.folder.string()),
        move);
  const std::string text = fmt::format("{} free for {}", size_text(space.free), space.folder.string());
  if (space.free >= kLowSpace) return ok(what, text);
  return warning(what, text + ": too little for most models",
                 fmt::format("deepinfer list, deepinfer rm MODEL; or {}", move));
}

}  // namespace deepinfer::doctor
