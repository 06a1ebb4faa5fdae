// A configuration file: YAML of two levels, sections and keys.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "config/value.h"

namespace deepinfer {

struct YamlSetting {
  const Key* key = nullptr;
  RawValue value;
  std::string where;  // "my.yaml:12"
};

// kConfig with file and line for what is no YAML, no mapping, too large or too deep, a key that is unknown
// (with the nearest known one) or given twice. Types and ranges are checked by set_value. Keys whose value is
// null are left out.
Result<std::vector<YamlSetting>> parse_yaml(std::string_view text, const std::string& file);

Result<std::vector<YamlSetting>> read_yaml(const std::filesystem::path& file);

}  // namespace deepinfer
