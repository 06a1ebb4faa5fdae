#include "server/auth.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include "base/check.h"

namespace deepinfer::server {

namespace {

std::array<unsigned char, 32> sha256(std::string_view text) {
  std::array<unsigned char, 32> hash{};
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), hash.data());
  return hash;
}

std::string hex(const unsigned char* data, size_t size) {
  std::string out;
  for (size_t i = 0; i < size; ++i) out += fmt::format("{:02x}", data[i]);
  return out;
}

}  // namespace

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) hashes_.push_back(sha256(key));
}

bool ApiKeys::allows(std::string_view authorization) const {
  if (hashes_.empty()) return true;
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() <= kScheme.size()) return false;
  for (size_t i = 0; i < kScheme.size(); ++i)
    if ((authorization[i] | 0x20) != (kScheme[i] | 0x20)) return false;
  authorization.remove_prefix(kScheme.size());
  while (authorization.starts_with(' ')) authorization.remove_prefix(1);
  const auto given = sha256(authorization);
  bool found = false;
  for (const auto& hash : hashes_) found |= CRYPTO_memcmp(hash.data(), given.data(), hash.size()) == 0;
  return found;
}

std::string random_hex(size_t bytes) {
  std::string raw(bytes, '\0');
  auto* data = reinterpret_cast<unsigned char*>(raw.data());
  DI_CHECK(RAND_bytes(data, static_cast<int>(bytes)) == 1, "the system's random source failed");
  return hex(data, bytes);
}

std::string sha256_hex(std::string_view text) {
  const auto hash = sha256(text);
  return hex(hash.data(), hash.size());
}

}  // namespace deepinfer::server
