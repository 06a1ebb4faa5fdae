// What the engine counts, to the token and, with a clock that a test holds, to the second.
#include "engine/engine_metrics.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <numeric>

#include "fake_runner.h"

namespace deepinfer::test {
namespace {

uint64_t total(const Histogram& h) {
  uint64_t sum = 0;
  for (size_t i = 0; i <= h.bounds().size(); ++i) sum += h.count(i);
  return sum;
}

TEST(Histogram, BoundsAreInclusive) {
  Histogram h({1, 2.5, 10});
  for (const double value : {0.0, 1.0, 1.1, 2.5, 9.0, 10.0, 10.5, 1e9}) h.observe(value);
  EXPECT_EQ(h.count(0), 2u);
  EXPECT_EQ(h.count(1), 2u);
  EXPECT_EQ(h.count(2), 2u);
  EXPECT_EQ(h.count(3), 2u);
  EXPECT_DOUBLE_EQ(h.sum(), 1e9 + 34.1);
}

TEST(Histogram, LengthBucketsEndAtTheContext) {
  EXPECT_EQ(length_buckets(1), (std::vector<double>{1}));
  EXPECT_EQ(length_buckets(100), (std::vector<double>{1, 2, 5, 10, 20, 50, 100}));
  EXPECT_EQ(length_buckets(4096).back(), 2000);
  EXPECT_EQ(length_buckets(131072).back(), 100000);
}

// The engine with a runner whose every step takes a second of a clock that nothing else moves.
class EngineMetricsTest : public testing::Test {
 protected:
  void start(FakeOptions options = {.info = small_info(), .late = true, .reject_drafts = false, .seed = 1}) {
    auto runner = std::make_unique<FakeRunner>(options);
    runner->on_wait = [this](uint64_t) { clock_.advance(std::chrono::seconds(1)); };
    engine_ = std::make_unique<Engine>(std::move(runner), EngineOptions{}, &clock_);
  }

  uint64_t submit(EngineRequest request, std::function<void(const OutputEvent&)> also = {}) {
    {
      const std::lock_guard lock(mutex_);  // the engine's thread may still tell of an earlier request
      open_ += request.sampling.n;
    }
    auto id = engine_->submit(std::move(request), [this, also](const OutputEvent& event) {
      if (also) also(event);
      const std::lock_guard lock(mutex_);
      open_ -= event.finish != FinishReason::kNone;
      changed_.notify_all();
    });
    EXPECT_TRUE(id.ok());
    return id.ok() ? *id : 0;
  }
  void wait() {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(60), [this] { return open_ == 0; }));
  }
  static EngineRequest ask(int prompt, int tokens, int n = 1) {
    EngineRequest request;
    request.prompt.resize(static_cast<size_t>(prompt));
    std::iota(request.prompt.begin(), request.prompt.end(), 1);
    request.sampling.n = n;
    request.sampling.max_tokens = tokens;
    request.sampling.ignore_eos = true;
    request.sampling.seed = 1;
    return request;
  }
  const EngineMetrics& metrics() const { return engine_->metrics(); }
  uint64_t ended(Ending ending) const { return metrics().endings[static_cast<size_t>(ending)].value(); }

  FakeClock clock_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int open_ = 0;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineMetricsTest, AnAnswerIsCountedWhenItIsTold) {
  start();
  uint64_t at_end = 0;
  submit(ask(10, 5), [&](const OutputEvent& event) {
    if (event.finish != FinishReason::kNone) at_end = ended(Ending::kLength);
  });
  wait();
  EXPECT_EQ(at_end, 1u);
  EXPECT_EQ(metrics().prompt_tokens.value(), 10u);
  EXPECT_EQ(metrics().prompt_tokens_cached.value(), 0u);
  EXPECT_EQ(metrics().generation_tokens.value(), 5u);
  EXPECT_EQ(metrics().prefix_cache_queries.value(), 10u);
  EXPECT_EQ(total(metrics().inter_token_latency), 4u);
  EXPECT_DOUBLE_EQ(metrics().request_prompt_tokens.sum(), 10);
  EXPECT_DOUBLE_EQ(metrics().request_generation_tokens.sum(), 5);
  EXPECT_DOUBLE_EQ(metrics().params_max_tokens.sum(), 5);
  EXPECT_DOUBLE_EQ(metrics().params_n.sum(), 1);
  EXPECT_DOUBLE_EQ(metrics().iteration_tokens.sum(), 14);
}

TEST_F(EngineMetricsTest, TimesAreThoseOfTheSteps) {
  start();
  submit(ask(10, 5));
  wait();
  EXPECT_DOUBLE_EQ(metrics().time_to_first_token.sum(), 1);
  EXPECT_DOUBLE_EQ(metrics().queue_time.sum(), 0);
  EXPECT_DOUBLE_EQ(metrics().prefill_time.sum(), 1);
  EXPECT_DOUBLE_EQ(metrics().decode_time.sum(), 4);
  EXPECT_DOUBLE_EQ(metrics().inference_time.sum(), 5);
  EXPECT_DOUBLE_EQ(metrics().e2e_latency.sum(), 5);
  EXPECT_DOUBLE_EQ(metrics().inter_token_latency.sum(), 4);
  EXPECT_DOUBLE_EQ(metrics().time_per_output_token.sum(), 1);
  EXPECT_EQ(metrics().inter_token_latency.count(11), 4u);  // le="1"
}

TEST_F(EngineMetricsTest, ThePrefixCacheIsCountedInTokens) {
  start();
  submit(ask(21, 1));
  wait();
  submit(ask(21, 1));
  wait();
  EXPECT_EQ(metrics().prefix_cache_queries.value(), 42u);
  EXPECT_EQ(metrics().prefix_cache_hits.value(), 20u);  // five blocks of four
  EXPECT_EQ(metrics().prompt_tokens_cached.value(), 20u);
  EXPECT_EQ(metrics().prompt_tokens.value(), 42u);
}

TEST_F(EngineMetricsTest, ChoicesAreSequencesAndNIsOfTheRequest) {
  start();
  submit(ask(8, 3, 4));
  wait();
  EXPECT_EQ(ended(Ending::kLength), 4u);
  EXPECT_EQ(total(metrics().e2e_latency), 4u);
  EXPECT_EQ(total(metrics().params_n), 1u);
  EXPECT_DOUBLE_EQ(metrics().params_n.sum(), 4);
  EXPECT_EQ(metrics().prompt_tokens.value(), 32u);
  EXPECT_EQ(metrics().generation_tokens.value(), 12u);
}

TEST_F(EngineMetricsTest, AnAbortIsCountedAndNotTimed) {
  start();
  uint64_t id = 0;
  std::mutex known;
  known.lock();
  id = submit(ask(10, 150), [&](const OutputEvent& event) {
    const std::lock_guard lock(known);
    if (!event.tokens.empty()) engine_->cancel(id);
  });
  known.unlock();
  wait();
  EXPECT_EQ(ended(Ending::kAbort), 1u);
  EXPECT_EQ(total(metrics().e2e_latency), 0u);
  EXPECT_EQ(total(metrics().params_n), 0u);
  EXPECT_EQ(total(metrics().time_to_first_token), 1u);
  EXPECT_EQ(metrics().prompt_tokens.value(), 10u);
}

TEST_F(EngineMetricsTest, AReaderThatHasEnoughIsAStop) {
  start();
  uint64_t id = 0;
  std::mutex known;
  known.lock();
  id = submit(ask(10, 150), [&](const OutputEvent& event) {
    const std::lock_guard lock(known);
    if (!event.tokens.empty()) engine_->cancel(id, 0, true);
  });
  known.unlock();
  wait();
  EXPECT_EQ(ended(Ending::kStop), 1u);
  EXPECT_EQ(ended(Ending::kAbort), 0u);
  EXPECT_EQ(total(metrics().e2e_latency), 1u);
}

TEST_F(EngineMetricsTest, PreemptionsRepeatNoCount) {
  FakeOptions options{.info = small_info(), .late = true, .reject_drafts = false, .seed = 1};
  options.info.num_blocks = 12;  // 48 positions for three sequences of 33
  start(options);
  for (int i = 0; i < 3; ++i) {
    EngineRequest request = ask(3, 30);
    request.prompt[0] += i;
    submit(std::move(request));
  }
  wait();
  EXPECT_GT(metrics().preemptions.value(), 0u);
  EXPECT_EQ(metrics().preemptions.value(), engine_->stats().preemptions);
  EXPECT_EQ(metrics().generation_tokens.value(), 90u);
  EXPECT_EQ(metrics().prompt_tokens.value(), 9u);
  EXPECT_EQ(total(metrics().time_to_first_token), 3u);
  EXPECT_EQ(ended(Ending::kLength), 3u);
}

TEST_F(EngineMetricsTest, AFaultIsAnError) {
  auto runner = std::make_unique<FakeRunner>(FakeOptions{.info = small_info()});
  runner->on_launch = [](const Step&) { throw std::runtime_error("a test's fault"); };
  engine_ = std::make_unique<Engine>(std::move(runner), EngineOptions{}, &clock_);
  submit(ask(10, 5, 2));
  wait();
  EXPECT_EQ(ended(Ending::kError), 2u);
  EXPECT_EQ(total(metrics().e2e_latency), 0u);
}

}  // namespace
}  // namespace deepinfer::test
