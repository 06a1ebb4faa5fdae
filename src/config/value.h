// One setting's value: from text into a Config, and back.
#pragma once

#include <string>
#include <vector>

#include "config/keys.h"
#include "deepinfer/result.h"

namespace deepinfer {

// A value as somebody wrote it.
struct RawValue {
  std::vector<std::string> items;  // one text, or the entries of a list
  bool is_list = false;
  bool quoted = false;  // YAML: "512" is a text, not a number
};

// Checks type and range and stores the value. kConfig: "gpu.max_num_seqs: got -3, expected ... (where)".
Result<void> set_value(const Key& key, const RawValue& raw, const std::string& where, Config& config);

// As YAML: `auto`, `null` for what is unset, quotes where a text needs them. Prints secrets, too.
std::string value_text(const Key& key, const Config& config);

// A text as a YAML scalar, quoted where plain it would read as something else.
std::string yaml_scalar(const std::string& text);

}  // namespace deepinfer
