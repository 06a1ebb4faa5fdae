// An engine with a fake runner, a clock and a gate that the test holds, and a client that remembers what it
// saw.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "base/clock.h"
#include "deepinfer/engine.h"
#include "fake_runner.h"
#include "sim.h"

namespace deepinfer::test {

class AtomicClock final : public Clock {
 public:
  Time now() const override { return Time(std::chrono::nanoseconds(now_.load())); }
  void advance(double seconds) { now_ += static_cast<int64_t>(seconds * 1e9); }

 private:
  std::atomic<int64_t> now_{1'000'000'000};
};

// What a client saw of one choice.
struct Seen {
  bool scheduled = false;
  std::vector<int32_t> tokens;
  std::vector<OutputToken> scores;
  int times_scored = 0;
  FinishReason finish = FinishReason::kNone;
  int32_t stop_token = -1;
  int cached = 0;
  std::optional<Error> error;
  int finishes = 0;
};

class Client {
 public:
  OnEvent callback() {
    return [this](const OutputEvent& e) {
      std::lock_guard lock(mutex_);
      Seen& s = seen_[e.choice];
      s.scheduled = s.scheduled || e.scheduled;
      for (const OutputToken& t : e.tokens) s.tokens.push_back(t.id);
      s.scores.insert(s.scores.end(), e.prompt_logprobs.begin(), e.prompt_logprobs.end());
      s.times_scored += !e.prompt_logprobs.empty();
      s.cached = e.cached_tokens;
      if (e.error != nullptr) s.error = *e.error;
      if (e.finish != FinishReason::kNone) {
        s.finish = e.finish;
        s.stop_token = e.stop_token;
        ++s.finishes;
      }
      changed_.notify_all();
    };
  }
  template <class Condition>
  bool wait_until(Condition condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return condition(seen_); });
  }
  bool wait_finished(int choices = 1) {
    return wait_until([&](auto& seen) {
      int finished = 0;
      for (auto& [choice, s] : seen) finished += s.finishes > 0;
      return finished == choices;
    });
  }
  Seen seen(int choice = 0) {
    std::lock_guard lock(mutex_);
    return seen_[choice];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int, Seen> seen_;
};

// Lets the runner's steps pass only while it is open.
class Gate {
 public:
  void wait() {
    std::unique_lock lock(mutex_);
    ++arrivals_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
  }
  void set(bool open) {
    std::lock_guard lock(mutex_);
    open_ = open;
    changed_.notify_all();
  }
  void wait_for_arrival() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return arrivals_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
  int arrivals_ = 0;
};

class EngineTest : public ::testing::Test {
 protected:
  void start(ModelRunner::Info info = small_info()) {
    info_ = info;
    auto runner = std::make_unique<FakeRunner>(FakeOptions{.info = info, .reject_drafts = false});
    runner_ = runner.get();
    runner_->on_wait = [this](uint64_t step) {
      gate_.wait();
      if (on_wait_) on_wait_(step);
    };
    engine_ = std::make_unique<Engine>(std::move(runner), options_, &clock_);
  }
  static EngineRequest request(int length, int max_tokens, int start = 0) {
    EngineRequest r{.prompt = iota_prompt(length, start)};
    r.sampling.max_tokens = max_tokens;
    r.sampling.seed = 7;
    return r;
  }
  std::vector<int32_t> expected(const EngineRequest& r, int choice = 0) {
    return oracle(info_,
                  {r.prompt, r.sampling, choice_seed(7, choice), options_.end_ids, info_.max_model_len})
        .tokens;
  }
  uint64_t submit(const EngineRequest& r, Client& client) {
    Result<uint64_t> id = engine_->submit(r, client.callback());
    EXPECT_TRUE(id.ok());
    return id.ok() ? *id : 0;
  }
  bool wait_idle() {
    for (int i = 0; i < 2000 && !engine_->idle(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return engine_->idle();
  }
  void expect_all_blocks_free() {
    ASSERT_TRUE(wait_idle());
    // A request ends before the last of its steps in flight is committed.
    for (int i = 0; i < 2000 && engine_->stats().free_blocks != info_.num_blocks; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_EQ(engine_->stats().free_blocks, info_.num_blocks);
    EXPECT_EQ(engine_->stats().running, 0);
    EXPECT_EQ(engine_->stats().waiting, 0);
  }

  ModelRunner::Info info_;
  EngineOptions options_;
  AtomicClock clock_;
  Gate gate_;
  std::function<void(uint64_t)> on_wait_;  // set before the first request
  FakeRunner* runner_ = nullptr;
  std::unique_ptr<Engine> engine_;
};

}  // namespace deepinfer::test
