// Work on text (JSON, template, tokenizer) away from the threads that serve streams, so that a prompt of a
// megabyte freezes nobody. Where CPUs are short, engine and streams go first: a token that is late delays
// everyone, a prompt that is read late its own client.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <functional>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/limits.h"
#include "deepinfer/result.h"

namespace deepinfer::server {

class TextPool {
 public:
  TextPool(int threads, int max_jobs) : pool_(static_cast<size_t>(threads)), max_jobs_(max_jobs) {}

  // Runs `job` on a thread of the pool, then goes on where the caller was. kQueueFull at max_jobs waiting
  // ones. What the job throws is thrown here.
  template <class T>
  boost::asio::awaitable<Result<T>> run(std::function<Result<T>()> job) {
    if (jobs_.fetch_add(1) >= max_jobs_) {
      --jobs_;
      co_return make_error(ErrorCode::kQueueFull, "too many prompts are being read at once: try again");
    }
    const Leave leave{jobs_};
    co_return co_await run_accepted<Result<T>>(std::move(job));
  }

  // The same for work that nothing may refuse: of an answer whose request was accepted, as which it is
  // bounded.
  template <class T>
  boost::asio::awaitable<T> run_accepted(std::function<T()> job) {
    std::optional<T> result;
    co_await boost::asio::co_spawn(
        pool_,
        [&job, &result]() -> boost::asio::awaitable<void> {
          [[maybe_unused]] static thread_local const bool later = (let_others_first(), true);
          result.emplace(job());
          co_return;
        },
        boost::asio::use_awaitable);
    co_return std::move(*result);
  }

  void join() { pool_.join(); }

 private:
  struct Leave {
    std::atomic<int>& jobs;
    ~Leave() { --jobs; }
  };

  boost::asio::thread_pool pool_;
  std::atomic<int> jobs_ = 0;
  const int max_jobs_;
};

}  // namespace deepinfer::server
