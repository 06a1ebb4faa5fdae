#include <algorithm>
#include <boost/json/parse.hpp>

#include "base/check.h"
#include "server/fields.h"
#include "server/openai.h"

namespace deepinfer::server {

namespace json = boost::json;

namespace {

constexpr size_t kMaxDepth = 64;  // of arguments that come as JSON text

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

}  // namespace

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

}  // namespace deepinfer::server
