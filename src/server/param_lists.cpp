#include "server/param_lists.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "base/check.h"

namespace deepinfer::server {

namespace json = boost::json;

namespace {

constexpr size_t kMaxKwargs = 64;
constexpr size_t kMaxKwargBytes = 4096;
constexpr size_t kMaxTemplateBytes = 256 << 10;

std::optional<std::string> text_of(const json::value& value, size_t max_bytes) {
  const json::string* text = value.if_string();
  if (!text || text->empty() || text->size() > max_bytes) return std::nullopt;
  return std::string(text->data(), text->size());
}

std::string text_range(size_t max_bytes) {
  return fmt::format("a string of 1 to {} bytes", max_bytes);
}

std::vector<std::string> read_texts(FieldReader& reader, std::string_view name, size_t max_items) {
  std::vector<std::string> texts;
  const json::array* items = reader.array(name, max_items);
  if (!items) return texts;
  for (size_t i = 0; i < items->size(); ++i) {
    auto text = text_of((*items)[i], kMaxWordBytes);
    if (!text) {
      reader.fail(field_error(fmt::format("{}[{}]", name, i), text_range(kMaxWordBytes), (*items)[i]));
      return texts;
    }
    texts.push_back(std::move(*text));
  }
  return texts;
}

std::vector<int32_t> read_ids(FieldReader& reader, std::string_view name, size_t max_items, int vocab_size) {
  std::vector<int32_t> ids;
  const json::array* items = reader.array(name, max_items);
  if (!items) return ids;
  ids.reserve(items->size());
  for (size_t i = 0; i < items->size(); ++i) {
    const auto id = token_id((*items)[i], vocab_size);
    if (!id) {
      reader.fail(field_error(fmt::format("{}[{}]", name, i), token_range(vocab_size), (*items)[i]));
      return ids;
    }
    ids.push_back(*id);
  }
  return ids;
}

bool is_template_name(std::string_view key) {
  // These have fields or sources of their own.
  static constexpr std::string_view kReserved[] = {"messages",        "tools",        "add_generation_prompt",
                                                   "bos_token",       "eos_token",    "chat_template",
                                                   "raise_exception", "strftime_now", "namespace",
                                                   "range",           "loop"};
  const bool is_name =
      !key.empty() && key.size() <= 64 && !(key[0] >= '0' && key[0] <= '9') &&
      std::all_of(key.begin(), key.end(), [](char c) {
        return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
      });
  return is_name && !key.starts_with("__") &&
         std::find(std::begin(kReserved), std::end(kReserved), key) == std::end(kReserved);
}

void read_kwargs(FieldReader& reader, ChatRequest& request) {
  const json::object* kwargs = reader.object("chat_template_kwargs", kMaxKwargs);
  if (!kwargs) return;
  for (const auto& entry : *kwargs) {
    const std::string_view key(entry.key().data(), entry.key().size());
    const std::string where = fmt::format("chat_template_kwargs.{}", key.substr(0, 100));
    if (!is_template_name(key))
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

// Documents for retrieval: objects of strings, as templates loop over them.
void read_documents(FieldReader& reader, ChatRequest& request) {
  const json::array* documents = reader.array("documents", kMaxDocuments);
  if (!documents || documents->empty()) return;
  for (size_t i = 0; i < documents->size(); ++i) {
    const json::object* document = (*documents)[i].if_object();
    const bool good = document && std::all_of(document->begin(), document->end(),
                                              [](const auto& entry) { return entry.value().is_string(); });
    if (!good)
      return reader.fail(field_error(fmt::format("documents[{}]", i), "an object whose values are strings",
                                     (*documents)[i]));
  }
  request.template_kwargs["documents"] = *documents;
}

void read_effort(FieldReader& reader, ChatRequest& request) {
  static constexpr std::string_view kEfforts[] = {"none", "minimal", "low", "medium", "high", "xhigh", "max"};
  const json::value* value = reader.find("reasoning_effort");
  if (!value) return;
  const auto text = text_of(*value, 16);
  if (!text || std::find(std::begin(kEfforts), std::end(kEfforts), *text) == std::end(kEfforts))
    return reader.fail(
        field_error("reasoning_effort", "one of none, minimal, low, medium, high, xhigh, max", *value));
  request.template_kwargs["reasoning_effort"] = *value;
  if (!request.template_kwargs.contains("enable_thinking"))
    request.template_kwargs["enable_thinking"] = *text != "none";
}

}  // namespace

std::optional<int32_t> token_id(const json::value& value, int vocab_size) {
  const auto id = as_integer(value);
  if (!id || *id < 0 || *id >= vocab_size) return std::nullopt;
  return static_cast<int32_t>(*id);
}

std::string token_range(int vocab_size) {
  return fmt::format("a token id from 0 to {}", vocab_size - 1);
}

void read_model(FieldReader& reader, const ParseContext&, GenerationRequest& request) {
  request.model = reader.string("model", kMaxName).value_or("");
}

void read_seed(FieldReader& reader, const ParseContext&, GenerationRequest& request) {
  const auto seed =
      reader.integer("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
  if (seed) request.sampling.seed = seed;
}

void read_stop(FieldReader& reader, const ParseContext&, GenerationRequest& request) {
  const json::value* value = reader.find("stop");
  if (!value) return;
  const auto add = [&](const json::value& item, const std::string& where) {
    auto text = text_of(item, kMaxStopBytes);
    if (!text) return reader.fail(field_error(where, text_range(kMaxStopBytes), item));
    request.stop.push_back(std::move(*text));
  };
  if (value->is_string()) return add(*value, "stop");
  const json::array* items = value->if_array();
  if (!items || items->size() > kMaxStops)
    return reader.fail(
        field_error("stop", fmt::format("a string or an array of at most {}", kMaxStops), *value));
  for (size_t i = 0; i < items->size(); ++i) add((*items)[i], fmt::format("stop[{}]", i));
}

void read_stop_ids(FieldReader& reader, const ParseContext& context, GenerationRequest& request) {
  request.sampling.stop_token_ids = read_ids(reader, "stop_token_ids", kMaxStopIds, context.vocab_size);
}

void read_allowed_ids(FieldReader& reader, const ParseContext& context, GenerationRequest& request) {
  const json::value* value = reader.find("allowed_token_ids");
  if (!value) return;
  auto ids =
      read_ids(reader, "allowed_token_ids", static_cast<size_t>(context.vocab_size), context.vocab_size);
  if (ids.empty())
    return reader.fail(field_error("allowed_token_ids", "an array of at least one token id", *value));
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  request.sampling.allowed_token_ids = std::move(ids);
}

void read_logit_bias(FieldReader& reader, const ParseContext& context, GenerationRequest& request) {
  const json::object* biases = reader.object("logit_bias", kMaxBiases);
  if (!biases) return;
  FieldReader inner(*biases, "logit_bias.");
  for (const auto& entry : *biases) {
    const std::string_view key(entry.key().data(), entry.key().size());
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= context.vocab_size)
      return reader.fail(
          field_error("logit_bias", "keys that are " + token_range(context.vocab_size), json::value(key)));
    if (const auto bias = inner.number(key, -100, 100))
      request.sampling.logit_bias.emplace_back(id, static_cast<float>(*bias));
  }
  if (!inner.ok()) {
    Error error = inner.error();
    error.param = "logit_bias";
    reader.fail(std::move(error));
  }
}

void read_bad_words(FieldReader& reader, const ParseContext&, GenerationRequest& request) {
  request.bad_words = read_texts(reader, "bad_words", kMaxBadWords);
}

void read_dry_breakers(FieldReader& reader, const ParseContext&, GenerationRequest& request) {
  const json::value* value = reader.find("dry_sequence_breakers");
  if (!value) return;
  auto breakers = read_texts(reader, "dry_sequence_breakers", kMaxBreakers);
  if (reader.ok()) request.dry_breakers = std::move(breakers);
}

void read_cache_salt(FieldReader& reader, const ParseContext&, GenerationRequest& request) {
  const json::value* value = reader.find("cache_salt");
  if (!value) return;
  auto text = text_of(*value, kMaxName);
  if (!text) return reader.fail(field_error("cache_salt", text_range(kMaxName), *value));
  request.cache_salt = std::move(*text);
}

void read_request_id(FieldReader& reader, const ParseContext&, GenerationRequest& request) {
  const json::value* value = reader.find("request_id");
  if (!value) return;
  auto text = text_of(*value, 128);
  const bool plain =
      text && std::all_of(text->begin(), text->end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
  if (!plain)
    return reader.fail(field_error("request_id", "1 to 128 visible ASCII characters without spaces", *value));
  request.request_id = std::move(*text);
}

void read_truncation_side(FieldReader& reader, const ParseContext&, GenerationRequest& request) {
  const json::value* value = reader.find("truncation_side");
  if (!value) return;
  if (*value != "left" && *value != "right")
    return reader.fail(field_error("truncation_side", "left or right", *value));
  request.truncate_end = *value == "right";
}

void read_stream_options(FieldReader& reader, const ParseContext&, GenerationRequest& request) {
  const json::object* options = reader.object("stream_options", 16);
  if (!options) return;
  if (!request.stream)
    return reader.fail(Error{ErrorCode::kInvalidArgument, "stream_options: only together with stream: true",
                             "stream_options"});
  FieldReader inner(*options, "stream_options.");
  request.include_usage = inner.boolean("include_usage").value_or(false);
  const bool continuous = inner.boolean("continuous_usage_stats").value_or(false);
  request.continuous_usage = continuous && request.include_usage;
  if (!inner.ok()) reader.fail(inner.error());
}

void read_template_fields(FieldReader& reader, const ParseContext& context, ChatRequest& request) {
  request.chat_template = reader.string("chat_template", kMaxTemplateBytes).value_or("");
  if (!request.chat_template.empty() && !context.trust_chat_template)
    reader.fail(unsupported_error("chat_template",
                                  "this server takes no templates from requests; leave it out, or set "
                                  "server.trust_request_chat_template"));
  read_kwargs(reader, request);
  read_documents(reader, request);
  read_effort(reader, request);
}

}  // namespace deepinfer::server
