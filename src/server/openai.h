// OpenAI's requests, from JSON to structs: every field is checked here, before anything is promised to a
// client.
#pragma once

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "deepinfer/engine.h"
#include "deepinfer/result.h"

namespace deepinfer::server {

// What the two forms of generation have in common.
struct GenerationRequest {
  std::string model;              // empty: the only one
  std::string request_id;         // empty: the server makes one
  SamplingParams sampling;        // the defaults, overwritten by what the request says
  std::optional<int> max_tokens;  // as asked for; may be 0 for completions
  std::vector<std::string> stop;
  std::vector<std::string> bad_words;
  std::optional<std::vector<std::string>> dry_breakers;  // unset: llama.cpp's
  bool include_stop = false;
  bool skip_special_tokens = true;
  bool add_special_tokens = false;
  std::optional<int> truncate_prompt_tokens;  // keep so many last ones; -1: what leaves room for the answer
  bool truncate_end = false;                  // keep so many first ones instead
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool logprobs = false;
  int top_logprobs = 0;                     // most likely tokens beside the chosen one
  std::optional<int> prompt_logprobs;       // the answer gives them as a field of their own
  bool return_token_ids = false;            // of prompt and answer
  bool return_tokens_as_token_ids = false;  // tokens in logprobs are "token_id:7"
  bool echo = false;
  bool end_token_logprobs = false;  // logprobs hold the token that ended the answer too
  bool deterministic = false;
  int priority = 0;
  std::string cache_salt;
};

struct ChatRequest : GenerationRequest {
  boost::json::array messages;  // checked, contents joined to strings, developer made system
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  std::string chat_template;            // empty: the model's
  boost::json::object template_kwargs;  // documents and reasoning_effort too
};

using PromptInput = std::variant<std::string, std::vector<int32_t>>;

struct CompletionRequest : GenerationRequest {
  std::vector<PromptInput> prompts;
};

struct ParseContext {
  SamplingParams defaults;        // sampling.* and generation_config.json are already in here
  std::optional<int> max_tokens;  // their limit, where one is set
  int vocab_size = 0;
  bool trust_chat_template = false;  // server.trust_request_chat_template
};

// A JSON document of at most 64 levels. kInvalidArgument names the place; `what`: what messages call it.
Result<boost::json::object> parse_body(std::string_view body, std::string_view what = "the body");

// kInvalidArgument or kUnsupported with `param` set. Fields that nobody knows are ignored.
Result<ChatRequest> parse_chat(const boost::json::object& body, const ParseContext& context);
Result<CompletionRequest> parse_completion(const boost::json::object& body, const ParseContext& context);

// The messages alone, as parse_chat() checks them; also for /tokenize.
Result<boost::json::array> parse_messages(const boost::json::object& body);
Result<std::vector<PromptInput>> parse_prompts(const boost::json::object& body, int vocab_size);

// Names in `body` that none of the tables knows, for the log.
std::vector<std::string> unknown_fields(const boost::json::object& body);

}  // namespace deepinfer::server
