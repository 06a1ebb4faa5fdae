// What /metrics tells: counts of HTTP here, those of the engine from the engine.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "deepinfer/config.h"
#include "engine/llm.h"
#include "server/http.h"

namespace deepinfer::server {

// Any thread. Counts once a request, never per token.
class HttpMetrics {
 public:
  HttpMetrics();

  // A reply begins, or its client left before (499). `handler` is a route of ours or "none": never a client's
  // text.
  void answered(std::string_view handler, int status, std::string_view code);

  using Counts = std::map<std::pair<std::string, int>, uint64_t>;
  Counts requests() const;                           // by handler and status
  std::map<std::string, uint64_t> rejected() const;  // by reason; those that never happened are 0

 private:
  mutable std::mutex mutex_;
  Counts requests_;
  std::map<std::string, uint64_t> rejected_;
};

// Why a reply is a refusal of the server's (limits, state), not an answer or a fault of the request; empty:
// it is not one. `code` is the error's, may be empty.
std::string_view rejection(int status, std::string_view code);

// The whole text. `llm` null: the model is still loading, and what it would tell is left out.
std::string metrics_text(const HttpMetrics& http, const Config& config, const Llm* llm);

}  // namespace deepinfer::server
