#include "quantize/partial.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/json_file.h"

namespace deepinfer::quantize {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

uint64_t fnv1a(const void* data, size_t bytes, uint64_t hash = 0xcbf29ce484222325u) {
  const auto* at = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ at[i]) * 0x100000001b3u;
  return hash;
}

// All that the result depends on. Weights by size and time of their files: reading them takes long.
std::string settings_of(const Plan& p) {
  json::array files;
  for (const MappedFile& f : p.checkpoint.weights.files) {
    std::error_code ec;
    const auto when = fs::last_write_time(f.path(), ec).time_since_epoch().count();
    files.push_back({{"name", f.path().filename().string()}, {"bytes", f.bytes().size()}, {"time", when}});
  }
  const std::vector<int32_t>& tokens = p.samples.tokens;
  return json::serialize(
      json::object{{"version", DEEPINFER_VERSION},
                   {"method", method_name(p.options.method)},
                   {"group", p.group},
                   {"act_order", p.options.act_order},
                   {"dtype", info(p.dtype).name},
                   {"sample_tokens", p.samples.length},
                   {"samples", p.samples.count()},
                   {"tokens", fmt::format("{:016x}", fnv1a(tokens.data(), tokens.size() * sizeof(int32_t)))},
                   {"config", fmt::format("{:016x}", fnv1a(p.config_json.data(), p.config_json.size()))},
                   {"weights", std::move(files)}});
}

Error unwritable(const fs::path& path, const std::string& why) {
  return make_error(ErrorCode::kModel, "{}: cannot be written: {}", path.string(), why);
}

}  // namespace

Result<Partial> Partial::open(const Plan& plan) {
  const fs::path folder = plan.partial();
  std::error_code ec;
  fs::create_directories(folder, ec);
  if (ec) return unwritable(folder, ec.message());
  const int lock = ::open((folder / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (lock < 0) return unwritable(folder / "lock", std::strerror(errno));
  Partial partial(folder, lock);
  if (::flock(lock, LOCK_EX | LOCK_NB) != 0)
    return make_error(ErrorCode::kConfig,
                      "quantize: another process works on {}: wait for it, or choose another "
                      "--out",
                      folder.string());
  const std::string settings = settings_of(plan);
  const fs::path file = folder / "settings.json";
  if (fs::exists(file, ec)) {
    DI_ASSIGN(const std::string there, read_file(file, 1 << 20));
    if (there != settings)
      return make_error(ErrorCode::kConfig,
                        "quantize: {} was begun with other settings or another model: go on with "
                        "those, or remove the folder to begin anew",
                        folder.string());
  } else {
    DI_TRY(write_bytes(file, settings.data(), settings.size()));
  }
  partial.count_finished(plan);
  fs::remove_all(partial.out_folder(), ec);
  fs::create_directory(partial.out_folder(), ec);
  if (ec) return unwritable(partial.out_folder(), ec.message());
  return partial;
}

Partial::Partial(Partial&& other) noexcept
    : folder_(std::move(other.folder_)), lock_(std::exchange(other.lock_, -1)), finished_(other.finished_) {}

Partial::~Partial() {
  if (lock_ >= 0) ::close(lock_);
}

fs::path Partial::layer_file(int layer) const {
  return folder_ / fmt::format("layer-{:05}.safetensors", layer);
}

fs::path Partial::hidden_file(int layer) const {
  return folder_ / fmt::format("hidden-{:05}.bin", layer);
}

void Partial::count_finished(const Plan& plan) {
  std::error_code ec;
  const int layers = plan.checkpoint.config.layers;
  while (finished_ < layers && fs::exists(layer_file(finished_), ec)) ++finished_;
  // A layer's file is written before what enters the next: without that, the layer is done again.
  if (finished_ > 0 && finished_ < layers && plan.samples.count() > 0 &&
      !fs::exists(hidden_file(finished_), ec))
    --finished_;
}

Result<std::vector<float>> Partial::read_hidden(size_t elems) const {
  const fs::path path = hidden_file(finished_);
  std::vector<float> values(elems);
  std::ifstream in(path, std::ios::binary);
  const auto bytes = static_cast<std::streamsize>(elems * sizeof(float));
  in.read(reinterpret_cast<char*>(values.data()), bytes);
  if (in.gcount() != bytes || in.peek() != std::ifstream::traits_type::eof())
    return make_error(ErrorCode::kModel, "{}: expected {} bytes: remove {} to begin anew", path.string(),
                      bytes, folder_.string());
  return values;
}

Result<void> Partial::finish_layer(const std::vector<OutTensor>& tensors, const std::vector<float>& hidden) {
  std::vector<TensorExtent> extents;
  for (const OutTensor& t : tensors) extents.push_back(extent_of(t));
  DI_TRY(write_tensors(layer_file(finished_), extents));
  if (!hidden.empty())
    DI_TRY(write_bytes(hidden_file(finished_ + 1), hidden.data(), hidden.size() * sizeof(float)));
  std::error_code ignored;
  fs::remove(hidden_file(finished_), ignored);
  ++finished_;
  return {};
}

Result<void> Partial::publish(const fs::path& out) {
  std::error_code ec;
  fs::remove(out, ec);  // an empty folder; anything else stays, and the renaming says so
  fs::rename(out_folder(), out, ec);
  if (ec) return unwritable(out, ec.message());
  fs::remove_all(folder_, ec);  // the result stands: what is left over harms nobody
  return {};
}

}  // namespace deepinfer::quantize
