// The one table of request parameters: names, forms, ranges and defaults, and what is known but not built.
// docs/API.md is made from it.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "server/fields.h"
#include "server/openai.h"
#include "server/param_lists.h"

namespace deepinfer::server {

enum Form : uint8_t { kChat = 1, kCompletion = 2, kBoth = 3 };

enum class ParamKind : uint8_t {
  kInteger,      // low to high
  kNumber,       // finite, low to high
  kNumberAbove,  // finite, above low, up to high
  kBool,
  kOther,   // read by a function of its own, or with the form's own fields
  kIgnored  // accepted, without effect
};

struct ParamRow {
  std::string_view name;
  Form forms;
  ParamKind kind;
  double low, high;
  std::string_view origin;                  // whose name and meaning it is
  std::string_view fallback;                // what holds when it is left out, as documented
  std::string_view text;                    // its meaning; of kOther: the type first
  void (*set)(GenerationRequest&, double);  // not for kOther, kIgnored
  FieldFunction read;                       // kOther; null: read with the form's own fields
};

// A feature that is known and not built, with the values that ask for nothing (as JSON text).
struct RefusedRow {
  std::string_view name;
  Form forms;
  std::string_view origin;
  std::string_view instead;  // what to do
  std::string_view neutral[3];
};

std::span<const ParamRow> param_table();
std::span<const RefusedRow> refused_table();

// Reads every parameter of the table that `reader`'s object holds into `request`, in the table's order.
void read_params(FieldReader& reader, Form form, const ParseContext& context, GenerationRequest& request);

// kUnsupported for a feature that is known, not built and asked for with more than its neutral value.
void refuse_unsupported(FieldReader& reader, Form form);

// Whether any table knows this name.
bool is_known_param(std::string_view name);

// Both tables as Markdown, for docs/API.md.
std::string params_markdown();

}  // namespace deepinfer::server
