// Answers of generation as OpenAI's JSON: whole, or as the events of a stream. Fields that vLLM adds have
// its names.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
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
};

// What an answer says of one prompt.
struct PromptReply {
  std::string echo;          // text before the answer's own; empty: none
  std::vector<int32_t> ids;  // filled where the answer needs them
};

struct ReplyOptions {
  ReplyHead head;
  int n = 1;  // choices of a prompt
  bool logprobs = false;
  bool echo_logprobs = false;    // completions: the prompt's tokens stand in `logprobs` too
  bool prompt_logprobs = false;  // as a field of their own
  bool token_ids = false;
  bool tokens_as_token_ids = false;
  bool include_usage = false;
  bool continuous_usage = false;
  std::vector<PromptReply> prompts;  // one for each prompt
};

using PromptTokens = std::vector<OutputToken>;  // of one prompt from its second token on, or empty

// Borrows the tokenizer. One for one request; not for several threads.
class ReplyFormat {
 public:
  virtual ~ReplyFormat() = default;
  virtual std::string opening() = 0;  // events before the first token
  // One or more events. `prompt`: log probabilities of its prompt.
  virtual std::string update(const ChoiceUpdate& update, const PromptTokens& prompt) = 0;
  virtual std::string usage(const Usage& usage) = 0;  // the event before [DONE]
  // `choices` hold all that their updates gave; `prompts` by prompt.
  virtual std::string whole(const std::vector<ChoiceUpdate>& choices,
                            const std::vector<PromptTokens>& prompts, const Usage& usage) = 0;
};

std::unique_ptr<ReplyFormat> make_chat_format(ReplyOptions options, const Tokenizer& tokenizer);
std::unique_ptr<ReplyFormat> make_completion_format(ReplyOptions options, const Tokenizer& tokenizer);

}  // namespace deepinfer::server
