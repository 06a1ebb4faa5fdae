// Typed reading of a GGUF file's metadata, with messages that name file, key, value and range.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/result.h"
#include "model/gguf.h"

namespace deepinfer {

// Borrows both; a value that is there and is of the wrong type or out of range is an error (kModel).
class GgufMetadata {
 public:
  GgufMetadata(const GgufFile& file, const std::string& name) : file_(file), name_(name) {}

  Result<std::optional<int64_t>> integer(std::string_view key, int64_t low, int64_t high) const;
  // The same for a key that must be there. An array of equal numbers (one a layer) counts as that number.
  Result<int64_t> required_integer(std::string_view key, int64_t low, int64_t high) const;
  Result<std::optional<double>> number(std::string_view key, double low, double high) const;
  Result<std::optional<bool>> boolean(std::string_view key) const;
  Result<std::optional<std::string_view>> string(std::string_view key) const;
  // Null when missing.
  Result<const GgufArray*> array(std::string_view key, GgufType type) const;

 private:
  const GgufValue* find(std::string_view key) const;

  const GgufFile& file_;
  const std::string& name_;
};

}  // namespace deepinfer
