#include "server/generation.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/check.h"

namespace deepinfer::server {

Generation::Generation(Llm& llm, const GenerationRequest& request, boost::asio::any_io_executor strand)
    : llm_(llm), request_(request), mailbox_(std::make_shared<Mailbox>(std::move(strand))) {}

Generation::~Generation() {
  cancel();
  if (!record_ || !record_->generated) return;
  record_->generated->prompt_tokens = usage_.prompt_tokens;
  record_->generated->cached_tokens = usage_.cached_tokens;
  record_->generated->output_tokens = usage_.completion_tokens;
}

void Generation::record_news(const EngineNews& news) {
  if (!record_ || !record_->generated) return;
  GenerationRecord& generated = *record_->generated;
  const std::chrono::duration<double> since = std::chrono::steady_clock::now() - submitted_;
  if (news.scheduled && !generated.queue) generated.queue = since.count();
  if (!news.tokens.empty() && !generated.first_token) generated.first_token = since.count();
}

void Generation::record_end(std::string_view finish) {
  if (!record_ || !record_->generated) return;
  std::string& all = record_->generated->finish;
  if (all.find(finish) == std::string::npos) all += (all.empty() ? "" : ",") + std::string(finish);
}

void Generation::fail() {
  failed_ = true;
  record_end("error");
}

void Generation::cancel() {
  if (unfinished_ > 0 && !failed_) record_end("abort");
  if (unfinished_ > 0)
    for (const uint64_t id : ids_) llm_.engine->cancel(id);
  ids_.clear();
  unfinished_ = 0;
}

Result<void> Generation::submit(const std::vector<std::vector<int32_t>>& prompts,
                                std::optional<int> max_tokens) {
  const int n = request_.sampling.n;
  submitted_ = std::chrono::steady_clock::now();
  SamplingParams sampling = request_.sampling;
  sampling.max_tokens = max_tokens.value_or(llm_.max_model_len);
  auto shared = llm_.engine->prepare(std::move(sampling));
  if (!shared) {
    fail();
    return std::move(shared).error();
  }
  if (record_ && record_->keep_texts) record_->answers.resize(prompts.size() * static_cast<size_t>(n));
  unfinished_ = static_cast<int>(prompts.size()) * n;
  choices_.resize(static_cast<size_t>(unfinished_));
  prompt_logprobs_.resize(prompts.size());
  prompt_ready_.assign(prompts.size(), request_.sampling.prompt_logprobs < 0);
  for (Choice& choice : choices_)
    choice.stream = std::make_unique<TextStream>(
        *llm_.tokenizer,
        TextStreamOptions{request_.stop, request_.include_stop, request_.skip_special_tokens});
  for (size_t i = 0; i < prompts.size(); ++i) {
    usage_.prompt_tokens += static_cast<int64_t>(prompts[i].size());
    prompt_sizes_.push_back(static_cast<int64_t>(prompts[i].size()));
    const int room = llm_.max_model_len - static_cast<int>(prompts[i].size());
    EngineRequest request{.prompt = prompts[i],
                          .sampling = {.max_tokens = std::min(max_tokens.value_or(room), room)},
                          .priority = request_.priority,
                          .cache_salt = request_.cache_salt,
                          .name = record_ ? record_->request_id : std::string(),
                          .shared = *shared};
    auto id = llm_.engine->submit(
        std::move(request), [mailbox = mailbox_, prompt = static_cast<int>(i)](const OutputEvent& event) {
          EngineNews news{prompt,
                          event.choice,
                          event.scheduled,
                          {event.tokens.begin(), event.tokens.end()},
                          {event.prompt_logprobs.begin(), event.prompt_logprobs.end()},
                          event.finish,
                          event.stop_token,
                          event.prompt_tokens,
                          event.cached_tokens,
                          {}};
          if (event.error) news.error = *event.error;
          mailbox->push(std::move(news));
        });
    if (!id) {
      fail();
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

void Generation::give_out(Choice& choice, int prompt, ChoiceUpdate update,
                          std::vector<ChoiceUpdate>& updates) {
  update.first = !std::exchange(choice.told, true);
  update.usage = {prompt_sizes_.at(static_cast<size_t>(prompt)), choice.tokens, 0};
  (prompt_ready_.at(static_cast<size_t>(prompt)) ? updates : choice.early).push_back(std::move(update));
}

// The prompt's log probabilities come with choice 0's first tokens or its end; other choices may be earlier.
void Generation::take_prompt(EngineNews& news, std::vector<ChoiceUpdate>& updates) {
  const auto prompt = static_cast<size_t>(news.prompt);
  if (prompt_ready_.at(prompt) || news.choice != 0) return;
  if (news.tokens.empty() && news.finish == FinishReason::kNone) return;
  prompt_logprobs_.at(prompt) = std::move(news.prompt_logprobs);
  prompt_ready_[prompt] = true;
  for (int i = 0; i < request_.sampling.n; ++i) {
    auto& early =
        choices_.at(prompt * static_cast<size_t>(request_.sampling.n) + static_cast<size_t>(i)).early;
    std::move(early.begin(), early.end(), std::back_inserter(updates));
    early.clear();
  }
}

void Generation::add_tokens(Choice& choice, EngineNews& news, ChoiceUpdate& update) {
  for (size_t i = 0; i < news.tokens.size() && update.finish.empty(); ++i) {
    ++usage_.completion_tokens;
    ++choice.tokens;
    const int32_t id = news.tokens[i].id;
    if (request_.return_token_ids) update.ids.push_back(id);
    const bool ends =
        news.finish == FinishReason::kStop && i + 1 == news.tokens.size() && id == news.stop_token;
    if (ends && !request_.include_stop) break;
    if (request_.logprobs) choice.held.push_back(news.tokens[i]);
    TextStream::Delta delta = choice.stream->push(id);
    if (delta.stopped) {
      update.finish = "stop";
      update.stop_text = delta.stop;
    }
    add_text(choice, update, std::move(delta));
  }
  if (!update.finish.empty()) {
    if (news.finish == FinishReason::kNone)
      llm_.engine->cancel(ids_.at(static_cast<size_t>(news.prompt)), news.choice, true);
    return;
  }
  if (news.finish == FinishReason::kNone) return;
  add_text(choice, update, choice.stream->finish());
  update.finish = news.finish == FinishReason::kStop ? "stop" : "length";
  if (news.finish != FinishReason::kStop) return;
  const auto& stops = request_.sampling.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), news.stop_token) != stops.end()) update.stop_id = news.stop_token;
  if (request_.logprobs && request_.end_token_logprobs && !request_.include_stop && !news.tokens.empty() &&
      news.tokens.back().id == news.stop_token)
    update.tokens.push_back(std::move(news.tokens.back()));
}

Result<void> Generation::handle(EngineNews& news, std::vector<ChoiceUpdate>& updates) {
  record_news(news);
  if (news.finish == FinishReason::kError) {
    fail();
    return news.error.value_or(Error{ErrorCode::kInternal, "the engine failed", {}});
  }
  const int index = news.prompt * request_.sampling.n + news.choice;
  Choice& choice = choices_.at(static_cast<size_t>(index));
  if (news.scheduled) {
    scheduled_ = true;
    if (news.choice == 0) usage_.cached_tokens += news.cached_tokens;
  }
  if (choice.finished) return {};
  if (news.finish == FinishReason::kCancelled)
    return make_error(ErrorCode::kUnavailable, "the server is shutting down: the answer is not complete");
  take_prompt(news, updates);
  ChoiceUpdate update{.index = index};
  add_tokens(choice, news, update);
  if (!update.finish.empty()) {
    choice.finished = true;
    --unfinished_;
    record_end(update.finish);
  }
  if (record_ && record_->keep_texts) record_->answers.at(static_cast<size_t>(index)) += update.text;
  if (!update.text.empty() || !update.tokens.empty() || !update.ids.empty() || !update.finish.empty())
    give_out(choice, news.prompt, std::move(update), updates);
  return {};
}

Result<std::vector<ChoiceUpdate>> Generation::take() {
  std::vector<ChoiceUpdate> updates;
  if (ids_.empty()) return updates;
  std::vector<EngineNews> all = mailbox_->take();
  const Span span(llm_.profiler.get(), Phase::kDetokenize, static_cast<int32_t>(all.size()));
  for (EngineNews& news : all) DI_TRY(handle(news, updates));
  return updates;
}

}  // namespace deepinfer::server
