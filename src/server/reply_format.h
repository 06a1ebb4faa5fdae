// Answers of generation as OpenAI's JSON: whole, or as the events of a stream.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/generation.h"

namespace deepinfer::server {

struct ReplyHead {
  std::string id;  // "chatcmpl-..." or "cmpl-..."
  int64_t created = 0;
  std::string model;
  std::string fingerprint;
  bool include_usage = false;
};

struct WholeChoice {
  std::string text;
  std::vector<OutputToken> tokens;
  std::string_view finish;
};

// Borrows the tokenizer. One for one request; not for several threads.
class ReplyFormat {
 public:
  virtual ~ReplyFormat() = default;
  virtual std::string opening(int choices) = 0;                // events before the first token
  virtual std::string update(const ChoiceUpdate& update) = 0;  // one or two events
  virtual std::string usage(const Usage& usage) = 0;           // the event before [DONE]
  virtual std::string whole(const std::vector<WholeChoice>& choices, const Usage& usage) = 0;
};

std::unique_ptr<ReplyFormat> make_chat_format(ReplyHead head, const Tokenizer& tokenizer, bool logprobs);

// `echo`: the text of each choice begins with its prompt's, [choices]; empty: none.
std::unique_ptr<ReplyFormat> make_completion_format(ReplyHead head, const Tokenizer& tokenizer, bool logprobs,
                                                    std::vector<std::string> echo);

// Pieces of JSON that both use.
std::string json_string(std::string_view text);  // quoted; invalid UTF-8 is replaced
std::string json_logprob(float logprob);         // -inf is -9999.0
std::string json_usage(const Usage& usage);
std::string json_chat_logprobs(const Tokenizer& tokenizer, const std::vector<OutputToken>& tokens);

// {"tokens", "token_logprobs", "top_logprobs", "text_offset"}; `offset` in characters is moved on.
std::string json_completion_logprobs(const Tokenizer& tokenizer, const std::vector<OutputToken>& tokens,
                                     int64_t& offset);

// Characters (code points) that begin in these bytes.
int64_t count_characters(std::string_view bytes);

}  // namespace deepinfer::server
