// News of the engine's thread for one coroutine on a strand.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "deepinfer/engine.h"

namespace deepinfer::server {

// An OutputEvent that owns what it tells.
struct EngineNews {
  int prompt = 0;  // which of the request's prompts
  int choice = 0;
  bool scheduled = false;
  std::vector<OutputToken> tokens;
  std::vector<OutputToken> prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
  int32_t stop_token = -1;
  int prompt_tokens = 0;
  int cached_tokens = 0;
  std::optional<Error> error;
};

// push() may be called from any thread; the rest on the executor given, which must be a strand.
class Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  explicit Mailbox(boost::asio::any_io_executor strand) : timer_(std::move(strand)) {}

  void push(EngineNews news);
  std::vector<EngineNews> take();

  // Returns when there is news, after wake(), or when the time is over (then false). Without a time it waits
  // on.
  boost::asio::awaitable<bool> wait(std::optional<std::chrono::milliseconds> time);
  void wake();

 private:
  boost::asio::steady_timer timer_;
  bool woken_ = false;
  std::mutex mutex_;
  std::vector<EngineNews> news_;  // guarded by mutex_
  bool signalled_ = false;        // guarded by mutex_: a wake-up is on its way
};

}  // namespace deepinfer::server
