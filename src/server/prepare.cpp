#include "server/prepare.h"

#include <algorithm>

#include "base/check.h"
#include "server/prompts.h"
#include "server/token_words.h"

namespace deepinfer::server {

namespace {

constexpr int kCompletionTokens = 16;

// What needs the model to be understood.
Result<void> complete(GenerationRequest& request, const Llm& llm, const Config& config) {
  if (request.deterministic && llm.on_gpu && !config.gpu.deterministic)
    return Error{
        ErrorCode::kInvalidArgument,
        "deterministic: got true, but gpu.deterministic is off; leave it out, or start the server with "
        "gpu.deterministic",
        "deterministic"};
  SamplingParams& sampling = request.sampling;
  if (!request.bad_words.empty()) sampling.bad_words = bad_word_sequences(*llm.tokenizer, request.bad_words);
  if (sampling.dry_multiplier > 0)
    sampling.dry_breakers =
        breaker_sequences(*llm.tokenizer, request.dry_breakers.value_or(default_breakers()));
  return {};
}

// With echo an answer goes on where the assistant's last message ends.
std::string last_of_assistant(const boost::json::array& messages) {
  const boost::json::object& last = messages.back().get_object();
  const boost::json::string* text = last.at("content").if_string();
  return text && last.at("role") == "assistant" ? std::string(text->data(), text->size()) : std::string();
}

Result<Prepared> prepare_chat(const boost::json::object& body, const Llm& llm, const Config& config) {
  DI_ASSIGN(ChatRequest request, parse_chat(body, parse_context(llm, config)));
  Prepared out;
  DI_ASSIGN(out.model, resolve_model(llm, request.model));
  DI_ASSIGN(auto ids, chat_prompt(llm, request));
  DI_TRY(complete(request, llm, config));
  out.prompts.push_back(std::move(ids));
  if (request.echo) out.echo.push_back(last_of_assistant(request.messages));
  out.max_tokens = request.max_tokens;
  out.request = std::move(request);
  return out;
}

Result<Prepared> prepare_completion(const boost::json::object& body, const Llm& llm, const Config& config) {
  DI_ASSIGN(CompletionRequest request, parse_completion(body, parse_context(llm, config)));
  Prepared out;
  DI_ASSIGN(out.model, resolve_model(llm, request.model));
  for (const PromptInput& prompt : request.prompts) {
    DI_ASSIGN(auto ids, plain_prompt(llm, prompt, request));
    if (request.echo) {
      const auto* text = std::get_if<std::string>(&prompt);
      const bool whole = text && !request.truncate_prompt_tokens;
      out.echo.push_back(whole ? *text : text_of(llm, ids, request.skip_special_tokens));
    }
    out.prompts.push_back(std::move(ids));
  }
  DI_TRY(complete(request, llm, config));
  out.max_tokens = request.max_tokens.value_or(kCompletionTokens);
  out.request = std::move(request);
  return out;
}

}  // namespace

ParseContext parse_context(const Llm& llm, const Config& config) {
  ParseContext context{default_sampling(config, llm.generation), config.sampling.max_tokens,
                       llm.tokenizer->vocab_size(), config.server.trust_request_chat_template};
  if (!context.max_tokens) context.max_tokens = llm.generation.max_tokens;
  return context;
}

Result<std::string> resolve_model(const Llm& llm, const std::string& asked) {
  if (asked.empty()) return llm.names.front();
  if (std::find(llm.names.begin(), llm.names.end(), asked) != llm.names.end()) return asked;
  std::string names;
  for (const std::string& name : llm.names) names += (names.empty() ? "" : ", ") + name;
  return Error{
      ErrorCode::kNotFound,
      fmt::format("model: got \"{}\", which is not served here; expected {}", asked.substr(0, 200), names),
      "model"};
}

Result<Prepared> prepare(const boost::json::object& body, Form form, const Llm& llm, const Config& config) {
  return form == kChat ? prepare_chat(body, llm, config) : prepare_completion(body, llm, config);
}

}  // namespace deepinfer::server
