#include "hub/settings.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string_view>

#include "base/check.h"
#include "base/paths.h"

namespace deepinfer::hub {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDefaultEndpoint = "https://huggingface.co";
constexpr size_t kMaxToken = 4096;

class Reader {
 public:
  explicit Reader(const Variables& variables) : variables_(variables) {}

  // Empty counts as not set.
  std::string text(const char* name) const { return variables_(name).value_or(""); }

  bool flag(const char* name) const {
    std::string value = text(name);
    std::transform(value.begin(), value.end(), value.begin(),
                   [](unsigned char c) { return static_cast<char>(c >= 'a' && c <= 'z' ? c - 32 : c); });
    return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
  }

  fs::path home() const {
    const std::string value = text("HOME");
    return value.empty() ? fs::path("/tmp") : fs::path(value);
  }

  // "~/x" means the home folder, as it does for huggingface_hub.
  fs::path path(const std::string& value) const {
    if (value == "~") return home();
    return value.starts_with("~/") ? home() / value.substr(2) : fs::path(value);
  }

  fs::path hub_home() const {
    if (const std::string own = text("HF_HOME"); !own.empty()) return path(own);
    const std::string xdg = text("XDG_CACHE_HOME");
    return (xdg.empty() ? home() / ".cache" : path(xdg)) / "huggingface";
  }

 private:
  const Variables& variables_;
};

std::string trimmed(std::string_view text) {
  const char* spaces = " \t\r\n";
  const size_t first = text.find_first_not_of(spaces);
  if (first == std::string_view::npos) return "";
  return std::string(text.substr(first, text.find_last_not_of(spaces) - first + 1));
}

// It goes into a header as it is: a line break in it would be another header.
Result<void> check_token(const std::string& token, const std::string& origin) {
  const bool printable = std::all_of(token.begin(), token.end(), [](char c) { return c > 32 && c < 127; });
  if (printable && token.size() <= kMaxToken) return {};
  return make_error(ErrorCode::kConfig, "{}: not a token: expected up to {} printable characters", origin,
                    kMaxToken);
}

Result<void> read_token(const Reader& reader, Settings& out) {
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    out.token = trimmed(reader.text(name));
    if (out.token.empty()) continue;
    out.token_origin = name;
    return check_token(out.token, name);
  }
  if (reader.flag("HF_HUB_DISABLE_IMPLICIT_TOKEN")) return {};
  const std::string named = reader.text("HF_TOKEN_PATH");
  const fs::path file = named.empty() ? reader.hub_home() / "token" : reader.path(named);
  std::ifstream in(file, std::ios::binary);
  std::string text(kMaxToken + 2, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(in.gcount(), 0)));
  out.token = trimmed(text);
  if (out.token.empty()) return {};
  out.token_origin = file.string();
  return check_token(out.token, out.token_origin);
}

Result<void> read_endpoint(const Reader& reader, Settings& out) {
  out.endpoint = trimmed(reader.text("HF_ENDPOINT"));
  if (out.endpoint.empty()) out.endpoint = kDefaultEndpoint;
  while (out.endpoint.ends_with('/')) out.endpoint.pop_back();
  const bool http = out.endpoint.starts_with("http://") || out.endpoint.starts_with("https://");
  const bool printable =
      std::all_of(out.endpoint.begin(), out.endpoint.end(), [](char c) { return c > 32 && c < 127; });
  if (!http || !printable || out.endpoint.find_first_of("?#@") != std::string::npos)
    return make_error(ErrorCode::kConfig, "HF_ENDPOINT: got '{}', expected an address like {}", out.endpoint,
                      kDefaultEndpoint);
  return {};
}

}  // namespace

Result<Settings> settings_from(const Variables& variables) {
  const Reader reader(variables);
  Settings out;
  DI_TRY(read_endpoint(reader, out));
  DI_TRY(read_token(reader, out));
  out.offline = reader.flag("HF_HUB_OFFLINE") || reader.flag("TRANSFORMERS_OFFLINE");
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
    if (out.cache.empty()) out.cache = reader.path(reader.text(name));
  if (out.cache.empty()) out.cache = reader.hub_home() / "hub";
  out.own_cache = cache_dir();
  for (const char* name : {"CURL_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"})
    if (out.ca_file.empty()) out.ca_file = reader.text(name);
  if (const std::string stall = reader.text("HF_HUB_DOWNLOAD_TIMEOUT"); !stall.empty()) {
    char* end = nullptr;
    out.stall_seconds = std::strtod(stall.c_str(), &end);
    if (*end != '\0' || !std::isfinite(out.stall_seconds) || out.stall_seconds < 1 ||
        out.stall_seconds > 86400)
      return make_error(ErrorCode::kConfig, "HF_HUB_DOWNLOAD_TIMEOUT: got '{}', expected 1 to 86400 seconds",
                        stall);
  }
  return out;
}

Result<Settings> settings_from_environment() {
  return settings_from([](const char* name) -> std::optional<std::string> {
    const char* value = std::getenv(name);
    if (value == nullptr) return std::nullopt;
    return std::string(value);
  });
}

}  // namespace deepinfer::hub
