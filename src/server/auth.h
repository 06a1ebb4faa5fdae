// API keys and request ids.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/config.h"
#include "deepinfer/result.h"

namespace deepinfer::server {

// Keeps hashes alone. Immutable: any thread may ask.
class ApiKeys {
 public:
  ApiKeys() = default;
  explicit ApiKeys(const std::vector<std::string>& keys);

  // Those of server.api_key and of server.api_key_file. kConfig with file and line for what is no key.
  static Result<ApiKeys> load(const Config::Server& config);

  bool empty() const { return hashes_.empty(); }
  // `authorization`: the field's value, "Bearer <key>". The hash of the key it names, in hexadecimal digits,
  // when that is one of ours; empty when no key is needed. The time taken does not depend on the key.
  std::optional<std::string> match(std::string_view authorization) const;

 private:
  using Hash = std::array<unsigned char, 32>;
  Result<void> add_line(std::string_view line, const std::string& where);

  std::vector<Hash> hashes_;
};

std::string random_hex(size_t bytes);  // from the system's random source
std::string sha256_hex(std::string_view text);

}  // namespace deepinfer::server
