// Ranks of a pipeline that are not threads of one runner: over Gloo, on one machine and between two.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pipeline_fixture.h"
#include "unit/comm/wire.h"

namespace deepinfer::test {
namespace {

using ::testing::HasSubstr;

struct Form {
  const char* name;
  int stages, shares;
};

class Processes : public testing::TestWithParam<Form> {
 protected:
  void SetUp() override {
    if (!has_gloo()) GTEST_SKIP() << "this build has no Gloo (libgloo-dev)";
    auto c = random_checkpoint(nine_heads(), "nine", 16);
    ASSERT_TRUE(c);
    checkpoint_ = std::move(*c);
  }
  static PipelinePlace grid() { return {.stages = GetParam().stages, .shares = GetParam().shares}; }
  void start(std::chrono::milliseconds timeout, const Before& before = {}) {
    group_ = std::make_unique<Followers>(checkpoint_, grid(), gloo_ranks, timeout, before);
  }
  Runs& runs() { return *group_->runs; }

  Checkpoint checkpoint_;
  std::unique_ptr<Followers> group_;
};

TEST_P(Processes, HaveTheBitsOfThreadsAndEndTogether) {
  start(30s);
  Runs threads(pipeline(checkpoint_, GetParam().stages, GetParam().shares));
  EXPECT_EQ(all_logits(runs()), all_logits(threads));
  runs().runner().release_unused();
  runs().forget();
  threads.forget();
  for (Runs* runs : {&runs(), &threads})
    for (int i = 0; i < 2; ++i) runs->launch({{i, some_tokens(11, 80 + static_cast<unsigned>(i))}}, true);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(runs().finish().logits, threads.finish().logits);
  group_->runs.reset();
  EXPECT_THAT(group_->ends(), testing::Each("told to"));
}

TEST_P(Processes, ARankThatFailsIsTheEndOfTheGroup) {
  const int bad = grid().ranks() - 1;
  int calls = 0;
  start(30s, [&calls, bad](int rank) {
    if (rank == bad && ++calls == 2) throw std::runtime_error("a rank is on fire");
  });
  runs().step({{0, {1, 2, 3}}});
  const auto begin = Clock::now();
  try {
    runs().step({{0, {4}}});
    FAIL() << "the step succeeded";
  } catch (const DeviceLost& e) {
    EXPECT_THAT(e.what(), HasSubstr("a rank is on fire"));
  }
  EXPECT_THROW(runs().step({{0, {4}}}), DeviceLost);
  EXPECT_LT(Clock::now() - begin, 15s);
  EXPECT_THAT(group_->ends(), testing::Each(HasSubstr("a rank is on fire")));
}

TEST_P(Processes, ARankThatStallsIsTheEndOfTheGroupInTime) {
  const int bad = GetParam().shares;  // of the second stage
  int calls = 0;
  start(2s, [&calls, bad](int rank) {
    if (rank == bad && ++calls == 2) std::this_thread::sleep_for(6s);
  });
  runs().step({{0, {1, 2, 3}}});
  const auto begin = Clock::now();
  EXPECT_THROW(runs().step({{0, {4}}}), DeviceLost);
  EXPECT_LT(Clock::now() - begin, 5s);
  EXPECT_THAT(group_->ends(), testing::Each(testing::Not(testing::AnyOf("", "told to"))));
}

INSTANTIATE_TEST_SUITE_P(Forms, Processes,
                         testing::Values(Form{"TwoStages", 2, 1}, Form{"ThreeStages", 3, 1},
                                         Form{"TwoStagesOfTwo", 2, 2}),
                         [](const auto& info) { return std::string(info.param.name); });

// Layers shared, and dealt to stages, between two machines.
class OverAWire : public testing::TestWithParam<Form> {};

TEST_P(OverAWire, HasTheBitsOfThreadsHoweverLateAndLossy) {
  SCOPED_TRACE(kSeed);
  if (!has_gloo()) GTEST_SKIP() << "this build has no Gloo (libgloo-dev)";
  const auto c = random_checkpoint(nine_heads(), "nine", 17);
  ASSERT_TRUE(c);
  const PipelinePlace grid{.stages = GetParam().stages, .shares = GetParam().shares};
  Runs threads(grid.stages == 1 ? runner_of_ranks(*c, grid.shares) : pipeline(*c, grid.stages, grid.shares));
  const auto want = all_logits(threads);
  for (const auto& [delay, loss] : {std::pair{0us, 0.0}, {2000us, 0.02}}) {
    Wire wire(delay, loss);
    if (!wire.error().empty()) GTEST_SKIP() << "this machine gives no second network: " << wire.error();
    Followers group(*c, grid, wire.ranks(), kLong);
    int rounds = 0;
    do {
      EXPECT_EQ(all_logits(*group.runs), want) << delay.count() << " us late";
    } while (loss > 0 && wire.lost() < 5 && ++rounds < 50);
    EXPECT_LT(rounds, 50);
    group.runs.reset();
    EXPECT_THAT(group.ends(), testing::Each("told to"));
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, OverAWire,
                         testing::Values(Form{"TwoShares", 1, 2}, Form{"TwoStages", 2, 1},
                                         Form{"TwoStagesOfTwo", 2, 2}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace deepinfer::test
