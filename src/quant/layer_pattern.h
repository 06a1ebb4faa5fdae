// Names of layers in a quantization_config: plain, or regular expressions as Python's re writes them.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_file.h"
#include "deepinfer/result.h"

namespace deepinfer {

class LayerPattern {
 public:
  // kModel: a pattern that does not compile.
  static Result<LayerPattern> compile(const std::string& pattern, const std::string& where);

  // At the beginning of the name, as re.match. A pattern that takes too long counts as no match.
  bool matches(std::string_view layer) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

// A list of layers: "re:PATTERN", or a name that holds for the layer of that name, for those inside of it
// ("model.layers.0" for "model.layers.0.mlp.up_proj") and, as a last part, anywhere ("lm_head", "down_proj").
class LayerList {
 public:
  // Of the lists of strings under these keys; absent and null are empty.
  static Result<LayerList> read(const JsonObject& config, std::initializer_list<const char*> keys);
  bool has(std::string_view layer) const;
  bool lists(std::string_view name) const;  // this very name

 private:
  std::vector<std::string> names_;
  std::vector<LayerPattern> patterns_;
};

}  // namespace deepinfer
