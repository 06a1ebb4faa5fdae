// One request's prompts in the engine, and their tokens as text.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/llm.h"
#include "server/mailbox.h"
#include "server/openai.h"
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
  std::string text;                 // complete UTF-8, never a part of a stop string
  std::vector<OutputToken> tokens;  // whose text is now given completely
  std::string_view finish;          // "", "stop", "length"
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

  void cancel();  // the engine frees all of it within its step; take() gives nothing more
  void wake() { mailbox_->wake(); }

  bool scheduled() const { return scheduled_; }
  bool done() const { return unfinished_ == 0; }
  int choices() const { return static_cast<int>(choices_.size()); }
  const Usage& usage() const { return usage_; }

 private:
  struct Choice {
    std::unique_ptr<TextStream> stream;
    std::deque<OutputToken> held;  // tokens whose text is held back
    bool finished = false;
  };

  Result<void> handle(EngineNews& news, std::vector<ChoiceUpdate>& updates);
  void add_text(Choice& choice, ChoiceUpdate& update, TextStream::Delta delta) const;

  Llm& llm_;
  const GenerationRequest& request_;
  std::shared_ptr<Mailbox> mailbox_;
  std::vector<uint64_t> ids_;  // of the engine, by prompt
  std::vector<Choice> choices_;
  int unfinished_ = 0;
  bool scheduled_ = false;
  Usage usage_;
};

}  // namespace deepinfer::server
