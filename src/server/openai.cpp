#include "server/openai.h"

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/stream_parser.hpp>

#include "base/check.h"
#include "server/fields.h"
#include "server/params.h"

namespace deepinfer::server {

namespace json = boost::json;

namespace {

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxPrompts = 1024;

// What the table cannot say: rules between fields.
void check_together(FieldReader& reader, Form form, const GenerationRequest& request) {
  const auto refuse = [&reader](const char* param, std::string_view why) {
    reader.fail(Error{ErrorCode::kInvalidArgument, fmt::format("{}: {}", param, why), param});
  };
  const auto best_of = reader.integer("best_of", 1, 128);
  if (best_of && *best_of != request.sampling.n)
    reader.fail(
        unsupported_error("best_of", "answers are not ranked here; leave it out or send the value of n"));
  if (form == kChat && !request.logprobs && request.top_logprobs > 0)
    refuse("top_logprobs", "needs logprobs: true");
  if (request.stream && request.prompt_logprobs)
    refuse("prompt_logprobs", "not available in a stream; send stream: false");
  if (request.truncate_prompt_tokens == 0)
    refuse("truncate_prompt_tokens", "got 0, expected -1, or at least 1");
  if (request.max_tokens && request.sampling.min_tokens > *request.max_tokens)
    refuse("min_tokens", fmt::format("got {}, expected at most max_tokens, which is {}",
                                     request.sampling.min_tokens, *request.max_tokens));
}

void read_common(FieldReader& reader, Form form, const ParseContext& context, GenerationRequest& request) {
  request.sampling = context.defaults;
  request.add_special_tokens = form == kCompletion;
  refuse_unsupported(reader, form);
  read_params(reader, form, context, request);
  if (!request.max_tokens) request.max_tokens = context.max_tokens;
  check_together(reader, form, request);
  SamplingParams& sampling = request.sampling;
  if (request.logprobs) sampling.logprobs = request.top_logprobs;
  if (request.prompt_logprobs) sampling.prompt_logprobs = *request.prompt_logprobs;
  if (form == kCompletion && request.echo && request.logprobs)  // the prompt's stand in the same lists
    sampling.prompt_logprobs = std::max(sampling.prompt_logprobs, request.top_logprobs);
}

}  // namespace

Result<json::object> parse_body(std::string_view body, std::string_view what) {
  json::parse_options options;
  options.max_depth = kMaxDepth;
  json::stream_parser parser({}, options);
  json::error_code error;
  size_t place = body.empty() ? 0 : parser.write(body.data(), body.size(), error);
  if (!error) parser.finish(error);
  if (error == json::error::too_deep)
    return make_error(ErrorCode::kInvalidArgument, "{} is JSON nested deeper than {} levels", what,
                      kMaxDepth);
  if (error)
    return make_error(ErrorCode::kInvalidArgument, "{} is not valid JSON: {} near byte {}", what,
                      error.message(), place);
  json::value value = parser.release();
  if (!value.is_object())
    return make_error(ErrorCode::kInvalidArgument, "{} is {}, expected a JSON object", what,
                      kind_name(value));
  return std::move(value.get_object());
}

Result<ChatRequest> parse_chat(const json::object& body, const ParseContext& context) {
  ChatRequest request;
  FieldReader reader(body);
  read_common(reader, kChat, context, request);
  const auto add = reader.boolean("add_generation_prompt");
  request.continue_final_message = reader.boolean("continue_final_message").value_or(false);
  request.add_generation_prompt = add.value_or(!request.continue_final_message);
  read_template_fields(reader, context, request);
  if (!reader.ok()) return reader.error();
  DI_ASSIGN(request.messages, parse_messages(body));
  if (request.continue_final_message) {
    const json::object& last = request.messages.back().get_object();
    if (request.add_generation_prompt || last.at("role") != "assistant" || !last.at("content").is_string())
      return Error{ErrorCode::kInvalidArgument,
                   "continue_final_message: needs a last message of the assistant with text, and no "
                   "add_generation_prompt",
                   "continue_final_message"};
  }
  return request;
}

Result<std::vector<PromptInput>> parse_prompts(const json::object& body, int vocab_size) {
  const json::value* value = body.if_contains("prompt");
  const json::value null;
  std::vector<PromptInput> prompts;
  const auto wrong = [&](std::string_view where, const json::value& got) {
    return field_error(where, "a string, token ids, or an array of either", got);
  };
  const auto ids_of = [&](const json::array& items,
                          const std::string& where) -> Result<std::vector<int32_t>> {
    std::vector<int32_t> ids;
    ids.reserve(items.size());
    for (size_t i = 0; i < items.size(); ++i) {
      const auto id = token_id(items[i], vocab_size);
      if (!id) return field_error(fmt::format("{}[{}]", where, i), token_range(vocab_size), items[i]);
      ids.push_back(*id);
    }
    return ids;
  };
  if (!value || value->is_null()) return wrong("prompt", null);
  if (const json::string* text = value->if_string()) {
    prompts.emplace_back(std::string(text->data(), text->size()));
    return prompts;
  }
  const json::array* items = value->if_array();
  if (!items || items->empty()) return wrong("prompt", *value);
  if (items->front().is_number()) {
    DI_ASSIGN(auto ids, ids_of(*items, "prompt"));
    prompts.emplace_back(std::move(ids));
    return prompts;
  }
  if (items->size() > kMaxPrompts)
    return field_error("prompt", fmt::format("at most {} prompts", kMaxPrompts), *value);
  for (size_t i = 0; i < items->size(); ++i) {
    const std::string where = fmt::format("prompt[{}]", i);
    const json::value& item = (*items)[i];
    if (const json::string* text = item.if_string()) {
      prompts.emplace_back(std::string(text->data(), text->size()));
    } else if (const json::array* numbers = item.if_array(); numbers && !numbers->empty()) {
      DI_ASSIGN(auto ids, ids_of(*numbers, where));
      prompts.emplace_back(std::move(ids));
    } else {
      return wrong(where, item);
    }
  }
  return prompts;
}

Result<CompletionRequest> parse_completion(const json::object& body, const ParseContext& context) {
  CompletionRequest request;
  request.end_token_logprobs = true;  // who scores prompts drops the last token of the list
  FieldReader reader(body);
  read_common(reader, kCompletion, context, request);
  if (!reader.ok()) return reader.error();
  DI_ASSIGN(request.prompts, parse_prompts(body, context.vocab_size));
  return request;
}

std::vector<std::string> unknown_fields(const json::object& body) {
  std::vector<std::string> names;
  for (const auto& entry : body)
    if (!is_known_param({entry.key().data(), entry.key().size()})) names.emplace_back(entry.key());
  return names;
}

}  // namespace deepinfer::server
