#include "config/config.h"

#include <unistd.h>

#include <algorithm>

#include "base/check.h"
#include "config/nearest.h"
#include "config/value.h"
#include "config/yaml.h"

extern char** environ;

namespace deepinfer {
namespace {

// Variables of ours that are no settings.
constexpr std::string_view kOtherVariables[] = {
    "DEEPINFER_CACHE_DIR",     // where models are kept
    "DEEPINFER_CPU_ISA",       // forces a kernel version
    "DEEPINFER_CUDA_LIB_DIR",  // where the CUDA libraries are
    "DEEPINFER_TEST_DATA",     // models and templates of the tests
    "DEEPINFER_BUILD_TESTS",
    "DEEPINFER_BUILD_BENCH",
    "DEEPINFER_BUILD_FUZZ",
    "DEEPINFER_SANITIZE",
    "DEEPINFER_CUDA",
    "DEEPINFER_CUDA_HOME",
    "DEEPINFER_CUDA_ARCHITECTURES",
    "DEEPINFER_FLASHINFER_DIR",
};

class Loader {
 public:
  Loader() {
    for (const Key& key : keys()) out_.origin[key.path()] = "built-in";
  }

  Result<void> device(const DeviceDescription& device) {
    for (const DeviceSetting& s : device_settings(device)) {
      const Key* key = find_key(s.key);
      DI_CHECK(key != nullptr, "device setting {}", s.key);
      DI_TRY(set(*key, {.items = {s.value}}, s.origin));
    }
    return {};
  }

  Result<void> yaml(const std::filesystem::path& file) {
    DI_ASSIGN(const std::vector<YamlSetting> settings, read_yaml(file));
    for (const YamlSetting& s : settings) DI_TRY(set(*s.key, s.value, s.where));
    return {};
  }

  Result<void> environment(const Environment& environment) {
    const auto find = [&](const std::string& name) -> const std::string* {
      for (const auto& [n, value] : environment)
        if (n == name && !value.empty()) return &value;
      return nullptr;
    };
    for (const Key& key : keys()) {
      for (const std::string& name :
           {std::string(key.variable), key.short_environment(), key.environment()}) {
        if (name.empty()) continue;
        const std::string* text = find(name);
        if (text == nullptr || is_service_link(name, *text)) continue;
        DI_TRY(set(key, from_text(key, *text), name));
      }
    }
    for (const auto& entry : environment) warn_if_unknown(entry.first);
    return {};
  }

  Result<void> flags(std::span<const FlagValue> flags) {
    for (const Key& key : keys()) {
      RawValue all{.is_list = key.is_list()};
      for (const FlagValue& flag : flags) {
        if ("--" + flag.name != key.flag()) continue;
        RawValue one = from_text(key, flag.text);
        if (!key.is_list()) all.items.clear();  // the last one counts
        all.items.insert(all.items.end(), one.items.begin(), one.items.end());
      }
      if (!all.items.empty()) DI_TRY(set(key, all, key.flag()));
    }
    for (const FlagValue& flag : flags)
      if (const Key* key = find_key(flag.name); key == nullptr || key->flag() != "--" + flag.name)
        return make_error(ErrorCode::kConfig, "--{}: no setting has this flag", flag.name);
    return {};
  }

  Result<LoadedConfig> take() {
    if (out_.config.model.trust_remote_code)
      return make_error(
          ErrorCode::kConfig,
          "model.trust_remote_code: got true, expected false ({}): DeepInfer never executes code "
          "from a model repository; architectures are built in. Remove the setting.",
          out_.origin["model.trust_remote_code"]);
    return std::move(out_);
  }

 private:
  Result<void> set(const Key& key, const RawValue& raw, const std::string& where) {
    DI_TRY(set_value(key, raw, where, out_.config));
    out_.origin[key.path()] = where;
    return {};
  }

  // Flags and variables: commas separate the entries of a list.
  static RawValue from_text(const Key& key, const std::string& text) {
    if (!key.is_list()) return {.items = {text}};
    RawValue raw{.is_list = true};
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find(',', begin), text.size());
      raw.items.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
    return raw;
  }

  // Kubernetes gives every pod DEEPINFER_PORT=tcp://... and others when a service is named "deepinfer".
  bool is_service_link(const std::string& name, const std::string& text) {
    if (name != "DEEPINFER_PORT" || text.find("://") == std::string::npos) return false;
    out_.warnings.push_back(
        fmt::format("{}={} looks like a Kubernetes service variable and is ignored; set "
                    "DEEPINFER_SERVER__PORT instead, or "
                    "enableServiceLinks: false",
                    name, text.substr(0, 80)));
    return true;
  }

  void warn_if_unknown(const std::string& name) {
    if (!name.starts_with("DEEPINFER_")) return;
    if (name.starts_with("DEEPINFER_PORT_") || name.starts_with("DEEPINFER_SERVICE_")) return;
    if (std::find(std::begin(kOtherVariables), std::end(kOtherVariables), name) != std::end(kOtherVariables))
      return;
    std::vector<std::string> known;
    for (const Key& key : keys()) {
      if (name == key.environment() || name == key.short_environment()) return;
      known.push_back(key.environment());
      known.push_back(key.short_environment());
    }
    known.insert(known.end(), std::begin(kOtherVariables), std::end(kOtherVariables));
    const std::string_view near = nearest(name, std::vector<std::string_view>(known.begin(), known.end()));
    out_.warnings.push_back(fmt::format("{}: no setting has this variable, it is ignored{}", name,
                                        near.empty() ? "" : fmt::format("; did you mean {}?", near)));
  }

  LoadedConfig out_;
};

}  // namespace

Result<LoadedConfig> load_config(const ConfigSources& sources) {
  Loader loader;
  DI_TRY(loader.device(sources.device));
  if (sources.yaml) DI_TRY(loader.yaml(*sources.yaml));
  DI_TRY(loader.environment(sources.environment));
  DI_TRY(loader.flags(sources.flags));
  return loader.take();
}

Result<std::filesystem::path> resolve_config(const std::filesystem::path& path,
                                             const std::filesystem::path& prefix) {
  std::error_code ec;
  if (std::filesystem::exists(path, ec)) return path;
  if (prefix.empty() || path.is_absolute())
    return make_error(ErrorCode::kConfig, "--config {}: no such file", path.string());
  std::filesystem::path shared = prefix / "share" / "deepinfer" / path;
  if (std::filesystem::exists(shared, ec)) return shared;
  return make_error(ErrorCode::kConfig, "--config {}: no such file, neither here nor as {}", path.string(),
                    shared.string());
}

Environment process_environment() {
  Environment out;
  for (char** e = environ; e != nullptr && *e != nullptr; ++e) {
    const std::string_view entry(*e);
    const size_t eq = entry.find('=');
    if (eq != std::string_view::npos) out.emplace_back(entry.substr(0, eq), entry.substr(eq + 1));
  }
  return out;
}

}  // namespace deepinfer
