#include "server/prompts.h"

#include <algorithm>
#include <ctime>

#include "base/check.h"
#include "text/text_stream.h"

namespace deepinfer::server {

namespace {

std::string token_text(const Tokenizer& tokenizer, std::optional<int32_t> id) {
  return id ? std::string(tokenizer.bytes(*id)) : std::string();
}

// A beginning of sequence where the model wants one and the text has not brought it.
void add_bos(const Tokenizer& tokenizer, std::vector<int32_t>& ids) {
  const auto bos = tokenizer.bos();
  if (tokenizer.add_bos() && bos && (ids.empty() || ids.front() != *bos)) ids.insert(ids.begin(), *bos);
}

// The answer goes on inside the last message: what the template wrote after its text goes.
Result<void> cut_after_last_message(const ChatRequest& request, RenderedPrompt& prompt) {
  const auto& content = request.messages.back().get_object().at("content").get_string();
  std::string_view text(content.data(), content.size());
  while (!text.empty() && std::string_view(" \t\r\n").find(text.back()) != std::string_view::npos)
    text.remove_suffix(1);
  if (text.empty())
    return Error{ErrorCode::kInvalidArgument,
                 "continue_final_message: the last message is empty, expected text to go on with",
                 "continue_final_message"};
  // What the template wrote behind the message may hold the same letters.
  const auto templates_own = [&](size_t begin) {
    return std::any_of(prompt.trusted.begin(), prompt.trusted.end(), [&](const TextRange& range) {
      return range.begin < begin + text.size() && begin < range.end;
    });
  };
  size_t place = prompt.text.rfind(text);
  while (place != std::string::npos && templates_own(place))
    place = place == 0 ? std::string::npos : prompt.text.rfind(text, place - 1);
  if (place == std::string::npos)
    return Error{ErrorCode::kInvalidArgument,
                 "continue_final_message: the model's template changes the last message's text",
                 "continue_final_message"};
  const size_t end = place + text.size();
  prompt.text.resize(end);
  std::erase_if(prompt.trusted, [end](const TextRange& range) { return range.begin >= end; });
  for (TextRange& range : prompt.trusted) range.end = std::min(range.end, end);
  return {};
}

// Null: the request brings none.
Result<std::unique_ptr<ChatTemplate>> own_template(const std::string& source) {
  if (source.empty()) return std::unique_ptr<ChatTemplate>();
  auto parsed = ChatTemplate::parse(source);
  if (!parsed) return Error{ErrorCode::kInvalidArgument, parsed.error().message, "chat_template"};
  return std::make_unique<ChatTemplate>(std::move(*parsed));
}

// Keeps the last tokens of a prompt, where the request says how many.
Result<void> truncate(const Llm& llm, const GenerationRequest& request, std::vector<int32_t>& ids) {
  if (!request.truncate_prompt_tokens) return {};
  int keep = *request.truncate_prompt_tokens;
  if (keep > llm.max_model_len)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("truncate_prompt_tokens: got {}, expected at most {}, the context", keep,
                             llm.max_model_len),
                 "truncate_prompt_tokens"};
  if (keep < 0) keep = std::max(1, llm.max_model_len - std::max(1, request.max_tokens.value_or(1)));
  if (ids.size() <= static_cast<size_t>(keep)) return {};
  if (request.truncate_end)
    ids.resize(static_cast<size_t>(keep));
  else
    ids.erase(ids.begin(), ids.end() - keep);
  return {};
}

}  // namespace

Result<void> check_context(const Llm& llm, size_t prompt_tokens, std::string_view param) {
  if (prompt_tokens < static_cast<size_t>(llm.max_model_len)) return {};
  return Error{
      ErrorCode::kContextLength,
      fmt::format("{}: got {} tokens, but the context is {} tokens, the answer included; shorten the prompt",
                  param, prompt_tokens, llm.max_model_len),
      std::string(param)};
}

Result<std::vector<int32_t>> chat_ids(const Llm& llm, const ChatRequest& request) {
  if (!llm.chat_template && request.chat_template.empty())
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("messages: this model has no chat template{}{}; use /v1/completions, or start the server "
                    "with --chat-template FILE",
                    llm.template_error.empty() ? "" : " that can be read: ", llm.template_error),
        "messages"};
  DI_ASSIGN(const auto own, own_template(request.chat_template));
  const ChatTemplate& chat_template = own ? *own : *llm.chat_template;
  const Tokenizer& tokenizer = *llm.tokenizer;
  TemplateInput input;
  input.messages = request.messages;
  input.add_generation_prompt = request.add_generation_prompt;
  input.extra = request.template_kwargs;
  input.bos_token = token_text(tokenizer, tokenizer.bos());
  if (!tokenizer.end_ids().empty()) input.eos_token = token_text(tokenizer, tokenizer.end_ids().front());
  input.now = static_cast<int64_t>(std::time(nullptr));
  auto rendered = chat_template.render(input);
  if (!rendered) {
    Error error = std::move(rendered).error();
    if (error.param.empty()) error.param = "messages";
    return error;
  }
  if (request.continue_final_message) DI_TRY(cut_after_last_message(request, *rendered));
  std::vector<int32_t> ids = tokenizer.encode(rendered->text, rendered->trusted);
  // A template writes its own beginning of sequence, or add_bos() does; so add_special_tokens adds nothing.
  add_bos(tokenizer, ids);
  return ids;
}

Result<std::vector<int32_t>> chat_prompt(const Llm& llm, const ChatRequest& request) {
  DI_ASSIGN(std::vector<int32_t> ids, chat_ids(llm, request));
  DI_TRY(truncate(llm, request, ids));
  if (ids.empty())
    return Error{ErrorCode::kInvalidArgument, "messages: they give an empty prompt", "messages"};
  DI_TRY(check_context(llm, ids.size(), "messages"));
  return ids;
}

std::vector<int32_t> text_ids(const Llm& llm, std::string_view text, bool add_special_tokens) {
  const TextRange all{0, text.size()};
  std::vector<int32_t> ids = llm.tokenizer->encode(text, {&all, 1});
  if (add_special_tokens) add_bos(*llm.tokenizer, ids);
  return ids;
}

Result<std::vector<int32_t>> plain_prompt(const Llm& llm, const PromptInput& prompt,
                                          const GenerationRequest& request) {
  std::vector<int32_t> ids;
  if (const auto* given = std::get_if<std::vector<int32_t>>(&prompt)) {
    ids = *given;
  } else {
    ids = text_ids(llm, std::get<std::string>(prompt), request.add_special_tokens);
  }
  DI_TRY(truncate(llm, request, ids));
  if (ids.empty())
    return Error{ErrorCode::kInvalidArgument, "prompt: got no token, expected at least one", "prompt"};
  DI_TRY(check_context(llm, ids.size(), "prompt"));
  return ids;
}

std::string text_of(const Llm& llm, const std::vector<int32_t>& ids, bool skip_special_tokens) {
  TextStream stream(*llm.tokenizer, TextStreamOptions{{}, false, skip_special_tokens});
  std::string text;
  for (const int32_t id : ids) text += stream.push(id).text;
  return text + stream.finish().text;
}

}  // namespace deepinfer::server
