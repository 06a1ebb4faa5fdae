// Work on text (JSON, template, tokenizer) away from the threads that serve streams, so that a prompt of a
// megabyte freezes nobody. Where CPUs are short, engine and streams go first: a token that is late delays
// everyone, a prompt that is read late its own client. Large texts have threads of their own, which use what
// all others leave: they delay neither streams nor small prompts.
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
  // `large_threads`: for large texts; with none of them the others read those too.
  TextPool(int threads, int max_jobs, int large_threads = 0)
      : pool_(static_cast<size_t>(threads)), max_jobs_(max_jobs) {
    if (large_threads > 0) large_pool_.emplace(static_cast<size_t>(large_threads));
  }

  // Runs `job`, which reads a text of `bytes`, on a thread of the pool, then goes on where the caller was.
  // kQueueFull at max_jobs waiting ones of its kind. What the job throws is thrown here.
  template <class T>
  boost::asio::awaitable<Result<T>> run(std::function<Result<T>()> job, size_t bytes = 0) {
    const bool large = large_pool_ && bytes >= kLarge;
    std::atomic<int>& jobs = large ? large_jobs_ : jobs_;
    const Leave leave{jobs};
    if (jobs.fetch_add(1) >= max_jobs_)
      co_return make_error(ErrorCode::kQueueFull, "too many prompts are being read at once: try again");
    if (large) co_return co_await on<Result<T>, &use_idle_time>(*large_pool_, std::move(job));
    co_return co_await on<Result<T>, &let_others_first>(pool_, std::move(job));
  }

  // The same for work that nothing may refuse: of an answer whose request was accepted, as which it is
  // bounded.
  template <class T>
  boost::asio::awaitable<T> run_accepted(std::function<T()> job) {
    co_return co_await on<T, &let_others_first>(pool_, std::move(job));
  }

  void join() {
    pool_.join();
    if (large_pool_) large_pool_->join();
  }

 private:
  static constexpr size_t kLarge = 64 << 10;  // about a millisecond's work

  struct Leave {
    std::atomic<int>& jobs;
    ~Leave() { --jobs; }
  };

  // `prepare` is called once on each thread of the pool.
  template <class T, void (*prepare)()>
  static boost::asio::awaitable<T> on(boost::asio::thread_pool& pool, std::function<T()> job) {
    std::optional<T> result;
    co_await boost::asio::co_spawn(
        pool,
        [&job, &result]() -> boost::asio::awaitable<void> {
          [[maybe_unused]] static thread_local const bool prepared = (prepare(), true);
          result.emplace(job());
          co_return;
        },
        boost::asio::use_awaitable);
    co_return std::move(*result);
  }

  boost::asio::thread_pool pool_;
  std::optional<boost::asio::thread_pool> large_pool_;
  std::atomic<int> jobs_ = 0, large_jobs_ = 0;
  const int max_jobs_;
};

}  // namespace deepinfer::server
