#include <fmt/format.h>

#include <iterator>

#include "server/reply_json.h"
#include "server/sse.h"

namespace deepinfer::server {

namespace {

class CompletionFormat final : public ReplyFormat {
 public:
  CompletionFormat(ReplyOptions options, const Tokenizer& tokenizer)
      : options_(std::move(options)),
        names_{tokenizer, options_.tokens_as_token_ids},
        start_(reply_start(options_.head, "text_completion")),
        offsets_(options_.prompts.size() * static_cast<size_t>(options_.n), 0) {}

  std::string opening() override { return {}; }

  std::string update(const ChoiceUpdate& update, const PromptTokens& prompt) override {
    std::string events;
    const PromptReply& asked = prompt_of(update);
    int64_t& offset = offsets_.at(static_cast<size_t>(update.index));
    if (update.first && (!asked.echo.empty() || options_.token_ids)) {
      CompletionLogprobs logprobs(names_);
      if (options_.echo_logprobs) add_prompt(logprobs, asked, prompt);
      offset = count_characters(asked.echo);
      ChoiceUpdate echo{.index = update.index, .text = asked.echo};
      echo.usage.prompt_tokens = update.usage.prompt_tokens;
      const std::string ids =
          options_.token_ids ? R"(,"prompt_token_ids":)" + json_ids(asked.ids) : std::string();
      events += chunk(echo, options_.echo_logprobs ? logprobs.json() : "null", ids);
    }
    CompletionLogprobs logprobs(names_);
    const bool tokens = options_.logprobs && !update.tokens.empty();
    if (tokens) add_answer(logprobs, update, offset);
    const std::string ids = options_.token_ids ? R"(,"token_ids":)" + json_ids(update.ids) : std::string();
    return events + chunk(update, tokens ? logprobs.json() : "null", ids);
  }

  std::string usage(const Usage& usage) override {
    return sse_event(fmt::format(R"({}"choices":[],"usage":{}}})", start_, json_usage(usage)));
  }

  std::string whole(const std::vector<ChoiceUpdate>& choices, const std::vector<PromptTokens>& prompts,
                    const Usage& usage) override {
    std::string out = start_ + R"("service_tier":null,"choices":[)";
    for (const ChoiceUpdate& choice : choices)
      out += whole_choice(choice, prompts.at(static_cast<size_t>(choice.index / options_.n)));
    return fmt::format(R"({}],"usage":{}}})", out, json_usage(usage));
  }

 private:
  const PromptReply& prompt_of(const ChoiceUpdate& choice) const {
    return options_.prompts.at(static_cast<size_t>(choice.index / options_.n));
  }

  std::string whole_choice(const ChoiceUpdate& choice, const PromptTokens& prompt) const {
    const PromptReply& asked = prompt_of(choice);
    CompletionLogprobs logprobs(names_);
    if (options_.echo_logprobs) add_prompt(logprobs, asked, prompt);
    int64_t offset = count_characters(asked.echo);
    if (options_.logprobs) add_answer(logprobs, choice, offset);
    return fmt::format(
        R"({}{{"index":{},"text":{},"logprobs":{},"finish_reason":{},"stop_reason":{},"token_ids":{},"prompt_logprobs":{},"prompt_token_ids":{}}})",
        choice.index ? "," : "", choice.index, json_string(asked.echo + choice.text),
        options_.logprobs ? logprobs.json() : "null", json_finish(choice.finish), json_stop_reason(choice),
        options_.token_ids ? json_ids(choice.ids) : "null",
        options_.prompt_logprobs ? json_prompt_logprobs(names_.tokenizer, prompt) : "null",
        options_.token_ids ? json_ids(asked.ids) : "null");
  }

  // Tokens that the echo does not spell (a beginning of sequence, special tokens left out) take no room in
  // it.
  void add_prompt(CompletionLogprobs& logprobs, const PromptReply& asked, const PromptTokens& tokens) const {
    std::string_view rest = asked.echo;
    int64_t offset = 0;
    for (size_t i = 0; i < asked.ids.size(); ++i) {
      if (i == 0 || i > tokens.size())
        logprobs.add_first(asked.ids[i], offset);
      else
        logprobs.add(tokens[i - 1], offset);
      const std::string_view bytes = names_.tokenizer.bytes(asked.ids[i]);
      if (!rest.starts_with(bytes)) continue;
      offset += count_characters(bytes);
      rest.remove_prefix(bytes.size());
    }
  }

  void add_answer(CompletionLogprobs& logprobs, const ChoiceUpdate& update, int64_t& offset) const {
    for (const OutputToken& token : update.tokens) {
      logprobs.add(token, offset);
      offset += count_characters(names_.tokenizer.bytes(token.id));
    }
  }

  // `more`: further fields of the choice, each with its comma before it.
  std::string chunk(const ChoiceUpdate& update, std::string_view logprobs, std::string_view more) const {
    const std::string usage = options_.continuous_usage ? R"(,"usage":)" + json_usage(update.usage)
                              : options_.include_usage  ? R"(,"usage":null)"
                                                        : "";
    return sse_event(fmt::format(
        R"({}"choices":[{{"index":{},"text":{},"logprobs":{},"finish_reason":{},"stop_reason":{}{}}}]{}}})",
        start_, update.index, json_string(update.text), logprobs, json_finish(update.finish),
        json_stop_reason(update), more, usage));
  }

  const ReplyOptions options_;
  const TokenNames names_;
  const std::string start_;
  std::vector<int64_t> offsets_;  // [choices] characters sent so far
};

}  // namespace

std::unique_ptr<ReplyFormat> make_completion_format(ReplyOptions options, const Tokenizer& tokenizer) {
  return std::make_unique<CompletionFormat>(std::move(options), tokenizer);
}

}  // namespace deepinfer::server
