#include "server/openapi.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <string_view>

#include "base/check.h"
#include "deepinfer/version.h"
#include "server/api.h"
#include "server/openapi_parts.h"
#include "server/params.h"

namespace deepinfer::server {

namespace json = boost::json;

namespace {

// `null` is the same as leaving a field out.
json::object or_null(json::object schema) {
  json::array forms;
  forms.emplace_back(std::move(schema));
  forms.emplace_back(json::parse(R"({"type": "null"})"));
  json::object either;
  either["anyOf"] = std::move(forms);
  return either;
}

json::object number_schema(const ParamRow& row) {
  const bool integer = row.kind == ParamKind::kInteger;
  json::object schema;
  schema["type"] = row.kind == ParamKind::kBool ? "boolean" : integer ? "integer" : "number";
  if (row.kind == ParamKind::kBool) return schema;
  if (integer) {
    schema["minimum"] = static_cast<int64_t>(row.low);
    schema["maximum"] = static_cast<int64_t>(row.high);
    // The one number with a hole: nothing would be left of the prompt.
    if (row.name == "truncate_prompt_tokens") schema["not"] = json::object{{"const", 0}};
  } else {
    schema[row.kind == ParamKind::kNumberAbove ? "exclusiveMinimum" : "minimum"] = row.low;
    schema["maximum"] = row.high;
  }
  return schema;
}

json::value parse_part(std::string text, const OpenApiFacts& facts) {
  const std::string last = std::to_string(facts.vocab_size > 0 ? facts.vocab_size - 1 : INT32_MAX);
  for (size_t at = text.find("$LAST"); at != std::string::npos; at = text.find("$LAST"))
    text.replace(at, 5, last);
  return json::parse(text);
}

// Of fields of other shapes: openapi_parts.h.
json::object other_schema(std::string_view name, const OpenApiFacts& facts) {
  std::string text;
  for (const FieldSchema& field : kFieldSchemas)
    if (field.name == name) text = field.schema;
  DI_CHECK(!text.empty(), "no schema for the field {}", name);
  return parse_part(text, facts).as_object();
}

json::object request_schema(Form form, const OpenApiFacts& facts) {
  json::object fields;
  json::array required;
  for (const ParamRow& row : param_table()) {
    if ((row.forms & form) == 0) continue;
    json::object field;
    const bool needed = row.fallback == "required";
    if (row.kind == ParamKind::kOther)
      field = needed ? other_schema(row.name, facts) : or_null(other_schema(row.name, facts));
    else if (row.kind != ParamKind::kIgnored)
      field = or_null(number_schema(row));
    field["description"] = row.text;
    fields[row.name] = std::move(field);
    if (needed) required.emplace_back(row.name);
  }
  for (const RefusedRow& row : refused_table()) {
    if ((row.forms & form) == 0) continue;
    json::array neutral;
    neutral.emplace_back(nullptr);
    for (const std::string_view value : row.neutral)
      if (!value.empty()) neutral.push_back(json::parse(value));
    json::object& field = fields[row.name].emplace_object();
    field["enum"] = std::move(neutral);
    field["description"] = row.instead;
  }
  fields["best_of"] = json::parse(R"({"enum": [null], "description": "choices are n; leave it out"})");
  json::object schema;
  schema["type"] = "object";
  schema["required"] = std::move(required);
  schema["properties"] = std::move(fields);
  const json::value rules = json::parse(form == kChat ? kChatRules : kCompletionRules);
  for (const auto& rule : rules.as_object()) schema[rule.key()] = rule.value();
  return schema;
}

}  // namespace

std::string openapi_document(const OpenApiFacts& facts) {
  json::object document = json::parse(kOpenApi).as_object();
  document["info"].as_object()["version"] = version();
  json::object& components = document["components"].as_object();
  json::object& schemas = components["schemas"].as_object();
  schemas["ChatRequest"] = request_schema(kChat, facts);
  schemas["CompletionRequest"] = request_schema(kCompletion, facts);
  schemas["TokenizeRequest"] = parse_part(std::string(kTokenize), facts);
  schemas["DetokenizeRequest"] = parse_part(std::string(kDetokenize), facts);
  if (facts.needs_key) {
    components["securitySchemes"] = json::parse(R"({"key": {"type": "http", "scheme": "bearer"}})");
    document["security"] = json::parse(R"([{"key": []}])");
  }
  return json::serialize(document);
}

boost::asio::awaitable<void> Api::openapi(HttpExchange& exchange) {
  const Llm* llm = llm_;
  co_await exchange.reply({200, openapi_document({llm ? llm->tokenizer->vocab_size() : 0, !keys_.empty()})});
}

}  // namespace deepinfer::server
