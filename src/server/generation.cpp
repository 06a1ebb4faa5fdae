#include "server/generation.h"

#include <algorithm>

#include "base/check.h"

namespace deepinfer::server {

Generation::Generation(Llm& llm, const GenerationRequest& request, boost::asio::any_io_executor strand)
    : llm_(llm), request_(request), mailbox_(std::make_shared<Mailbox>(std::move(strand))) {}

Generation::~Generation() {
  cancel();
}

void Generation::cancel() {
  if (unfinished_ > 0)
    for (const uint64_t id : ids_) llm_.engine->cancel(id);
  ids_.clear();
  unfinished_ = 0;
}

Result<void> Generation::submit(const std::vector<std::vector<int32_t>>& prompts,
                                std::optional<int> max_tokens) {
  const int n = request_.sampling.n;
  unfinished_ = static_cast<int>(prompts.size()) * n;
  choices_.resize(static_cast<size_t>(unfinished_));
  for (Choice& choice : choices_)
    choice.stream = std::make_unique<TextStream>(
        *llm_.tokenizer,
        TextStreamOptions{request_.stop, request_.include_stop, request_.skip_special_tokens});
  for (size_t i = 0; i < prompts.size(); ++i) {
    usage_.prompt_tokens += static_cast<int64_t>(prompts[i].size());
    const int room = llm_.max_model_len - static_cast<int>(prompts[i].size());
    EngineRequest request{prompts[i], request_.sampling, request_.priority, request_.cache_salt};
    request.sampling.max_tokens = std::min(max_tokens.value_or(room), room);
    auto id = llm_.engine->submit(
        std::move(request), [mailbox = mailbox_, prompt = static_cast<int>(i)](const OutputEvent& event) {
          EngineNews news{prompt,
                          event.choice,
                          event.scheduled,
                          {event.tokens.begin(), event.tokens.end()},
                          event.finish,
                          event.stop_token,
                          event.prompt_tokens,
                          event.cached_tokens,
                          {}};
          if (event.error) news.error = *event.error;
          mailbox->push(std::move(news));
        });
    if (!id) {
      cancel();
      return std::move(id).error();
    }
    ids_.push_back(*id);
  }
  return {};
}

void Generation::add_text(Choice& choice, ChoiceUpdate& update, TextStream::Delta delta) const {
  update.text += delta.text;
  for (int i = 0; i < delta.tokens && !choice.held.empty(); ++i) {
    update.tokens.push_back(std::move(choice.held.front()));
    choice.held.pop_front();
  }
}

Result<void> Generation::handle(EngineNews& news, std::vector<ChoiceUpdate>& updates) {
  if (news.finish == FinishReason::kError)
    return news.error.value_or(Error{ErrorCode::kInternal, "the engine failed", {}});
  const int index = news.prompt * request_.sampling.n + news.choice;
  Choice& choice = choices_.at(static_cast<size_t>(index));
  if (news.scheduled) {
    scheduled_ = true;
    if (news.choice == 0) usage_.cached_tokens += news.cached_tokens;
  }
  if (choice.finished) return {};
  if (news.finish == FinishReason::kCancelled)
    return make_error(ErrorCode::kUnavailable, "the server is shutting down: the answer is not complete");
  ChoiceUpdate update{index};
  for (size_t i = 0; i < news.tokens.size() && update.finish.empty(); ++i) {
    ++usage_.completion_tokens;
    const int32_t id = news.tokens[i].id;
    const bool ends =
        news.finish == FinishReason::kStop && i + 1 == news.tokens.size() && id == news.stop_token;
    if (ends && !request_.include_stop) break;
    if (request_.logprobs) choice.held.push_back(std::move(news.tokens[i]));
    TextStream::Delta delta = choice.stream->push(id);
    const bool stopped = delta.stopped;
    add_text(choice, update, std::move(delta));
    if (!stopped) continue;
    update.finish = "stop";
    if (news.finish == FinishReason::kNone)
      llm_.engine->cancel(ids_.at(static_cast<size_t>(news.prompt)), news.choice);
  }
  if (update.finish.empty() && news.finish != FinishReason::kNone) {
    add_text(choice, update, choice.stream->finish());
    update.finish = news.finish == FinishReason::kStop ? "stop" : "length";
  }
  if (!update.finish.empty()) {
    choice.finished = true;
    --unfinished_;
  }
  if (!update.text.empty() || !update.tokens.empty() || !update.finish.empty())
    updates.push_back(std::move(update));
  return {};
}

Result<std::vector<ChoiceUpdate>> Generation::take() {
  std::vector<ChoiceUpdate> updates;
  if (ids_.empty()) return updates;
  for (EngineNews& news : mailbox_->take()) DI_TRY(handle(news, updates));
  return updates;
}

}  // namespace deepinfer::server
