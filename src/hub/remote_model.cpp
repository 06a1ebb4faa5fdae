#include "hub/remote_model.h"

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "hub/curl_library.h"

namespace deepinfer::hub {
namespace {

// "model.safetensors", "model-00001-of-00004.safetensors"; not "consolidated.00.pth" and the like.
bool has_weights(const std::string& name) {
  return name.find('/') == std::string::npos && name.starts_with("model") && name.ends_with(".safetensors");
}

}  // namespace

RemoteModel::RemoteModel(const Settings& settings, std::function<bool()> stop)
    : hub_(std::make_unique<HubClient>(settings, std::move(stop))) {}

Result<RemoteModel> RemoteModel::open(const Settings& settings, const ModelRef& ref,
                                      const std::string& revision, std::function<bool()> stop) {
  if (settings.offline)
    return make_error(ErrorCode::kModel,
                      "{}: not in the cache ({}), and HF_HUB_OFFLINE forbids to ask for it: unset it",
                      ref.text(), settings.cache.string());
  DI_ASSIGN(const std::shared_ptr<const CurlLibrary> curl, CurlLibrary::load());
  RemoteModel model(settings, std::move(stop));
  model.http_ =
      std::make_unique<HttpClient>(curl, settings, [hub = model.hub_.get()] { return hub->stopped(); });
  model.repo_ = ref.repo;
  const std::string wanted = revision.empty() ? "main" : revision;
  DI_TRY(check_relative_path(wanted, "revision"));
  DI_ASSIGN(model.info_, model.hub_->info(*model.http_, ref.repo, wanted));
  std::vector<Listed> listed;
  for (const RemoteFile& f : model.info_.files) listed.push_back({f.name, f.size});
  DI_ASSIGN(model.selection_, select_files(listed, ref.file, ref.repo));
  return model;
}

uint64_t RemoteModel::weight_bytes() const {
  uint64_t bytes = 0;
  for (const RemoteFile& f : info_.files) {
    const auto& parts = selection_.files;
    const bool counts = gguf().empty()
                            ? (selection_.needs_index ? has_weights(f.name) : f.name == kSingleFile)
                            : std::find(parts.begin(), parts.end(), f.name) != parts.end();
    if (counts) bytes += f.size;
  }
  return bytes;
}

uint64_t RemoteModel::size(const std::string& name) const {
  for (const RemoteFile& f : info_.files)
    if (f.name == name) return f.size;
  return 0;
}

Result<RemoteFile> RemoteModel::find(const std::string& name) {
  for (const RemoteFile& f : info_.files) {
    if (f.name != name) continue;
    if (!f.etag.empty()) return f;
    return hub_->describe(*http_, repo_, info_.commit, name);
  }
  return make_error(ErrorCode::kNotFound, "{}: no file {} in the repository", repo_, printable(name));
}

Result<std::string> RemoteModel::head(const std::string& name, uint64_t bytes) {
  DI_ASSIGN(const RemoteFile file, find(name));
  FileSource source(repo_, info_.commit, file);
  const uint64_t wanted = std::min(bytes, file.size);
  if (wanted == 0) return std::string();
  for (int attempt = 1;; ++attempt) {
    std::string text;
    const auto sink = [&](std::string_view piece) {
      text += piece.substr(0, wanted - text.size());
      return text.size() < wanted;
    };
    // A server that knows no ranges sends all of it: the sink ends that.
    Fetched got = hub_->fetch(*http_, source,
                              wanted < file.size ? std::optional(Range{0, wanted}) : std::nullopt, sink);
    if (got.end == Fetched::End::kRangeIgnored) got = hub_->fetch(*http_, source, std::nullopt, sink);
    if (text.size() == wanted) return text;
    if (hub_->stopped()) return make_error(ErrorCode::kCancelled, "stopped");
    if (got.end == Fetched::End::kFatal) return std::move(got.error);
    if (attempt >= hub_->settings().attempts)
      return got.end == Fetched::End::kRetry ? std::move(got.error)
                                             : make_error(ErrorCode::kModel, "{}: {}: got {} of {} bytes",
                                                          repo_, name, text.size(), wanted);
    if (!hub_->wait(attempt, got.wait)) return make_error(ErrorCode::kCancelled, "stopped");
  }
}

}  // namespace deepinfer::hub
