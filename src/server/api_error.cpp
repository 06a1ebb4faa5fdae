#include "server/api_error.h"

#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

#include "text/utf8.h"

namespace deepinfer::server {

namespace json = boost::json;

ApiError to_api_error(const Error& error) {
  constexpr const char* kInvalid = "invalid_request_error";
  switch (error.code) {
    case ErrorCode::kInvalidArgument:
      return {400, error.message, kInvalid, error.param, "invalid_value"};
    case ErrorCode::kContextLength:
      return {400, error.message, kInvalid, error.param, "context_length_exceeded"};
    case ErrorCode::kUnsupported:
      return {400, error.message, kInvalid, error.param, "unsupported_parameter"};
    case ErrorCode::kNotFound:
      return {404, error.message, kInvalid, error.param,
              error.param == "model" ? "model_not_found" : "not_found"};
    case ErrorCode::kQueueFull:
      return {429, error.message, "rate_limit_error", "", "queue_full", 1};
    case ErrorCode::kUnavailable:
      return {503, error.message, "service_unavailable", "", "unavailable", 5};
    case ErrorCode::kQueueTimeout:
      return {503, error.message, "service_unavailable", "", "queue_timeout", 5};
    case ErrorCode::kTimeout:
      return {504, error.message, "timeout_error", "", "timeout"};
    case ErrorCode::kCancelled:
      return {499, error.message, "cancelled", "", "cancelled"};
    case ErrorCode::kMemory:
      return {503, error.message, "service_unavailable", "", "out_of_memory", 5};
    case ErrorCode::kConfig:
    case ErrorCode::kModel:
    case ErrorCode::kAddressInUse:
    case ErrorCode::kInternal:
      break;
  }
  // The text of a fault of ours may name addresses and paths: it belongs into the log alone.
  return {500, "an internal error of the server; its log says more", "server_error", "", "internal_error"};
}

std::string error_body(const ApiError& error) {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? json::value(nullptr) : json::value(sanitize_utf8(text));
  };
  json::object inner{{"message", sanitize_utf8(error.message)},
                     {"type", error.type},
                     {"param", or_null(error.param)},
                     {"code", or_null(error.code)}};
  return json::serialize(json::object{{"error", std::move(inner)}});
}

HttpReply error_reply(const ApiError& error) {
  HttpReply reply{error.status, error_body(error)};
  reply.code = error.code;
  if (error.retry_after > 0) reply.fields.emplace_back("Retry-After", std::to_string(error.retry_after));
  return reply;
}

std::string http_error_body(int status, std::string_view message) {
  ApiError error{status, std::string(message), "invalid_request_error", "", ""};
  if (status == 408) error.code = "request_timeout";
  if (status == 413) error.code = "request_too_large";
  if (status == 431) error.code = "headers_too_large";
  if (status >= 500) error.type = status == 503 ? "service_unavailable" : "server_error";
  if (status == 501 || status == 505) error.type = "invalid_request_error";
  return error_body(error);
}

ApiError loading_error() {
  return {503, "the model is still loading: try again", "service_unavailable", "", "loading", 2};
}

ApiError draining_error() {
  return {503, "the server is shutting down and takes no new requests", "service_unavailable", "", "draining",
          5};
}

ApiError stalled_error() {
  return {503, "the engine does not answer", "service_unavailable", "", "stalled", 10};
}

ApiError key_error() {
  return {401, "a valid API key is needed: send the field 'Authorization: Bearer <key>'",
          "invalid_request_error", "", "invalid_api_key"};
}

}  // namespace deepinfer::server
