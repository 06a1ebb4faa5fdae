// Where the hub is and where its cache lies, from the variables that huggingface_hub reads too.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "deepinfer/result.h"

namespace deepinfer::hub {

struct Settings {
  std::string endpoint;             // HF_ENDPOINT, without a slash at its end
  std::string token;                // HF_TOKEN, else the token file; empty: none
  std::string token_origin;         // "HF_TOKEN" or the file, for messages
  bool offline = false;             // HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE
  std::filesystem::path cache;      // HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub
  std::filesystem::path own_cache;  // models that did not come from a hub (base/paths.h)
  std::string ca_file;              // CURL_CA_BUNDLE, SSL_CERT_FILE; empty: the system's
  double stall_seconds = 30;        // HF_HUB_DOWNLOAD_TIMEOUT: how long a connection may give nothing
  int connections = 8;
  int attempts = 5;                // without progress, for each piece
  double backoff_seconds = 0.5;    // before the second attempt; doubles
  uint64_t piece_bytes = 8 << 20;  // of a large file, for one request
};

// The value of a variable; nothing when it is not set.
using Variables = std::function<std::optional<std::string>(const char*)>;

// kConfig when a value cannot be used; a missing token is no error.
Result<Settings> settings_from(const Variables& variables);
Result<Settings> settings_from_environment();

}  // namespace deepinfer::hub
