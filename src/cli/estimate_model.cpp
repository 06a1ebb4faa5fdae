#include "cli/estimate_model.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <vector>

#include "base/check.h"
#include "base/json_file.h"
#include "base/paths.h"
#include "engine/llm.h"
#include "hub/cache.h"
#include "hub/remote_model.h"
#include "model/hf_config.h"
#include "model/shape.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigFile = "config.json";

bool has_weights(const fs::path& folder) {
  std::error_code ec;
  for (fs::directory_iterator it(folder, ec), end; !ec && it != end; it.increment(ec))
    if (it->path().extension() == ".safetensors") return true;
  return false;
}

Result<DescribedModel> from_config_file(const fs::path& file) {
  DI_ASSIGN(const std::string text, read_file(file, kMaxConfigBytes));
  DI_ASSIGN(Checkpoint c, planned_checkpoint(text, file.parent_path()));
  return DescribedModel{std::move(c), file.string() + " alone"};
}

Result<DescribedModel> from_path(const fs::path& path) {
  std::error_code ec;
  if (path.filename() == kConfigFile) return from_config_file(path);
  if (fs::is_directory(path, ec) && fs::exists(path / kConfigFile, ec) && !has_weights(path))
    return from_config_file(path / kConfigFile);
  DI_ASSIGN(Checkpoint c, open_weights(path));
  return DescribedModel{std::move(c), path.string()};
}

// A file without a name that is gone when its last user is.
class HiddenFile {
 public:
  static Result<HiddenFile> create(const std::string& name) {
    std::error_code ec;
    fs::path folder = fs::temp_directory_path(ec);
    if (ec) folder = "/tmp";
    std::string path = (folder / "deepinfer-XXXXXX").string();
    const int fd = mkstemp(path.data());
    if (fd < 0)
      return make_error(ErrorCode::kModel, "{}: no temporary file in {}: {} (TMPDIR names another folder)",
                        name, folder.string(), std::strerror(errno));
    return HiddenFile(fd, std::move(path));
  }
  HiddenFile(HiddenFile&& o) noexcept : fd_(std::exchange(o.fd_, -1)), path_(std::move(o.path_)) {}
  HiddenFile& operator=(HiddenFile&&) = delete;
  ~HiddenFile() {
    if (fd_ < 0) return;
    close(fd_);
    unlink(path_.c_str());
  }
  const std::string& path() const { return path_; }
  // `head`, then nothing up to `size`: a hole, which takes no room.
  bool fill(const std::string& head, uint64_t size) const {
    return ftruncate(fd_, 0) == 0 && ftruncate(fd_, static_cast<off_t>(size)) == 0 &&
           pwrite(fd_, head.data(), head.size(), 0) == static_cast<ssize_t>(head.size());
  }

 private:
  HiddenFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
};

// How long the header is stands nowhere: more and more of it is fetched until it can be read.
Result<DescribedModel> from_remote_gguf(hub::RemoteModel& remote, const std::string& name) {
  constexpr uint64_t kFirst = 1 << 20, kMost = 256 << 20;
  const uint64_t size = remote.size(remote.gguf());
  DI_ASSIGN(const HiddenFile file, HiddenFile::create(name));
  for (uint64_t bytes = kFirst;; bytes *= 4) {
    DI_ASSIGN(const std::string head, remote.head(remote.gguf(), bytes));
    if (!file.fill(head, std::max<uint64_t>(size, head.size())))
      return make_error(ErrorCode::kModel, "{}: {}: {} (TMPDIR names another folder)", name, file.path(),
                        std::strerror(errno));
    Result<Checkpoint> c = open_weights(file.path());
    if (!c && bytes < std::min(kMost, size)) continue;
    if (!c) return std::move(c).error();
    c->path = name;
    return DescribedModel{std::move(*c), fmt::format("the first {:.0f} MB of {}",
                                                     static_cast<double>(head.size()) / 1e6, remote.gguf())};
  }
}

Result<DescribedModel> from_hub(const hub::ModelRef& ref, const std::string& revision) {
  DI_ASSIGN(const hub::Settings settings, hub::settings_from_environment());
  DI_ASSIGN(const std::optional<hub::LocalModel> here, hub::Cache(settings.cache).find(ref, revision));
  if (here) return from_path(here->path);
  DI_ASSIGN(hub::RemoteModel remote, hub::RemoteModel::open(settings, ref, revision, [] { return false; }));
  DI_ASSIGN(DescribedModel model, [&]() -> Result<DescribedModel> {
    if (!remote.gguf().empty()) return from_remote_gguf(remote, ref.text());
    DI_ASSIGN(const std::string text, remote.head(kConfigFile, kMaxConfigBytes));
    DI_ASSIGN(Checkpoint c,
              planned_checkpoint(text, ref.text(), static_cast<int64_t>(remote.weight_bytes())));
    return DescribedModel{std::move(c), "config.json and the sizes of the files"};
  }());
  model.source += ", from " + settings.endpoint;
  return model;
}

}  // namespace

Result<DescribedModel> describe_model(const Config& config) {
  const std::string& name = config.model.name;
  std::error_code ec;
  if (name.empty() || name == kDefaultModelName) {
    Config unnamed = config;
    unnamed.model.name.clear();
    DI_ASSIGN(const fs::path path, locate_model(unnamed));
    return from_path(path);
  }
  if (fs::exists(name, ec)) return from_path(name);
  const Result<hub::ModelRef> ref = hub::parse_model_ref(name);
  const std::string what = fmt::format("model '{}': no such file or folder", name);
  if (!ref)
    return make_error(
        ErrorCode::kNotFound,
        "{}, and no name of a model on a hub; expected a GGUF file, a Hugging Face folder or its "
        "config.json, ORG/NAME or ORG/NAME:FILE",
        what);
  Result<DescribedModel> model = from_hub(*ref, config.model.revision);
  if (!model)
    return make_error(model.error().code, "{} here; as a model of the hub: {}", what, model.error().message);
  return model;
}

}  // namespace deepinfer
