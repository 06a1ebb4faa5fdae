#include "server/prepare.h"

#include <algorithm>

#include "base/check.h"
#include "server/prompts.h"

namespace deepinfer::server {

namespace {

constexpr int kCompletionTokens = 16;

ParseContext parse_context(const Llm& llm, const Config& config) {
  ParseContext context{default_sampling(config, llm.generation), config.sampling.max_tokens,
                       llm.tokenizer->vocab_size()};
  if (!context.max_tokens) context.max_tokens = llm.generation.max_tokens;
  return context;
}

Result<Prepared> prepare_chat(const boost::json::object& body, const Llm& llm, const Config& config) {
  DI_ASSIGN(ChatRequest request, parse_chat(body, parse_context(llm, config)));
  Prepared out;
  DI_ASSIGN(out.model, resolve_model(llm, request.model));
  DI_ASSIGN(auto ids, chat_prompt(llm, request));
  out.prompts.push_back(std::move(ids));
  out.max_tokens = request.max_tokens;
  out.request = std::move(request);
  return out;
}

Result<Prepared> prepare_completion(const boost::json::object& body, const Llm& llm, const Config& config) {
  DI_ASSIGN(CompletionRequest request, parse_completion(body, parse_context(llm, config)));
  Prepared out;
  DI_ASSIGN(out.model, resolve_model(llm, request.model));
  for (const PromptInput& prompt : request.prompts) {
    DI_ASSIGN(auto ids, plain_prompt(llm, prompt, request.add_special_tokens));
    if (request.echo) {
      const auto* text = std::get_if<std::string>(&prompt);
      out.echo.push_back(text ? *text : text_of(llm, ids, request.skip_special_tokens));
    }
    out.prompts.push_back(std::move(ids));
  }
  out.max_tokens = request.max_tokens.value_or(kCompletionTokens);
  out.request = std::move(request);
  return out;
}

}  // namespace

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
