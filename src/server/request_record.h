// What is known of one request, for metrics and the log.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "server/http.h"

namespace deepinfer::server {

// The W3C's trace context, level 1.
struct TraceParent {
  std::string trace_id;   // 32 hex digits
  std::string parent_id;  // 16
};

// Nothing when a single character is wrong: a half understood trace would join what does not belong together.
std::optional<TraceParent> parse_traceparent(std::string_view text);

struct GenerationRecord {
  std::string model;
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  std::optional<double> queue, first_token;  // seconds from the arrival at the engine
  std::string finish;                        // stop, length, abort, error; several: "length,stop"
};

// Lives on the exchange's strand, as long as the exchange is handled.
struct RequestRecord {
  explicit RequestRecord(const HttpRequest& request);

  std::string request_id;  // X-Request-Id as given, when it is a plain word; else a random one
  std::optional<TraceParent> trace;
  std::string method;
  std::string path;
  std::string_view handler = "none";  // the route's path; "none": no route of ours
  std::chrono::steady_clock::time_point begin;

  int status = 0;    // of the reply; 0: none began
  std::string code;  // of the error that it told

  std::optional<GenerationRecord> generated;  // of a generation alone
  bool keep_texts = false;                    // server.log_prompts
  std::string prompt;                         // only with it
  std::vector<std::string> answers;           // the same

  LogFields ids() const;  // request_id, trace_id, parent_id: in every line about the request
  void log_end() const;   // the line of server.log_requests
};

}  // namespace deepinfer::server
