// From a body to something the engine can run: JSON, checks, template, tokens. Runs on the text pool.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "deepinfer/config.h"
#include "engine/llm.h"
#include "server/openai.h"
#include "server/params.h"

namespace deepinfer::server {

struct Prepared {
  GenerationRequest request;
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::string> echo;  // by prompt: text before the answer's own; empty: none
  std::optional<int> max_tokens;  // unset: the rest of the context
  std::string model;              // as the answer names it
};

// What requests are read against: defaults in the order that docs/API.md gives, sizes and permissions.
ParseContext parse_context(const Llm& llm, const Config& config);

Result<Prepared> prepare(const boost::json::object& body, Form form, const Llm& llm, const Config& config);

// What the answer calls the model: `asked`, or the first name. kNotFound lists the valid ones.
Result<std::string> resolve_model(const Llm& llm, const std::string& asked);

}  // namespace deepinfer::server
