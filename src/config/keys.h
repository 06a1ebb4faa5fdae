// The one table of settings. The YAML reader, the environment, the flags, `deepinfer config`, the
// documentation and "did you mean" all come from it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "deepinfer/config.h"

namespace deepinfer {

// Where a key's value stands in a Config.
template <class T>
using FieldOf = T& (*)(Config&);
using Field = std::variant<FieldOf<bool>, FieldOf<int>, FieldOf<int64_t>, FieldOf<double>,
                           FieldOf<std::string>, FieldOf<std::vector<std::string>>,
                           FieldOf<std::optional<double>>, FieldOf<std::optional<int>>>;

struct Key {
  std::string_view section;
  std::string_view name;  // unique across sections
  Field field;
  double min = 0, max = 0;                                           // of numbers, both included
  bool above_min = false;                                            // numbers: min itself is not allowed
  bool allow_auto = false;                                           // integers: `auto` is 0 in Config
  std::vector<std::string_view> allowed;                             // of texts; empty: any
  std::vector<std::pair<std::string_view, std::string_view>> alias;  // another spelling, the value it means
  bool (*accepts)(std::string_view) = nullptr;  // texts that `allowed` does not list but are right
  std::string_view also;                        // how those are described
  std::string_view variable;                    // a variable of the environment besides; the weakest one
  std::string_view unset;                       // what holds when it is empty or null
  bool secret = false;                          // never printed
  std::string_view text;                        // one line

  std::string path() const;               // "gpu.max_num_seqs"
  std::string flag() const;               // "--max-num-seqs"; model.name is "--model"
  std::string environment() const;        // "DEEPINFER_GPU__MAX_NUM_SEQS"
  std::string short_environment() const;  // "DEEPINFER_MAX_NUM_SEQS"
  bool is_bool() const { return std::holds_alternative<FieldOf<bool>>(field); }
  bool is_list() const { return std::holds_alternative<FieldOf<std::vector<std::string>>>(field); }
  std::string expected() const;      // "an integer from 1 to 65536 or auto"
  std::string default_text() const;  // of the built-in value, as YAML
};

// In the order in which they are printed: by section.
const std::vector<Key>& keys();
const std::vector<std::string_view>& sections();

// By "section.name", "name" or the flag without its dashes; null when there is none.
const Key* find_key(std::string_view name);

}  // namespace deepinfer
