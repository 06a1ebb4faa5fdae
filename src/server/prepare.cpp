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

// What a small request may not make the server hold: each choice repeats its prompt's text and scores, each
// prompt has the lists of the sampling parameters for itself.
Result<void> check_size(const Prepared& p) {
  constexpr double kMaxReplyBytes = 64 << 20, kMaxListEntries = 4 << 20;
  constexpr double kScoreBytes = 70, kIdBytes = 8;  // of JSON, about
  const GenerationRequest& r = p.request;
  const SamplingParams& s = r.sampling;
  double bytes = 0;
  for (size_t i = 0; i < p.prompts.size(); ++i) {
    const auto tokens = static_cast<double>(p.prompts[i].size());
    if (!p.echo.empty()) bytes += static_cast<double>(p.echo[i].size());
    if (s.prompt_logprobs >= 0) bytes += kScoreBytes * tokens * (1 + s.prompt_logprobs);
    if (r.return_token_ids) bytes += kIdBytes * tokens;
  }
  if (bytes * s.n > kMaxReplyBytes)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("n: the prompts' text and scores would be about {:.0f} MB in {} choices each, "
                             "expected at most {:.0f} MB: ask for fewer choices, prompts or prompt_logprobs",
                             bytes * s.n / 1e6, s.n, kMaxReplyBytes / 1e6),
                 "n"};
  size_t entries = s.dry_breakers.size() + s.allowed_token_ids.size() + s.logit_bias.size();
  for (const auto& word : s.bad_words) entries += word.size();
  if (static_cast<double>(entries) * static_cast<double>(p.prompts.size()) > kMaxListEntries)
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("prompt: {} prompts with lists of {} tokens in their parameters, expected at most "
                    "{:.0f} together: send fewer prompts at once",
                    p.prompts.size(), entries, kMaxListEntries),
        "prompt"};
  return {};
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
  DI_TRY(check_size(out));
  return out;
}

Result<Prepared> prepare_completion(const boost::json::object& body, const Llm& llm, const Config& config) {
  DI_ASSIGN(CompletionRequest request, parse_completion(body, parse_context(llm, config)));
  Prepared out;
  DI_ASSIGN(out.model, resolve_model(llm, request.model));
  if (!request.max_tokens) request.max_tokens = kCompletionTokens;
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
  out.max_tokens = request.max_tokens;
  out.request = std::move(request);
  DI_TRY(check_size(out));
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
