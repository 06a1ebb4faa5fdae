// One request's prompts in the engine, and their tokens as text.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/llm.h"
#include "server/mailbox.h"
#include "server/openai.h"
#include "server/request_record.h"
#include "text/text_stream.h"

namespace deepinfer::server {

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
};

// News of one choice, ready to be sent.
struct ChoiceUpdate {
  int index = 0;                    // prompt * n + choice
  bool first = false;               // of this choice
  std::string text;                 // complete UTF-8, never a part of a stop string
  std::vector<OutputToken> tokens;  // whose text is now given completely; when logprobs are wanted
  std::vector<int32_t> ids;         // all new ones, the end of sequence too
  std::string_view finish;          // "", "stop", "length"
  std::string stop_text;            // the stop string that ended it
  int32_t stop_id = -1;             // the one of stop_token_ids that ended it
  Usage usage;                      // of its prompt and of this choice so far
};

// Lives on a strand. Its end cancels what still runs.
class Generation {
 public:
  // Borrows llm and request.
  Generation(Llm& llm, const GenerationRequest& request, boost::asio::any_io_executor strand);
  ~Generation();
  Generation(const Generation&) = delete;

  // All prompts or none. `max_tokens` unset: the rest of the context.
  Result<void> submit(const std::vector<std::vector<int32_t>>& prompts, std::optional<int> max_tokens);

  boost::asio::awaitable<bool> wait(std::optional<std::chrono::milliseconds> time) {
    return mailbox_->wait(time);
  }
  Result<std::vector<ChoiceUpdate>> take();

  // Of each prompt, from its second token on; complete when take() gives a first update of one of its
  // choices.
  const std::vector<std::vector<OutputToken>>& prompt_logprobs() const { return prompt_logprobs_; }
  std::vector<std::vector<OutputToken>> take_prompt_logprobs() { return std::move(prompt_logprobs_); }

  void cancel();  // the engine frees all of it within its step; take() gives nothing more
  void fail();    // what comes after this end is counted as an error, not as a client's leaving
  void wake() { mailbox_->wake(); }

  bool scheduled() const { return scheduled_; }
  bool done() const { return unfinished_ == 0; }
  int choices() const { return static_cast<int>(choices_.size()); }
  const Usage& usage() const { return usage_; }

  // From submit() on, how far this came goes to `record`, which outlives this.
  void report_to(RequestRecord* record) { record_ = record; }

 private:
  struct Choice {
    std::unique_ptr<TextStream> stream;
    std::deque<OutputToken> held;     // tokens whose text is held back
    std::vector<ChoiceUpdate> early;  // until the prompt's log probabilities are here
    int64_t tokens = 0;               // so far
    bool told = false;                // the first update is out
    bool finished = false;
  };

  Result<void> handle(EngineNews& news, std::vector<ChoiceUpdate>& updates);
  void add_tokens(Choice& choice, EngineNews& news, ChoiceUpdate& update);
  void give_out(Choice& choice, int prompt, ChoiceUpdate update, std::vector<ChoiceUpdate>& updates);
  void take_prompt(EngineNews& news, std::vector<ChoiceUpdate>& updates);
  void add_text(Choice& choice, ChoiceUpdate& update, TextStream::Delta delta) const;
  void record_news(const EngineNews& news);
  void record_end(std::string_view finish);

  Llm& llm_;
  const GenerationRequest& request_;
  std::shared_ptr<Mailbox> mailbox_;
  std::vector<uint64_t> ids_;  // of the engine, by prompt
  std::vector<Choice> choices_;
  std::vector<std::vector<OutputToken>> prompt_logprobs_;  // by prompt
  std::vector<bool> prompt_ready_;     // by prompt: its log probabilities are here, or unwanted
  std::vector<int64_t> prompt_sizes_;  // by prompt
  int unfinished_ = 0;
  bool scheduled_ = false;
  bool failed_ = false;
  Usage usage_;
  RequestRecord* record_ = nullptr;
  std::chrono::steady_clock::time_point submitted_;
};

}  // namespace deepinfer::server
