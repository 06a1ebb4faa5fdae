#include "server/reply_json.h"

#include <fmt/format.h>

#include <boost/json/serialize.hpp>
#include <cmath>
#include <iterator>

#include "text/utf8.h"

namespace deepinfer::server {

namespace {

void append_chat_token(std::string& out, const TokenNames& names, int32_t id, float logprob) {
  const std::string_view bytes = names.tokenizer.bytes(id);
  fmt::format_to(std::back_inserter(out), R"("token":{},"logprob":{},"bytes":[)", json_string(names.chat(id)),
                 json_logprob(logprob));
  for (size_t i = 0; i < bytes.size(); ++i)
    fmt::format_to(std::back_inserter(out), "{}{}", i ? "," : "", static_cast<unsigned char>(bytes[i]));
  out += ']';
}

void append_prompt_token(std::string& out, const Tokenizer& tokenizer, const TokenLogprob& token, int rank) {
  fmt::format_to(std::back_inserter(out), R"("{}":{{"logprob":{},"rank":{},"decoded_token":{}}})",
                 token.token, json_logprob(token.logprob), rank, json_string(tokenizer.bytes(token.token)));
}

}  // namespace

std::string TokenNames::chat(int32_t id) const {
  return as_ids ? fmt::format("token_id:{}", id) : std::string(tokenizer.bytes(id));
}

std::string TokenNames::completion(int32_t id) const {
  if (as_ids) return fmt::format("token_id:{}", id);
  const std::string_view bytes = tokenizer.bytes(id);
  if (is_valid_utf8(bytes)) return std::string(bytes);
  std::string name = "bytes:";
  for (const char c : bytes)
    fmt::format_to(std::back_inserter(name), "\\x{:02x}", static_cast<unsigned char>(c));
  return name;
}

std::string json_string(std::string_view text) {
  if (is_valid_utf8(text)) return boost::json::serialize(text);
  return boost::json::serialize(std::string_view(sanitize_utf8(text)));
}

std::string json_logprob(float logprob) {
  if (!std::isfinite(logprob) || logprob < -9999.0f) return "-9999.0";
  // A number without a fraction would be read as an integer.
  return std::nearbyint(logprob) == logprob ? fmt::format("{:.1f}", logprob) : fmt::format("{}", logprob);
}

std::string json_ids(std::span<const int32_t> ids) {
  std::string out = "[";
  for (size_t i = 0; i < ids.size(); ++i)
    fmt::format_to(std::back_inserter(out), "{}{}", i ? "," : "", ids[i]);
  return out + "]";
}

std::string json_usage(const Usage& usage) {
  return fmt::format(
      R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":{}}}}})",
      usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens,
      usage.cached_tokens);
}

std::string json_finish(std::string_view finish) {
  return finish.empty() ? "null" : fmt::format("\"{}\"", finish);
}

std::string json_stop_reason(const ChoiceUpdate& update) {
  if (!update.stop_text.empty()) return json_string(update.stop_text);
  return update.stop_id < 0 ? "null" : std::to_string(update.stop_id);
}

std::string json_chat_logprobs(const TokenNames& names, std::span<const OutputToken> tokens) {
  std::string out = R"({"content":[)";
  for (size_t i = 0; i < tokens.size(); ++i) {
    out += i ? ",{" : "{";
    append_chat_token(out, names, tokens[i].id, tokens[i].logprob);
    out += R"(,"top_logprobs":[)";
    for (size_t k = 0; k < tokens[i].top.size(); ++k) {
      out += k ? ",{" : "{";
      append_chat_token(out, names, tokens[i].top[k].token, tokens[i].top[k].logprob);
      out += '}';
    }
    out += "]}";
  }
  return out + R"(],"refusal":null})";
}

std::string json_prompt_logprobs(const Tokenizer& tokenizer, const PromptTokens& tokens) {
  std::string out = "[null";
  for (const OutputToken& token : tokens) {
    out += ",{";
    append_prompt_token(out, tokenizer, {token.id, token.logprob}, token.rank);
    for (size_t k = 0; k < token.top.size(); ++k) {
      if (token.top[k].token == token.id) continue;
      out += ',';
      append_prompt_token(out, tokenizer, token.top[k], static_cast<int>(k) + 1);
    }
    out += '}';
  }
  return out + "]";
}

void CompletionLogprobs::add_name(int32_t id, int64_t offset) {
  const char* comma = tokens_.empty() ? "" : ",";
  fmt::format_to(std::back_inserter(tokens_), "{}{}", comma, json_string(names_.completion(id)));
  fmt::format_to(std::back_inserter(offsets_), "{}{}", comma, offset);
  logprobs_ += comma;
  tops_ += comma;
}

void CompletionLogprobs::add_first(int32_t id, int64_t offset) {
  add_name(id, offset);
  logprobs_ += "null";
  tops_ += "null";
}

void CompletionLogprobs::add(const OutputToken& token, int64_t offset) {
  add_name(token.id, offset);
  logprobs_ += json_logprob(token.logprob);
  tops_ += '{';
  bool first = true, chosen = false;
  const auto add_top = [&](int32_t id, float logprob) {
    fmt::format_to(std::back_inserter(tops_), "{}{}:{}", first ? "" : ",", json_string(names_.completion(id)),
                   json_logprob(logprob));
    first = false;
    chosen |= id == token.id;
  };
  for (const TokenLogprob& top : token.top) add_top(top.token, top.logprob);
  if (!chosen) add_top(token.id, token.logprob);
  tops_ += '}';
}

std::string CompletionLogprobs::json() const {
  return fmt::format(R"({{"tokens":[{}],"token_logprobs":[{}],"top_logprobs":[{}],"text_offset":[{}]}})",
                     tokens_, logprobs_, tops_, offsets_);
}

int64_t count_characters(std::string_view bytes) {
  int64_t count = 0;
  for (const char c : bytes) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

std::string reply_start(const ReplyHead& head, std::string_view object) {
  return fmt::format(R"({{"id":{},"object":"{}","created":{},"model":{},"system_fingerprint":{},)",
                     json_string(head.id), object, head.created, json_string(head.model),
                     json_string(head.fingerprint));
}

}  // namespace deepinfer::server
