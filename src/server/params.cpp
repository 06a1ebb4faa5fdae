#include "server/params.h"

#include <algorithm>
#include <array>
#include <boost/json/serialize.hpp>
#include <span>

#include "base/check.h"

namespace deepinfer::server {

namespace json = boost::json;

namespace {

enum class Kind : uint8_t { kInteger, kNumber, kNumberAbove, kBool };  // kNumberAbove: low itself is refused

struct ParamRow {
  std::string_view name;
  Form forms;
  Kind kind;
  double low, high;
  void (*set)(GenerationRequest&, double);
};

constexpr double kMaxInt = 2147483647;

int to_int(double value) {
  return static_cast<int>(value);
}
float to_float(double value) {
  return static_cast<float>(value);
}

// Later rows overwrite earlier ones: max_completion_tokens wins over max_tokens.
constexpr ParamRow kParams[] = {
    {"n", kBoth, Kind::kInteger, 1, 128, [](GenerationRequest& r, double v) { r.sampling.n = to_int(v); }},
    {"temperature", kBoth, Kind::kNumber, 0, 2,
     [](GenerationRequest& r, double v) { r.sampling.temperature = to_float(v); }},
    {"top_p", kBoth, Kind::kNumberAbove, 0, 1,
     [](GenerationRequest& r, double v) { r.sampling.top_p = to_float(v); }},
    {"top_k", kBoth, Kind::kInteger, -1, kMaxInt,
     [](GenerationRequest& r, double v) { r.sampling.top_k = to_int(v); }},
    {"min_p", kBoth, Kind::kNumber, 0, 1,
     [](GenerationRequest& r, double v) { r.sampling.min_p = to_float(v); }},
    {"presence_penalty", kBoth, Kind::kNumber, -2, 2,
     [](GenerationRequest& r, double v) { r.sampling.presence_penalty = to_float(v); }},
    {"frequency_penalty", kBoth, Kind::kNumber, -2, 2,
     [](GenerationRequest& r, double v) { r.sampling.frequency_penalty = to_float(v); }},
    {"repetition_penalty", kBoth, Kind::kNumberAbove, 0, 2,
     [](GenerationRequest& r, double v) { r.sampling.repetition_penalty = to_float(v); }},
    {"max_tokens", kChat, Kind::kInteger, 1, kMaxInt,
     [](GenerationRequest& r, double v) { r.max_tokens = to_int(v); }},
    {"max_completion_tokens", kChat, Kind::kInteger, 1, kMaxInt,
     [](GenerationRequest& r, double v) { r.max_tokens = to_int(v); }},
    {"max_tokens", kCompletion, Kind::kInteger, 0, kMaxInt,
     [](GenerationRequest& r, double v) { r.max_tokens = to_int(v); }},
    {"min_tokens", kBoth, Kind::kInteger, 0, kMaxInt,
     [](GenerationRequest& r, double v) { r.sampling.min_tokens = to_int(v); }},
    {"ignore_eos", kBoth, Kind::kBool, 0, 1,
     [](GenerationRequest& r, double v) { r.sampling.ignore_eos = v != 0; }},
    {"logprobs", kChat, Kind::kBool, 0, 1, [](GenerationRequest& r, double v) { r.logprobs = v != 0; }},
    {"top_logprobs", kChat, Kind::kInteger, 0, 20,
     [](GenerationRequest& r, double v) { r.top_logprobs = to_int(v); }},
    {"logprobs", kCompletion, Kind::kInteger, 0, 20,
     [](GenerationRequest& r, double v) {
       r.logprobs = true;
       r.top_logprobs = to_int(v);
     }},
    {"skip_special_tokens", kBoth, Kind::kBool, 0, 1,
     [](GenerationRequest& r, double v) { r.skip_special_tokens = v != 0; }},
    {"include_stop_str_in_output", kBoth, Kind::kBool, 0, 1,
     [](GenerationRequest& r, double v) { r.include_stop = v != 0; }},
    {"add_special_tokens", kBoth, Kind::kBool, 0, 1,
     [](GenerationRequest& r, double v) { r.add_special_tokens = v != 0; }},
    {"stream", kBoth, Kind::kBool, 0, 1, [](GenerationRequest& r, double v) { r.stream = v != 0; }},
    {"priority", kBoth, Kind::kInteger, -kMaxInt, kMaxInt,
     [](GenerationRequest& r, double v) { r.priority = to_int(v); }},
};

// A feature that is known and not built, with the values that ask for nothing (as JSON text).
struct UnsupportedRow {
  std::string_view name;
  Form forms;
  std::array<std::string_view, 3> neutral;
};

constexpr UnsupportedRow kUnsupported[] = {
    {"tools", kChat, {"[]"}},
    {"tool_choice", kChat, {R"("none")", R"("auto")"}},
    {"functions", kChat, {"[]"}},
    {"function_call", kChat, {R"("none")", R"("auto")"}},
    {"response_format", kBoth, {R"({"type":"text"})"}},
    {"modalities", kChat, {R"(["text"])"}},
    {"audio", kChat, {}},
    {"prediction", kChat, {}},
    {"web_search_options", kChat, {}},
    {"reasoning_effort", kChat, {R"("none")"}},
    {"verbosity", kChat, {R"("medium")"}},
    {"documents", kChat, {"[]"}},
    {"chat_template", kChat, {}},
    {"mm_processor_kwargs", kChat, {"{}"}},
    {"echo", kChat, {"false"}},
    {"suffix", kCompletion, {R"("")"}},
    {"prompt_embeds", kCompletion, {}},
    {"prompt_logprobs", kBoth, {}},
    {"bad_words", kBoth, {"[]"}},
    {"allowed_token_ids", kBoth, {}},
    {"structured_outputs", kBoth, {}},
    {"guided_json", kBoth, {}},
    {"guided_regex", kBoth, {}},
    {"guided_choice", kBoth, {}},
    {"guided_grammar", kBoth, {}},
    {"json_schema", kBoth, {}},
    {"grammar", kBoth, {R"("")"}},
    {"truncate_prompt_tokens", kBoth, {}},
    {"return_token_ids", kBoth, {"false"}},
    {"return_tokens_as_token_ids", kBoth, {"false"}},
    {"spaces_between_special_tokens", kBoth, {"true"}},
    {"use_beam_search", kBoth, {"false"}},
    {"length_penalty", kBoth, {"1", "1E0"}},
    {"logits_processors", kBoth, {"[]"}},
    {"typical_p", kBoth, {"1", "1E0"}},
    {"top_n_sigma", kBoth, {"-1", "-1E0", "0"}},
    {"dry_multiplier", kBoth, {"0", "0E0"}},
    {"xtc_probability", kBoth, {"0", "0E0"}},
    {"mirostat", kBoth, {"0", "0E0"}},
    {"dynatemp_range", kBoth, {"0", "0E0"}},
};

// Read elsewhere, or accepted without effect.
constexpr std::string_view kOtherNames[] = {
    "model",
    "messages",
    "prompt",
    "echo",
    "stop",
    "stop_token_ids",
    "seed",
    "logit_bias",
    "stream_options",
    "cache_salt",
    "best_of",
    "chat_template_kwargs",
    "add_generation_prompt",
    "user",
    "continue_final_message",
    "store",
    "metadata",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
};

}  // namespace

void read_params(FieldReader& reader, Form form, GenerationRequest& request) {
  for (const ParamRow& row : kParams) {
    if ((row.forms & form) == 0 || !reader.find(row.name)) continue;
    std::optional<double> value;
    switch (row.kind) {
      case Kind::kBool:
        value = reader.boolean(row.name);
        break;
      case Kind::kInteger:
        value = reader.integer(row.name, static_cast<int64_t>(row.low), static_cast<int64_t>(row.high));
        break;
      case Kind::kNumber:
      case Kind::kNumberAbove:
        value = reader.number(row.name, row.low, row.high, row.kind == Kind::kNumberAbove);
        break;
    }
    if (value) row.set(request, *value);
  }
}

void refuse_unsupported(FieldReader& reader, Form form) {
  for (const UnsupportedRow& row : kUnsupported) {
    if ((row.forms & form) == 0) continue;
    const json::value* value = reader.find(row.name);
    if (!value) continue;
    const std::string text = json::serialize(*value);
    if (std::find(row.neutral.begin(), row.neutral.end(), text) != row.neutral.end()) continue;
    const std::string_view usual = row.neutral[0];
    reader.fail(unsupported_error(row.name, fmt::format("not supported by this server; leave it out{}{}",
                                                        usual.empty() ? "" : " or send ", usual)));
  }
}

bool is_known_param(std::string_view name) {
  const auto same = [name](const auto& row) { return row.name == name; };
  return std::any_of(std::begin(kParams), std::end(kParams), same) ||
         std::any_of(std::begin(kUnsupported), std::end(kUnsupported), same) ||
         std::find(std::begin(kOtherNames), std::end(kOtherNames), name) != std::end(kOtherNames);
}

}  // namespace deepinfer::server
