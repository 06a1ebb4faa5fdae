#include "server/openai.h"

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/stream_parser.hpp>
#include <charconv>
#include <limits>

#include "base/check.h"
#include "server/fields.h"
#include "server/params.h"

namespace deepinfer::server {

namespace json = boost::json;

namespace {

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxStops = 4;
constexpr size_t kMaxStopBytes = 4096;
constexpr size_t kMaxIds = 4096;
constexpr size_t kMaxPrompts = 1024;
constexpr size_t kMaxKwargs = 64;
constexpr size_t kMaxKwargBytes = 4096;

std::optional<int32_t> token_id(const json::value& value, int vocab_size) {
  const auto id = as_integer(value);
  if (!id || *id < 0 || *id >= vocab_size) return std::nullopt;
  return static_cast<int32_t>(*id);
}

std::string token_range(int vocab_size) {
  return fmt::format("a token id from 0 to {}", vocab_size - 1);
}

void read_stop(FieldReader& reader, GenerationRequest& request) {
  const json::value* value = reader.find("stop");
  if (!value) return;
  const auto add = [&](const json::value& item, const std::string& where) {
    const json::string* text = item.if_string();
    if (!text || text->empty() || text->size() > kMaxStopBytes)
      return reader.fail(field_error(where, fmt::format("a string of 1 to {} bytes", kMaxStopBytes), item));
    request.stop.emplace_back(text->data(), text->size());
  };
  if (value->is_string()) return add(*value, "stop");
  const json::array* items = value->if_array();
  if (!items || items->size() > kMaxStops)
    return reader.fail(
        field_error("stop", fmt::format("a string or an array of at most {}", kMaxStops), *value));
  for (size_t i = 0; i < items->size(); ++i) add((*items)[i], fmt::format("stop[{}]", i));
}

void read_stop_ids(FieldReader& reader, int vocab_size, SamplingParams& sampling) {
  const json::array* items = reader.array("stop_token_ids", kMaxIds);
  if (!items) return;
  for (size_t i = 0; i < items->size(); ++i) {
    const auto id = token_id((*items)[i], vocab_size);
    if (!id)
      return reader.fail(
          field_error(fmt::format("stop_token_ids[{}]", i), token_range(vocab_size), (*items)[i]));
    sampling.stop_token_ids.push_back(*id);
  }
}

void read_logit_bias(FieldReader& reader, int vocab_size, SamplingParams& sampling) {
  const json::object* biases = reader.object("logit_bias", kMaxIds);
  if (!biases) return;
  FieldReader inner(*biases, "logit_bias.");
  for (const auto& entry : *biases) {
    const std::string_view key(entry.key().data(), entry.key().size());
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= vocab_size)
      return reader.fail(
          field_error("logit_bias", "keys that are " + token_range(vocab_size), json::value(key)));
    if (const auto bias = inner.number(key, -100, 100))
      sampling.logit_bias.emplace_back(id, static_cast<float>(*bias));
  }
  if (!inner.ok()) {
    Error error = inner.error();
    error.param = "logit_bias";
    reader.fail(std::move(error));
  }
}

void read_stream_options(FieldReader& reader, GenerationRequest& request) {
  const json::object* options = reader.object("stream_options", 16);
  if (!options) return;
  if (!request.stream)
    return reader.fail(Error{ErrorCode::kInvalidArgument, "stream_options: only together with stream: true",
                             "stream_options"});
  FieldReader inner(*options, "stream_options.");
  request.include_usage = inner.boolean("include_usage").value_or(false);
  if (inner.boolean("continuous_usage_stats").value_or(false))
    inner.fail(
        unsupported_error("stream_options.continuous_usage_stats", "not supported; use include_usage"));
  if (!inner.ok()) reader.fail(inner.error());
}

// What the table cannot say: fields of other shapes, and rules between fields.
void read_common(FieldReader& reader, Form form, const ParseContext& context, GenerationRequest& request) {
  request.sampling = context.defaults;
  request.add_special_tokens = form == kCompletion;
  refuse_unsupported(reader, form);
  read_params(reader, form, request);
  request.model = reader.string("model", 1024).value_or("");
  request.cache_salt = reader.string("cache_salt", 1024).value_or("");
  if (const auto seed =
          reader.integer("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()))
    request.sampling.seed = seed;
  read_stop(reader, request);
  read_stop_ids(reader, context.vocab_size, request.sampling);
  read_logit_bias(reader, context.vocab_size, request.sampling);
  read_stream_options(reader, request);
  const auto best_of = reader.integer("best_of", 1, 128);
  if (best_of && *best_of != request.sampling.n)
    reader.fail(unsupported_error("best_of", "not supported; leave it out or send the value of n"));
  if (form == kChat && !request.logprobs && reader.find("top_logprobs"))
    reader.fail(Error{ErrorCode::kInvalidArgument, "top_logprobs: needs logprobs: true", "top_logprobs"});
  if (request.logprobs) request.sampling.logprobs = request.top_logprobs;
  if (!request.max_tokens) request.max_tokens = context.max_tokens;
  if (request.max_tokens && request.sampling.min_tokens > *request.max_tokens)
    reader.fail(Error{ErrorCode::kInvalidArgument,
                      fmt::format("min_tokens: got {}, expected at most max_tokens, which is {}",
                                  request.sampling.min_tokens, *request.max_tokens),
                      "min_tokens"});
}

Result<json::string> join_parts(const json::array& parts, const std::string& where) {
  json::string text;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string here = fmt::format("{}[{}]", where, i);
    const json::object* part = parts[i].if_object();
    if (!part) return field_error(here, "an object with 'type'", parts[i]);
    FieldReader reader(*part, here + ".");
    const std::string type = reader.string("type", 256).value_or("");
    if (type != "text" && type != "refusal" && type != "input_text" && type != "output_text") {
      if (type.empty()) return field_error(here + ".type", "\"text\"", parts[i]);
      return unsupported_error(here + ".type", "this model takes text alone; got a part of type " + type);
    }
    const json::value* words = part->if_contains(type == "refusal" ? "refusal" : "text");
    if (!words || !words->is_string())
      return field_error(here + ".text", "a string", words ? *words : json::value(nullptr));
    if (i > 0) text += "\n";
    text += words->get_string();
  }
  return text;
}

// Templates loop over the arguments as an object; clients send them as JSON text.
Result<json::array> checked_tool_calls(const json::value& value, const std::string& where) {
  const json::array* calls = value.if_array();
  if (!calls || calls->empty() || calls->size() > 128)
    return field_error(where, "an array of 1 to 128 calls", value);
  json::array out;
  for (size_t i = 0; i < calls->size(); ++i) {
    const std::string here = fmt::format("{}[{}]", where, i);
    const json::object* call = (*calls)[i].if_object();
    const json::value* function = call ? call->if_contains("function") : nullptr;
    if (!function || !function->is_object())
      return field_error(here, "an object with 'function'", (*calls)[i]);
    const json::value* name = function->get_object().if_contains("name");
    if (!name || !name->is_string())
      return field_error(here + ".function", "an object with 'name'", *function);
    json::object copy = *call;
    json::object& inner = copy["function"].get_object();
    if (const json::string* text = inner["arguments"].if_string()) {
      json::parse_options options;
      options.max_depth = kMaxDepth;
      json::error_code error;
      json::value parsed = json::parse(*text, error, {}, options);
      if (!error && parsed.is_object()) inner["arguments"] = std::move(parsed);
    } else if (inner["arguments"].is_null()) {
      inner["arguments"] = json::object();
    }
    out.push_back(std::move(copy));
  }
  return out;
}

Result<json::object> checked_message(const json::value& value, const std::string& where) {
  const json::object* in = value.if_object();
  if (!in) return field_error(where, "an object with 'role' and 'content'", value);
  json::object out = *in;
  const json::value* role = in->if_contains("role");
  static constexpr std::string_view kRoles[] = {"system",    "developer", "user",
                                                "assistant", "tool",      "function"};
  const json::string* name = role ? role->if_string() : nullptr;
  if (!name || std::find(std::begin(kRoles), std::end(kRoles),
                         std::string_view(name->data(), name->size())) == std::end(kRoles))
    return field_error(where + ".role", "one of system, developer, user, assistant, tool",
                       role ? *role : json::value(nullptr));
  if (*name == "developer") out["role"] = "system";
  const json::value* calls = in->if_contains("tool_calls");
  const bool has_calls = calls && !calls->is_null();
  if (has_calls && *name != "assistant")
    return field_error(where + ".tool_calls", "them in assistant messages only", *calls);
  if (has_calls) {
    DI_ASSIGN(out["tool_calls"], checked_tool_calls(*calls, where + ".tool_calls"));
  } else {
    out.erase("tool_calls");
  }
  const json::value* content = in->if_contains("content");
  if (content && content->is_array()) {
    DI_ASSIGN(out["content"], join_parts(content->get_array(), where + ".content"));
  } else if (!content || content->is_null()) {
    if (*name != "assistant" || (!has_calls && !in->contains("refusal") && !in->contains("function_call")))
      return field_error(where + ".content", "a string or an array of parts", json::value(nullptr));
    out["content"] = has_calls ? json::value(nullptr) : json::value("");
  } else if (!content->is_string()) {
    return field_error(where + ".content", "a string or an array of parts", *content);
  }
  return out;
}

void read_kwargs(FieldReader& reader, ChatRequest& request) {
  const json::object* kwargs = reader.object("chat_template_kwargs", kMaxKwargs);
  if (!kwargs) return;
  // These have fields or sources of their own.
  static constexpr std::string_view kReserved[] = {"messages",        "tools",        "add_generation_prompt",
                                                   "bos_token",       "eos_token",    "chat_template",
                                                   "raise_exception", "strftime_now", "namespace",
                                                   "range",           "loop"};
  for (const auto& entry : *kwargs) {
    const std::string_view key(entry.key().data(), entry.key().size());
    const std::string where = fmt::format("chat_template_kwargs.{}", key.substr(0, 100));
    const bool is_name =
        !key.empty() && key.size() <= 64 && !(key[0] >= '0' && key[0] <= '9') &&
        std::all_of(key.begin(), key.end(), [](char c) {
          return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        });
    if (!is_name || key.starts_with("__") ||
        std::find(std::begin(kReserved), std::end(kReserved), key) != std::end(kReserved))
      return reader.fail(Error{ErrorCode::kInvalidArgument,
                               where + ": this name cannot be given to the template",
                               "chat_template_kwargs"});
    const json::value& value = entry.value();
    const bool plain = !value.is_array() && !value.is_object() &&
                       (!value.is_string() || value.get_string().size() <= kMaxKwargBytes);
    if (!plain)
      return reader.fail(
          field_error(where, "a boolean, a number, null or a string of at most 4096 bytes", value));
    request.template_kwargs.emplace(key, value);
  }
}

}  // namespace

Result<json::object> parse_body(std::string_view body) {
  json::parse_options options;
  options.max_depth = kMaxDepth;
  json::stream_parser parser({}, options);
  json::error_code error;
  size_t place = body.empty() ? 0 : parser.write(body.data(), body.size(), error);
  if (!error) parser.finish(error);
  if (error == json::error::too_deep)
    return make_error(ErrorCode::kInvalidArgument, "the body's JSON is nested deeper than {} levels",
                      kMaxDepth);
  if (error)
    return make_error(ErrorCode::kInvalidArgument, "the body is not valid JSON: {} near byte {}",
                      error.message(), place);
  json::value value = parser.release();
  if (!value.is_object())
    return make_error(ErrorCode::kInvalidArgument, "the body is {}, expected a JSON object",
                      kind_name(value));
  return std::move(value.get_object());
}

Result<json::array> parse_messages(const json::object& body) {
  const json::value* value = body.if_contains("messages");
  const json::array* messages = value ? value->if_array() : nullptr;
  if (!messages || messages->empty())
    return field_error("messages", "an array of at least one message", value ? *value : json::value(nullptr));
  json::array out;
  out.reserve(messages->size());
  for (size_t i = 0; i < messages->size(); ++i) {
    auto message = checked_message((*messages)[i], fmt::format("messages[{}]", i));
    if (!message) return std::move(message).error();
    out.push_back(std::move(*message));
  }
  return out;
}

Result<ChatRequest> parse_chat(const json::object& body, const ParseContext& context) {
  ChatRequest request;
  FieldReader reader(body);
  read_common(reader, kChat, context, request);
  const auto add = reader.boolean("add_generation_prompt");
  request.continue_final_message = reader.boolean("continue_final_message").value_or(false);
  request.add_generation_prompt = add.value_or(!request.continue_final_message);
  read_kwargs(reader, request);
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
  FieldReader reader(body);
  read_common(reader, kCompletion, context, request);
  request.echo = reader.boolean("echo").value_or(false);
  if (request.echo && request.logprobs)
    reader.fail(unsupported_error("echo", "not supported together with logprobs"));
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
