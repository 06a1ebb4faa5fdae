// Stages against one runner: the same bits, whatever is in flight, and at work at the same time.
#include "engine/pipeline_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>

#include "deepinfer/engine.h"
#include "pipeline_fixture.h"

namespace deepinfer::test {
namespace {

using ::testing::HasSubstr;

TEST(PipelineRunner, StagesHaveTheBitsOfTheWhole) {
  const auto c = random_checkpoint(nine_heads(), "nine", 5);
  ASSERT_TRUE(c);
  Runs one(runner_of_ranks(*c, 1));
  const auto want = all_logits(one);
  for (const int stages : {2, 3, 6}) {
    Runs many(pipeline(*c, stages, 1));
    EXPECT_EQ(many.runner().info().max_in_flight, stages);
    EXPECT_EQ(all_logits(many), want) << stages << " stages";
  }
}

TEST(PipelineRunner, StagesOfSharedLayersHaveTheBitsOfSharedLayers) {
  const auto c = random_checkpoint(nine_heads(4), "nine", 6);
  ASSERT_TRUE(c);
  for (const int shares : {2, 3}) {
    Runs one(runner_of_ranks(*c, shares)), many(pipeline(*c, 2, shares));
    EXPECT_EQ(all_logits(many), all_logits(one)) << shares << " shares";
  }
}

TEST(PipelineRunner, PromptsAreScoredAsByOne) {
  const auto c = random_checkpoint(nine_heads(4), "nine", 7);
  ASSERT_TRUE(c);
  for (const int shares : {1, 2}) {
    Runs one(runner_of_ranks(*c, shares)), many(pipeline(*c, 2, shares));
    for (Runs* runs : {&one, &many}) runs->step({{0, some_tokens(5, 50)}});
    const Runs::Rows rows = {{0, {7}}, {1, some_tokens(30, 51)}, {2, some_tokens(20, 52)}};
    const Got want = one.step(rows, true), got = many.step(rows, true);
    ASSERT_EQ(got.scored.size(), 2u);
    for (size_t i = 0; i < 2; ++i) {
      ASSERT_EQ(got.scored[i].size(), want.scored[i].size());
      for (size_t k = 0; k < want.scored[i].size(); ++k) {
        EXPECT_EQ(got.scored[i][k].id, want.scored[i][k].id);
        EXPECT_EQ(got.scored[i][k].logprob, want.scored[i][k].logprob);
        EXPECT_EQ(got.scored[i][k].rank, want.scored[i][k].rank);
        ASSERT_EQ(got.scored[i][k].top.size(), 2u);
        EXPECT_EQ(got.scored[i][k].top[1].token, want.scored[i][k].top[1].token);
      }
    }
    EXPECT_EQ(got.logits, want.logits);
  }
}

// Stage 1 cannot end its step before stage 0 has begun the next one, nor that one before stage 1 has begun.
TEST(PipelineRunner, StagesWorkAtTheSameTime) {
  const auto c = random_checkpoint(nine_heads(), "nine", 8);
  ASSERT_TRUE(c);
  std::mutex mutex;
  std::condition_variable changed;
  std::array<int, 2> begun{};
  const auto both = [&](int rank) {
    std::unique_lock lock(mutex);
    const int n = ++begun[rank];
    changed.notify_all();
    const auto other_came = [&] { return rank == 0 ? n == 1 || begun[1] >= n - 1 : begun[0] >= 2; };
    if (!changed.wait_for(lock, 20s, other_came)) throw std::runtime_error("alone");
  };
  Runs runs(pipeline(*c, 2, 1, both)), one(runner_of_ranks(*c, 1));
  runs.launch({{0, some_tokens(9, 1)}});
  runs.launch({{1, some_tokens(12, 2)}});
  const auto first = runs.finish().logits;
  runs.launch({{0, {3}}});
  const auto second = runs.finish().logits, third = runs.finish().logits;
  EXPECT_EQ(first, one.step({{0, some_tokens(9, 1)}}).logits);
  EXPECT_EQ(second, one.step({{1, some_tokens(12, 2)}}).logits);
  EXPECT_EQ(third, one.step({{0, {3}}}).logits);
}

// Hidden states and rows for the head both are longer than what is taken ahead of time (1 MiB).
TEST(PipelineRunner, LongMessagesInBothDirectionsWaitForNobody) {
  constexpr int kTokens = 2048;
  const auto c = random_checkpoint(nine_heads(2), "nine", 9);
  ASSERT_TRUE(c);
  const auto prompt = [](int i) { return some_tokens(kTokens - 7, 60 + static_cast<unsigned>(i)); };
  Runs runs(pipeline(*c, 2, 1, {}, 60s, kTokens)), one(runner_of_ranks(*c, 1, kTokens));
  std::vector<Got> got;
  for (int i = 0; i < 2; ++i) runs.launch({{i, prompt(i)}}, true);
  for (int i = 2; i < 4; ++i) {
    got.push_back(runs.finish());
    runs.launch({{i, prompt(i)}}, true);
  }
  for (int i = 0; i < 2; ++i) got.push_back(runs.finish());
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(got[i].scored.at(0).size(), size_t{kTokens - 8});
    EXPECT_EQ(got[i].logits, one.step({{i, prompt(i)}}).logits) << i;
  }
}

// When which stage was at work.
class Diary {
 public:
  // Of a forward that takes as long on every machine.
  void note(int rank) {
    const auto begin = Clock::now();
    std::this_thread::sleep_for(kForward);
    std::lock_guard lock(mutex_);
    spans_[rank].push_back({begin, Clock::now()});
  }
  int forwards(int rank) const { return static_cast<int>(spans_[rank].size()); }
  // How long both were at work, in parts of how long the second was.
  double overlap() const {
    double both = 0, second = 0;
    for (const auto& [begin, end] : spans_[1]) {
      second += std::chrono::duration<double>(end - begin).count();
      for (const auto& [b, e] : spans_[0])
        both += std::max(0.0, std::chrono::duration<double>(std::min(end, e) - std::max(begin, b)).count());
    }
    return both / second;
  }

 private:
  static constexpr auto kForward = 20ms;
  std::mutex mutex_;
  std::array<std::vector<std::pair<Clock::time_point, Clock::time_point>>, 2> spans_;
};

TEST(PipelineEngine, TextsAreThoseOfOneRunnerAndNoStageIdlesWithEnoughRequests) {
  const auto c = random_checkpoint(nine_heads(), "nine", 10);
  ASSERT_TRUE(c);
  const auto texts_of = [](std::unique_ptr<ModelRunner> runner) {
    Engine engine(std::move(runner), {.max_num_batched_tokens = 64});
    return texts(engine, 4, 12);
  };
  const auto want = texts_of(runner_of_ranks(*c, 1));
  Diary diary;
  EXPECT_EQ(texts_of(pipeline(*c, 2, 1, [&](int rank) { diary.note(rank); })), want);
  EXPECT_GE(diary.forwards(1), 2 * 11) << "two halves of the sequences take turns";
  EXPECT_GT(diary.overlap(), 0.5) << "of " << diary.forwards(1) << " steps";
  EXPECT_EQ(texts_of(pipeline(*c, 3, 1)), want);
  EXPECT_EQ(texts_of(pipeline(*c, 2, 2)), texts_of(runner_of_ranks(*c, 2)));
}

TEST(PipelineRunner, NothingToDoForLongerThanTheTimeoutIsNoFaultAndMemoryIsGivenBack) {
  const auto c = random_checkpoint(nine_heads(), "nine", 13);
  ASSERT_TRUE(c);
  Runs runs(pipeline(*c, 2, 2, {}, 2s));
  const auto want = runs.step({{0, {1, 2, 3}}}).logits;
  const int64_t held = runs.runner().held_memory().cache;
  EXPECT_GT(held, 0);
  std::this_thread::sleep_for(4s);
  runs.forget();
  EXPECT_EQ(runs.step({{0, {1, 2, 3}}}).logits, want);
  EXPECT_GE(runs.runner().release_unused(), held);
  EXPECT_LT(runs.runner().held_memory().cache, held);
  runs.forget();
  EXPECT_EQ(runs.step({{0, {1, 2, 3}}}).logits, want);
}

TEST(PipelineRunner, ATokenThatOnlyASlotKnowsIsRefused) {
  const auto c = random_checkpoint(nine_heads(), "nine", 14);
  ASSERT_TRUE(c);
  Runs runs(pipeline(*c, 2, 1)), one(runner_of_ranks(*c, 1));
  EXPECT_THROW(runs.step({{0, {kTokenFromSlot}}}), std::exception);
  EXPECT_EQ(all_logits(runs), all_logits(one));
}

TEST(PipelineRunner, MoreStagesThanLayersAreRefused) {
  const auto c = random_checkpoint(nine_heads(), "nine", 15);
  ASSERT_TRUE(c);
  const auto seven = make_stage_models(*c, {.stages = 7}, 2);
  ASSERT_FALSE(seven);
  EXPECT_THAT(seven.error().message, HasSubstr("gpu.pipeline_parallel_size: got 7, expected at most 6"));
  EXPECT_FALSE(make_stage_models(*c, {.stages = 2, .shares = 10}, 2).ok());
}

}  // namespace
}  // namespace deepinfer::test
