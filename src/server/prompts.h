// Messages and prompts to token ids. Runs on the text pool.
#pragma once

#include <string>
#include <vector>

#include "engine/llm.h"
#include "server/openai.h"

namespace deepinfer::server {

// kInvalidArgument when the model has no template or the template refuses the messages.
Result<std::vector<int32_t>> chat_ids(const Llm& llm, const ChatRequest& request);
std::vector<int32_t> text_ids(const Llm& llm, std::string_view text, bool add_special_tokens);

// The same for generation: truncated where asked, and kContextLength when it leaves no room for an answer.
Result<std::vector<int32_t>> chat_prompt(const Llm& llm, const ChatRequest& request);

// Special tokens are recognized: who sends a plain prompt writes the template himself.
Result<std::vector<int32_t>> plain_prompt(const Llm& llm, const PromptInput& prompt,
                                          const GenerationRequest& request);

// kContextLength with both numbers when a prompt leaves no room for an answer.
Result<void> check_context(const Llm& llm, size_t prompt_tokens, std::string_view param);

// Ids back to text, for echo and /detokenize.
std::string text_of(const Llm& llm, const std::vector<int32_t>& ids, bool skip_special_tokens);

}  // namespace deepinfer::server
