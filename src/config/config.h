// From the sources of settings to one Config: built-in < this device < YAML < environment < flag.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "config/device_settings.h"
#include "config/keys.h"
#include "deepinfer/config.h"
#include "deepinfer/result.h"

namespace deepinfer {

struct FlagValue {
  std::string name;  // without dashes: "max-num-seqs", "model"
  std::string text;  // flags of lists may come several times, and separate entries by commas
};

using Environment = std::vector<std::pair<std::string, std::string>>;  // name, value

struct ConfigSources {
  std::optional<std::filesystem::path> yaml;  // as resolve_config gave it; unset: no file is read
  Environment environment;
  std::vector<FlagValue> flags;
  DeviceDescription device;
};

struct LoadedConfig {
  Config config;
  std::map<std::string, std::string> origin;  // "gpu.max_num_seqs" -> "my.yaml:12", for every key
  std::vector<std::string> warnings;          // to be logged: unknown variables of the environment

  const std::string& origin_of(const Key& key) const { return origin.at(key.path()); }
};

// kConfig for the first thing that is wrong: what, got, expected, where.
Result<LoadedConfig> load_config(const ConfigSources& sources);

// The path as given, else <prefix>/share/deepinfer/<path>. kConfig names both when neither exists.
Result<std::filesystem::path> resolve_config(const std::filesystem::path& path,
                                             const std::filesystem::path& prefix);

Environment process_environment();

// YAML that loads again, each value with its origin as a comment; secrets are left out and counted.
std::string print_config(const LoadedConfig& loaded);

// docs/CONFIG.md: all settings by section. Generated, a test compares it.
std::string config_markdown();

}  // namespace deepinfer
