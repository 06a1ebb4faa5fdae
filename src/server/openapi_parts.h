// The parts of the description of the API that no table holds: routes, answers, and fields of a shape of
// their own. $LAST is the largest token id.
#pragma once

#include <string_view>

namespace deepinfer::server {

struct FieldSchema {
  std::string_view name, schema;
};

inline constexpr FieldSchema kFieldSchemas[] = {
    {"model", R"({"type": "string", "maxLength": 1024})"},
    {"messages", R"({"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Message"}})"},
    {"prompt", R"({"anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": $LAST}},
        {"type": "array", "minItems": 1, "maxItems": 1024, "items": {"type": "string", "minLength": 1}},
        {"type": "array", "minItems": 1, "maxItems": 1024, "items":
            {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": $LAST}}}]})"},
    {"stop", R"({"anyOf": [{"type": "string", "minLength": 1, "maxLength": 1024},
        {"type": "array", "maxItems": 4, "items": {"type": "string", "minLength": 1, "maxLength": 1024}}]})"},
    {"stop_token_ids", R"({"type": "array", "maxItems": 1024,
        "items": {"type": "integer", "minimum": 0, "maximum": $LAST}})"},
    {"seed", R"({"type": "integer", "minimum": -9223372036854775808, "maximum": 9223372036854775807})"},
    {"logit_bias", R"({"type": "object", "maxProperties": 1024, "propertyNames": {"pattern": "^[0-9]+$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}})"},
    {"allowed_token_ids", R"({"type": "array", "minItems": 1, "uniqueItems": true,
        "items": {"type": "integer", "minimum": 0, "maximum": $LAST}})"},
    {"bad_words", R"({"type": "array", "maxItems": 1024,
        "items": {"type": "string", "minLength": 1, "maxLength": 256}})"},
    {"dry_sequence_breakers", R"({"type": "array", "maxItems": 64,
        "items": {"type": "string", "minLength": 1, "maxLength": 256}})"},
    {"stream_options", R"({"type": "object", "properties": {
        "include_usage": {"type": ["boolean", "null"]}, "continuous_usage_stats": {"type": ["boolean", "null"]}}})"},
    {"add_generation_prompt", R"({"type": "boolean"})"},
    {"continue_final_message", R"({"type": "boolean"})"},
    {"chat_template", R"({"type": "null"})"},
    {"chat_template_kwargs", R"({"type": "object", "maxProperties": 64,
        "propertyNames": {"pattern": "^(?!__)(?!(messages|tools|add_generation_prompt|bos_token|eos_token)$)(?!(chat_template|raise_exception|strftime_now|namespace|range|loop)$)[A-Za-z_][A-Za-z0-9_]{0,63}$"},
        "additionalProperties": {"anyOf": [{"type": ["boolean", "number", "null"]},
                                           {"type": "string", "maxLength": 1024}]}})"},
    {"documents", R"({"type": "array", "maxItems": 256,
        "items": {"type": "object", "additionalProperties": {"type": "string"}}})"},
    {"reasoning_effort", R"({"enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max"]})"},
    {"truncation_side", R"({"enum": ["left", "right"]})"},
    {"cache_salt", R"({"type": "string", "minLength": 1, "maxLength": 256})"},
    {"request_id", R"({"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"})"},
};

// What holds between fields.
inline constexpr std::string_view kChatRules = R"({"allOf": [
  {"if": {"required": ["prompt_logprobs"], "properties": {"prompt_logprobs": {"type": "integer"}}},
   "then": {"properties": {"stream": {"enum": [false, null]}}}},
  {"if": {"required": ["stream_options"], "properties": {"stream_options": {"type": "object"}}},
   "then": {"required": ["stream"], "properties": {"stream": {"const": true}}}},
  {"if": {"required": ["top_logprobs"], "properties": {"top_logprobs": {"type": "integer"}}},
   "then": {"required": ["logprobs"], "properties": {"logprobs": {"const": true}}}}]})";
inline constexpr std::string_view kCompletionRules = R"({"allOf": [
  {"if": {"required": ["prompt_logprobs"], "properties": {"prompt_logprobs": {"type": "integer"}}},
   "then": {"properties": {"stream": {"enum": [false, null]}}}},
  {"if": {"required": ["stream_options"], "properties": {"stream_options": {"type": "object"}}},
   "then": {"required": ["stream"], "properties": {"stream": {"const": true}}}}]})";

inline constexpr std::string_view kTokenize = R"({"anyOf": [
  {"type": "object", "required": ["prompt"], "not": {"required": ["messages"]}, "properties": {
    "model": {"type": ["string", "null"], "maxLength": 1024}, "prompt": {"type": "string"},
    "add_special_tokens": {"type": ["boolean", "null"]}, "return_token_strs": {"type": ["boolean", "null"]}}},
  {"type": "object", "required": ["messages"], "properties": {
    "model": {"type": ["string", "null"], "maxLength": 1024},
    "messages": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Message"}},
    "add_generation_prompt": {"type": ["boolean", "null"]}, "return_token_strs": {"type": ["boolean", "null"]}}}]})";
inline constexpr std::string_view kDetokenize = R"({"type": "object", "required": ["tokens"], "properties": {
  "model": {"type": ["string", "null"], "maxLength": 1024},
  "tokens": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": $LAST}}}})";

inline constexpr std::string_view kOpenApi = R"JSON({
"openapi": "3.1.0",
"info": {"title": "DeepInfer", "description": "The OpenAI API's routes for text, and some of vLLM's."},
"paths": {
  "/v1/chat/completions": {"post": {"operationId": "chat", "summary": "An answer to messages",
    "requestBody": {"required": true, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}}},
    "responses": {
      "200": {"description": "the answer, or its events", "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/ChatCompletion"}},
        "text/event-stream": {"schema": {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}}}},
      "400": {"$ref": "#/components/responses/Error"}, "401": {"$ref": "#/components/responses/Error"},
      "404": {"$ref": "#/components/responses/Error"}, "413": {"$ref": "#/components/responses/Error"},
      "429": {"$ref": "#/components/responses/Error"}, "503": {"$ref": "#/components/responses/Error"},
      "504": {"$ref": "#/components/responses/Error"}}}},
  "/v1/completions": {"post": {"operationId": "complete", "summary": "What follows a prompt",
    "requestBody": {"required": true, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/CompletionRequest"}}}},
    "responses": {
      "200": {"description": "the answer, or its events", "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/Completion"}},
        "text/event-stream": {"schema": {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}}}},
      "400": {"$ref": "#/components/responses/Error"}, "401": {"$ref": "#/components/responses/Error"},
      "404": {"$ref": "#/components/responses/Error"}, "413": {"$ref": "#/components/responses/Error"},
      "429": {"$ref": "#/components/responses/Error"}, "503": {"$ref": "#/components/responses/Error"},
      "504": {"$ref": "#/components/responses/Error"}}}},
  "/v1/models": {"get": {"operationId": "models", "summary": "What is served", "responses": {
    "200": {"description": "a list", "content": {"application/json": {"schema": {"type": "object",
      "required": ["object", "data"], "properties": {"object": {"const": "list"},
      "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}}}}}}},
    "401": {"$ref": "#/components/responses/Error"}, "503": {"$ref": "#/components/responses/Error"}}}},
  "/v1/models/{model}": {"get": {"operationId": "model", "summary": "One model",
    "parameters": [{"name": "model", "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}],
    "responses": {
    "200": {"description": "the model", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Model"}}}},
    "401": {"$ref": "#/components/responses/Error"}, "404": {"$ref": "#/components/responses/Error"},
    "503": {"$ref": "#/components/responses/Error"}}}},
  "/tokenize": {"post": {"operationId": "tokenize", "summary": "Text to token ids",
    "requestBody": {"required": true, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/TokenizeRequest"}}}},
    "responses": {
    "200": {"description": "the ids", "content": {"application/json": {"schema": {"type": "object",
      "required": ["count", "max_model_len", "tokens"], "properties": {"count": {"type": "integer", "minimum": 0},
      "max_model_len": {"type": "integer"}, "tokens": {"type": "array", "items": {"type": "integer"}},
      "token_strs": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}}}}}},
    "400": {"$ref": "#/components/responses/Error"}, "401": {"$ref": "#/components/responses/Error"},
    "404": {"$ref": "#/components/responses/Error"}, "413": {"$ref": "#/components/responses/Error"},
    "429": {"$ref": "#/components/responses/Error"}, "503": {"$ref": "#/components/responses/Error"}}}},
  "/detokenize": {"post": {"operationId": "detokenize", "summary": "Token ids to text",
    "requestBody": {"required": true, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/DetokenizeRequest"}}}},
    "responses": {
    "200": {"description": "the text", "content": {"application/json": {"schema": {"type": "object",
      "required": ["prompt"], "properties": {"prompt": {"type": "string"}}}}}},
    "400": {"$ref": "#/components/responses/Error"}, "401": {"$ref": "#/components/responses/Error"},
    "404": {"$ref": "#/components/responses/Error"}, "413": {"$ref": "#/components/responses/Error"},
    "429": {"$ref": "#/components/responses/Error"}, "503": {"$ref": "#/components/responses/Error"}}}},
  "/v1/gpu/info": {"get": {"operationId": "gpus", "summary": "The machine's GPUs", "responses": {
    "200": {"description": "facts about each, null where unknown", "content": {"application/json": {"schema": {
      "type": "object", "required": ["gpu_count", "gpus", "message"], "properties": {
      "gpu_count": {"type": "integer", "minimum": 0}, "gpus": {"type": "array", "items": {"type": "object"}},
      "message": {"type": ["string", "null"]}}}}}},
    "401": {"$ref": "#/components/responses/Error"}, "429": {"$ref": "#/components/responses/Error"}}}},
  "/health": {"get": {"operationId": "health", "summary": "Whether the process works", "security": [], "responses": {
    "200": {"description": "it does", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Status"}}}},
    "503": {"$ref": "#/components/responses/Error"}}}},
  "/health/ready": {"get": {"operationId": "ready", "summary": "Whether requests are served", "security": [], "responses": {
    "200": {"description": "they are", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Status"}}}},
    "503": {"$ref": "#/components/responses/Error"}}}},
  "/metrics": {"get": {"operationId": "metrics", "summary": "Counters in the text format of Prometheus", "security": [],
    "responses": {"200": {"description": "the counters", "content": {"text/plain": {"schema": {"type": "string"}}}}}}},
  "/reset_prefix_cache": {"post": {"operationId": "reset_prefix_cache", "summary": "Forget the cached prefixes",
    "responses": {"200": {"description": "they are forgotten"},
    "400": {"$ref": "#/components/responses/Error"}, "401": {"$ref": "#/components/responses/Error"},
    "409": {"$ref": "#/components/responses/Error"}, "429": {"$ref": "#/components/responses/Error"},
    "503": {"$ref": "#/components/responses/Error"}}}},
  "/start_profile": {"post": {"operationId": "start_profile", "summary": "Record where the time goes; where the settings ask for profiles",
    "responses": {"200": {"description": "it records", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Status"}}}},
    "401": {"$ref": "#/components/responses/Error"}, "404": {"$ref": "#/components/responses/Error"},
    "409": {"$ref": "#/components/responses/Error"}, "429": {"$ref": "#/components/responses/Error"},
    "503": {"$ref": "#/components/responses/Error"}}}},
  "/stop_profile": {"post": {"operationId": "stop_profile", "summary": "Write the trace and tell where the time went",
    "responses": {"200": {"description": "the file and the summary", "content": {"application/json": {"schema": {"type": "object",
      "required": ["file", "events", "dropped", "summary", "text"], "properties": {"file": {"type": "string"},
      "events": {"type": "integer", "minimum": 0}, "dropped": {"type": "integer", "minimum": 0},
      "summary": {"type": "object"}, "text": {"type": "string"}}}}}},
    "401": {"$ref": "#/components/responses/Error"}, "404": {"$ref": "#/components/responses/Error"},
    "409": {"$ref": "#/components/responses/Error"}, "429": {"$ref": "#/components/responses/Error"},
    "500": {"$ref": "#/components/responses/Error"}, "503": {"$ref": "#/components/responses/Error"}}}},
  "/version": {"get": {"operationId": "version", "summary": "Which program this is", "security": [], "responses": {
    "200": {"description": "its version", "content": {"application/json": {"schema": {"type": "object",
      "required": ["version"], "properties": {"version": {"type": "string"}}}}}}}}}
},
"components": {
  "responses": {"Error": {"description": "what was wrong", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}},
  "schemas": {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "object",
      "required": ["message", "type", "param", "code"], "properties": {"message": {"type": "string", "minLength": 1},
      "type": {"type": "string"}, "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}}}}},
    "Status": {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}},
    "Model": {"type": "object", "required": ["id", "object", "created", "owned_by", "max_model_len"], "properties": {
      "id": {"type": "string"}, "object": {"const": "model"}, "created": {"type": "integer"},
      "owned_by": {"type": "string"}, "max_model_len": {"type": "integer"}}},
    "Message": {"type": "object", "required": ["role", "content"], "properties": {
      "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
      "content": {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "object",
        "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": {"type": "string"}}}}]},
      "tool_calls": {"type": "null"}}},
    "Usage": {"type": "object", "required": ["prompt_tokens", "completion_tokens", "total_tokens"], "properties": {
      "prompt_tokens": {"type": "integer", "minimum": 0}, "completion_tokens": {"type": "integer", "minimum": 0},
      "total_tokens": {"type": "integer", "minimum": 0}, "prompt_tokens_details": {"type": "object"}}},
    "ChatCompletion": {"type": "object", "required": ["id", "object", "created", "model", "choices", "usage"], "properties": {
      "id": {"type": "string"}, "object": {"const": "chat.completion"}, "created": {"type": "integer"},
      "model": {"type": "string"}, "usage": {"$ref": "#/components/schemas/Usage"},
      "choices": {"type": "array", "items": {"type": "object", "required": ["index", "message", "finish_reason"],
        "properties": {"index": {"type": "integer", "minimum": 0}, "finish_reason": {"enum": ["stop", "length"]},
        "message": {"type": "object", "required": ["role", "content"], "properties": {
          "role": {"const": "assistant"}, "content": {"type": ["string", "null"]}}}}}}}},
    "Completion": {"type": "object", "required": ["id", "object", "created", "model", "choices", "usage"], "properties": {
      "id": {"type": "string"}, "object": {"const": "text_completion"}, "created": {"type": "integer"},
      "model": {"type": "string"}, "usage": {"$ref": "#/components/schemas/Usage"},
      "choices": {"type": "array", "items": {"type": "object", "required": ["index", "text", "finish_reason"],
        "properties": {"index": {"type": "integer", "minimum": 0}, "text": {"type": "string"},
        "finish_reason": {"enum": ["stop", "length"]}}}}}}
  }
}
})JSON";

}  // namespace deepinfer::server
