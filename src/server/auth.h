// API keys and request ids.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace deepinfer::server {

// Keeps hashes alone. Immutable: any thread may ask.
class ApiKeys {
 public:
  explicit ApiKeys(const std::vector<std::string>& keys);

  bool empty() const { return hashes_.empty(); }
  // `authorization`: the field's value, "Bearer <key>". The time taken does not depend on the key.
  bool allows(std::string_view authorization) const;

 private:
  std::vector<std::array<unsigned char, 32>> hashes_;
};

std::string random_hex(size_t bytes);  // from the system's random source
std::string sha256_hex(std::string_view text);

}  // namespace deepinfer::server
