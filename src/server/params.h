// The one table of request parameters: names, kinds and ranges, and what is known but not built.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <string_view>

#include "server/fields.h"
#include "server/openai.h"

namespace deepinfer::server {

enum Form : uint8_t { kChat = 1, kCompletion = 2, kBoth = 3 };

// Reads every parameter of the table that `reader`'s object holds into `request`.
void read_params(FieldReader& reader, Form form, GenerationRequest& request);

// kUnsupported for a feature that is known, not built and asked for with more than its neutral value.
void refuse_unsupported(FieldReader& reader, Form form);

// Whether any table knows this name.
bool is_known_param(std::string_view name);

}  // namespace deepinfer::server
