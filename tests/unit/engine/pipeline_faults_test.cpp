// What becomes of steps when a rank of a pipeline throws, has no memory, or hangs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <new>

#include "pipeline_fixture.h"

namespace deepinfer::test {
namespace {

using ::testing::HasSubstr;

// 3 stages of 1, or 2 of 2: a rank does something in its third forward.
struct Fault {
  int stages, shares, rank;
};

std::string name_of(const testing::TestParamInfo<Fault>& info) {
  return "Stages" + std::to_string(info.param.stages) + "Rank" + std::to_string(info.param.rank);
}

class PipelineFaults : public testing::TestWithParam<Fault> {
 protected:
  static constexpr std::chrono::milliseconds kShort = 2s;

  void start(const std::function<void()>& fault, std::chrono::milliseconds timeout = 20s) {
    auto c = random_checkpoint(nine_heads(), "nine", 12);
    ASSERT_TRUE(c);
    checkpoint_ = std::move(*c);
    runs_ = std::make_unique<Runs>(pipeline(
        checkpoint_, GetParam().stages, GetParam().shares,
        [this, fault](int rank) {
          if (rank == GetParam().rank && ++calls_ == 3) fault();
        },
        timeout));
  }
  // Steps fail from one of these on; what they throw, each.
  std::vector<std::exception_ptr> faults() {
    runs_->step({{0, {1, 2, 3}}});
    std::vector<std::exception_ptr> all;
    const auto guarded = [&](const auto& work) {
      try {
        work();
        return true;
      } catch (...) {
        all.push_back(std::current_exception());
        return false;
      }
    };
    int launched = 0;
    for (int i = 0; i < 2; ++i) launched += guarded([&] { runs_->launch({{i, {4}}}); });
    for (int i = 0; i < launched; ++i) guarded([&] { runs_->finish(); });
    return all;
  }
  void expect_good_bits_now() {
    Runs good(GetParam().shares == 1 ? runner_of_ranks(checkpoint_, 1)
                                     : runner_of_ranks(checkpoint_, GetParam().shares));
    EXPECT_EQ(all_logits(*runs_), all_logits(good));
  }

  Checkpoint checkpoint_;
  std::atomic<int> calls_{0};
  std::unique_ptr<Runs> runs_;
};

TEST_P(PipelineFaults, AThrowEndsTheStepsInFlightWithItsText) {
  start([] { throw std::runtime_error("a rank is on fire"); });
  const auto all = faults();
  ASSERT_FALSE(all.empty());
  for (const std::exception_ptr& e : all) {
    try {
      std::rethrow_exception(e);
    } catch (const std::runtime_error& what) {
      EXPECT_THAT(what.what(), HasSubstr("a rank is on fire"));
    }
  }
  expect_good_bits_now();
}

TEST_P(PipelineFaults, NoMemoryOnOneRankIsNoMemoryForTheStep) {
  start([] { throw std::bad_alloc(); });
  const auto all = faults();
  ASSERT_FALSE(all.empty());
  for (const std::exception_ptr& e : all) EXPECT_THROW(std::rethrow_exception(e), std::bad_alloc);
  expect_good_bits_now();
}

// Not rank 0: that is the engine's own thread, which the server watches.
class PipelineHangs : public PipelineFaults {};

TEST_P(PipelineHangs, ARankThatHangsIsTheEndInTime) {
  const auto hang = std::make_shared<std::atomic<bool>>(true);
  start(
      [hang] {
        for (int i = 0; i < 600 && *hang; ++i) std::this_thread::sleep_for(50ms);
      },
      kShort);
  const auto begin = Clock::now();
  const auto all = faults();
  EXPECT_LT(Clock::now() - begin, kShort + 3s);
  ASSERT_FALSE(all.empty());
  for (const std::exception_ptr& e : all) EXPECT_THROW(std::rethrow_exception(e), DeviceLost);
  EXPECT_THROW(runs_->launch({{3, {1}}}), DeviceLost);
  runs_.reset();  // does not wait for it
  EXPECT_LT(Clock::now() - begin, 15s);
  *hang = false;
  std::this_thread::sleep_for(200ms);
}

INSTANTIATE_TEST_SUITE_P(EachRank, PipelineFaults,
                         testing::Values(Fault{3, 1, 0}, Fault{3, 1, 1}, Fault{3, 1, 2}, Fault{2, 2, 0},
                                         Fault{2, 2, 1}, Fault{2, 2, 2}, Fault{2, 2, 3}),
                         name_of);
INSTANTIATE_TEST_SUITE_P(EachRank, PipelineHangs,
                         testing::Values(Fault{3, 1, 1}, Fault{3, 1, 2}, Fault{2, 2, 1}, Fault{2, 2, 3}),
                         name_of);

TEST(PipelineEngine, RequestsOfAStepThatFailsEndAndOthersAreServed) {
  const auto c = random_checkpoint(nine_heads(), "nine", 11);
  ASSERT_TRUE(c);
  std::atomic<int> calls{0};
  Engine engine(pipeline(*c, 2, 1,
                         [&](int rank) {
                           if (rank == 1 && ++calls == 5) throw std::runtime_error("a stage is on fire");
                         }),
                {.max_num_batched_tokens = 64});
  texts(engine, 4, 12);
  const auto again = texts(engine, 4, 12);
  Engine good(runner_of_ranks(*c, 1), {.max_num_batched_tokens = 64});
  EXPECT_EQ(again, texts(good, 4, 12));
}

}  // namespace
}  // namespace deepinfer::test
