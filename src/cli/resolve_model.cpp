#include "cli/resolve_model.h"

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>

#include "base/check.h"
#include "base/paths.h"
#include "cli/check_fit.h"
#include "hub/cache.h"
#include "hub/pull.h"

namespace deepinfer {
namespace {

Result<std::filesystem::path> from_hub(const hub::ModelRef& ref, const std::string& revision) {
  DI_ASSIGN(const hub::Settings settings, hub::settings_from_environment());
  DI_ASSIGN(const std::optional<hub::LocalModel> there, hub::Cache(settings.cache).find(ref, revision));
  if (there) return there->path;
  std::signal(SIGXFSZ, SIG_IGN);  // a limit on the size of files is an error of the write
  hub::Progress progress(stderr, ref.text());
  if (!settings.offline)
    progress.note(fmt::format("{}: not in the cache, fetching it from {}", ref.text(), settings.endpoint));
  DI_ASSIGN(const hub::Pulled pulled, hub::pull(settings, ref, revision, progress, [] { return false; }));
  return pulled.path;
}

}  // namespace

Result<void> resolve_model(Config& config) {
  std::string& name = config.model.name;
  std::error_code error;
  DI_TRY(check_fit(config));
  if (name.empty() || std::filesystem::exists(name, error)) return {};
  if (name == kDefaultModelName) {
    name.clear();
    return {};
  }
  const std::string what = fmt::format("model '{}': no such file or folder", name);
  const Result<hub::ModelRef> ref = hub::parse_model_ref(name);
  // More than one slash, or a leading one: a path was meant.
  if (!ref)
    return make_error(
        ErrorCode::kNotFound,
        "{}, and no name of a model on a hub; expected a GGUF file, a Hugging Face folder with config.json, "
        "ORG/NAME or ORG/NAME:FILE",
        what);
  Result<std::filesystem::path> path = from_hub(*ref, config.model.revision);
  if (!path)
    return make_error(path.error().code, "{} here; as a model of the hub: {}", what, path.error().message);
  if (config.model.served_model_name.empty()) {
    config.model.served_model_name = {name};
    if (!ref->file.empty()) config.model.served_model_name.push_back(ref->repo);
  }
  name = path->string();
  return {};
}

}  // namespace deepinfer
