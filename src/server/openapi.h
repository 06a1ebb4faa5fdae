// The description of the API at /openapi.json, made from the table of parameters: what it promises of a
// request is what the parser takes.
#pragma once

#include <string>

namespace deepinfer::server {

struct OpenApiFacts {
  int vocab_size = 0;  // 0: not known yet
  bool needs_key = false;
};

// OpenAPI 3.1, as JSON.
std::string openapi_document(const OpenApiFacts& facts);

}  // namespace deepinfer::server
