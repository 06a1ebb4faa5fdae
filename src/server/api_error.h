// Failures as the API tells them: HTTP status and OpenAI's error object.
#pragma once

#include <string>
#include <string_view>

#include "deepinfer/result.h"
#include "server/http.h"

namespace deepinfer::server {

struct ApiError {
  int status = 500;
  std::string message;
  std::string type = "server_error";
  std::string param;    // empty: null
  std::string code;     // empty: null
  int retry_after = 0;  // seconds; 0: no such field
};

ApiError to_api_error(const Error& error);

// {"error": {"message", "type", "param", "code"}}
std::string error_body(const ApiError& error);
HttpReply error_reply(const ApiError& error);

// What http.cpp refuses by itself.
std::string http_error_body(int status, std::string_view message);

ApiError loading_error();
ApiError draining_error();
ApiError stalled_error();
ApiError key_error();

}  // namespace deepinfer::server
