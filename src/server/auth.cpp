#include "server/auth.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <algorithm>
#include <fstream>

#include "base/check.h"
#include "server/secret_file.h"

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

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c = static_cast<char>(c | 0x20);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

std::string_view trim(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

}  // namespace

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) hashes_.push_back(sha256(trim(key)));
}

Result<ApiKeys> ApiKeys::load(const Config::Server& config) {
  for (const std::string& key : config.api_key)
    if (trim(key).empty())
      return make_error(ErrorCode::kConfig, "server.api_key: got an empty key, which nobody could send");
  ApiKeys keys(config.api_key);
  const std::string& path = config.api_key_file;
  if (path.empty()) return keys;
  constexpr std::string_view kSetting = "server.api_key_file";
  DI_TRY(check_readable(kSetting, path));
  warn_if_others_read(kSetting, path);
  std::ifstream file(path);
  const size_t before = keys.hashes_.size();
  int number = 0;
  for (std::string line; std::getline(file, line);)
    DI_TRY(keys.add_line(trim(line), fmt::format("{}:{}", path, ++number)));
  if (file.bad()) return make_error(ErrorCode::kConfig, "{}: cannot read all of {}", kSetting, path);
  // Without a key the server would be open to everybody, which is not what a file of keys means.
  if (keys.hashes_.size() == before)
    return make_error(ErrorCode::kConfig,
                      "{}: {} holds no key; expected a key, or sha256:<64 hex digits> of one, a line",
                      kSetting, path);
  return keys;
}

// Messages name the line and never what stands in it.
Result<void> ApiKeys::add_line(std::string_view line, const std::string& where) {
  if (line.empty() || line.starts_with('#')) return {};
  constexpr std::string_view kHashed = "sha256:";
  if (!line.starts_with(kHashed)) {
    if (!std::all_of(line.begin(), line.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; }))
      return make_error(ErrorCode::kConfig,
                        "server.api_key_file: {}: expected a key of ASCII characters without spaces", where);
    hashes_.push_back(sha256(line));
    return {};
  }
  line.remove_prefix(kHashed.size());
  Hash hash{};
  size_t at = 0;
  for (; at < line.size() && at < 2 * hash.size(); ++at) {
    const int digit = hex_digit(line[at]);
    if (digit < 0) break;
    hash[at / 2] = static_cast<unsigned char>(hash[at / 2] << 4 | digit);
  }
  if (at != 2 * hash.size() || at != line.size())
    return make_error(
        ErrorCode::kConfig,
        "server.api_key_file: {}: expected 64 hexadecimal digits after sha256:, got {} characters", where,
        line.size());
  hashes_.push_back(hash);
  return {};
}

std::optional<std::string> ApiKeys::match(std::string_view authorization) const {
  if (hashes_.empty()) return std::string();
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() <= kScheme.size()) return std::nullopt;
  for (size_t i = 0; i < kScheme.size(); ++i)
    if ((authorization[i] | 0x20) != (kScheme[i] | 0x20)) return std::nullopt;
  const auto given = sha256(trim(authorization.substr(kScheme.size())));
  bool found = false;
  for (const auto& hash : hashes_) found |= CRYPTO_memcmp(hash.data(), given.data(), hash.size()) == 0;
  if (!found) return std::nullopt;
  return hex(given.data(), given.size());
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
