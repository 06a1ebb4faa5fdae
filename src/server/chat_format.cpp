#include <fmt/format.h>

#include <iterator>

#include "server/reply_json.h"
#include "server/sse.h"

namespace deepinfer::server {

namespace {

class ChatFormat final : public ReplyFormat {
 public:
  ChatFormat(ReplyOptions options, const Tokenizer& tokenizer)
      : options_(std::move(options)),
        names_{tokenizer, options_.tokens_as_token_ids},
        start_(reply_start(options_.head, "chat.completion.chunk")) {}

  std::string opening() override {
    std::string events;
    const PromptReply& prompt = options_.prompts.front();
    for (int i = 0; i < options_.n; ++i) {
      const std::string ids = options_.token_ids ? R"("prompt_token_ids":)" + json_ids(prompt.ids) + "," : "";
      const ChoiceUpdate empty{.index = i};
      events += chunk(empty, R"({"role":"assistant","content":""})", "null", "null", ids);
      if (!prompt.echo.empty())
        events += chunk(empty, fmt::format(R"({{"content":{}}})", json_string(prompt.echo)), "null", "null");
    }
    return events;
  }

  std::string update(const ChoiceUpdate& update, const PromptTokens&) override {
    std::string events;
    const bool ids = options_.token_ids && !update.ids.empty();
    if (!update.text.empty() || !update.tokens.empty() || ids)
      events += chunk(update, fmt::format(R"({{"content":{}}})", json_string(update.text)),
                      options_.logprobs ? json_chat_logprobs(names_, update.tokens) : "null",
                      ids ? json_ids(update.ids) : "null");
    if (!update.finish.empty()) events += finish(update);
    return events;
  }

  std::string usage(const Usage& usage) override {
    return sse_event(fmt::format(R"({}"choices":[],"usage":{}}})", start_, json_usage(usage)));
  }

  std::string whole(const std::vector<ChoiceUpdate>& choices, const std::vector<PromptTokens>& prompts,
                    const Usage& usage) override {
    const std::string& echo = options_.prompts.front().echo;
    std::string out = reply_start(options_.head, "chat.completion") + R"("service_tier":null,"choices":[)";
    for (size_t i = 0; i < choices.size(); ++i)
      fmt::format_to(
          std::back_inserter(out),
          R"({}{{"index":{},"message":{{"role":"assistant","content":{},"refusal":null}},"logprobs":{},"finish_reason":{},"stop_reason":{},"token_ids":{}}})",
          i ? "," : "", i, json_string(echo + choices[i].text),
          options_.logprobs ? json_chat_logprobs(names_, choices[i].tokens) : "null",
          json_finish(choices[i].finish), json_stop_reason(choices[i]),
          options_.token_ids ? json_ids(choices[i].ids) : "null");
    return fmt::format(
        R"({}],"usage":{},"prompt_logprobs":{},"prompt_token_ids":{}}})", out, json_usage(usage),
        options_.prompt_logprobs ? json_prompt_logprobs(names_.tokenizer, prompts.front()) : "null",
        options_.token_ids ? json_ids(options_.prompts.front().ids) : "null");
  }

 private:
  // `more`: fields of the event itself, each with its comma.
  std::string chunk(const ChoiceUpdate& update, std::string_view delta, std::string_view logprobs,
                    std::string_view ids, std::string_view more = "") const {
    const std::string token_ids = options_.token_ids ? fmt::format(R"(,"token_ids":{})", ids) : "";
    return sse_event(
        fmt::format(R"({}{}"choices":[{{"index":{},"delta":{},"logprobs":{},"finish_reason":null{}}}]{}}})",
                    start_, more, update.index, delta, logprobs, token_ids, usage_of(update)));
  }

  std::string finish(const ChoiceUpdate& update) const {
    return sse_event(fmt::format(
        R"({}"choices":[{{"index":{},"delta":{{}},"logprobs":null,"finish_reason":"{}","stop_reason":{}}}]{}}})",
        start_, update.index, update.finish, json_stop_reason(update), usage_of(update)));
  }

  std::string usage_of(const ChoiceUpdate& update) const {
    if (options_.continuous_usage) return R"(,"usage":)" + json_usage(update.usage);
    return options_.include_usage ? R"(,"usage":null)" : "";
  }

  const ReplyOptions options_;
  const TokenNames names_;
  const std::string start_;
};

}  // namespace

std::unique_ptr<ReplyFormat> make_chat_format(ReplyOptions options, const Tokenizer& tokenizer) {
  return std::make_unique<ChatFormat>(std::move(options), tokenizer);
}

}  // namespace deepinfer::server
