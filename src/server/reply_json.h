// Pieces of JSON that both forms of an answer use.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/reply_format.h"

namespace deepinfer::server {

// How an answer names tokens.
struct TokenNames {
  const Tokenizer& tokenizer;
  bool as_ids = false;  // "token_id:7"

  std::string completion(int32_t id) const;  // unique also where the bytes are no text
  std::string chat(int32_t id) const;        // text, with U+FFFD where the bytes are none
};

std::string json_string(std::string_view text);  // quoted; invalid UTF-8 is replaced
std::string json_logprob(float logprob);         // -inf is -9999.0
std::string json_ids(std::span<const int32_t> ids);
std::string json_usage(const Usage& usage);
std::string json_finish(std::string_view finish);          // quoted, or null
std::string json_stop_reason(const ChoiceUpdate& update);  // the string or the id that stopped it, or null

// {"content": [...], "refusal": null}
std::string json_chat_logprobs(const TokenNames& names, std::span<const OutputToken> tokens);

// [null, {"<id>": {"logprob", "rank", "decoded_token"}, ...}, ...]
std::string json_prompt_logprobs(const Tokenizer& tokenizer, const PromptTokens& tokens);

// {"tokens", "token_logprobs", "top_logprobs", "text_offset"} of a prompt and of an answer after it.
class CompletionLogprobs {
 public:
  explicit CompletionLogprobs(TokenNames names) : names_(names) {}

  // `offset` of the token in characters. The first token of a prompt has no log probability.
  void add(const OutputToken& token, int64_t offset);
  void add_first(int32_t id, int64_t offset);
  std::string json() const;

 private:
  void add_name(int32_t id, int64_t offset);

  TokenNames names_;
  std::string tokens_, logprobs_, tops_, offsets_;
};

// Characters (code points) that begin in these bytes.
int64_t count_characters(std::string_view bytes);

// Everything of an answer or event before its choices.
std::string reply_start(const ReplyHead& head, std::string_view object);

}  // namespace deepinfer::server
