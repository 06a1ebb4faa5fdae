// The search with a made-up machine in place of an engine.
#include "tune/search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "base/check.h"

namespace deepinfer::tune {
namespace {

using testing::HasSubstr;

std::vector<Axis> axes() {
  return {{"gpu.max_num_seqs", {"8", "16", "32", "64", "128", "256"}, 4},
          {"gpu.max_num_batched_tokens", {"256", "512", "1024", "2048"}, 3},
          {"gpu.enforce_eager", {"false", "true"}, 0}};
}

// Has a clock of its own, which runs only while something is measured.
struct Machine {
  std::function<double(const Point&)> speed;  // tokens a second
  std::function<double(const Point&)> ttft = [](const Point&) { return 0.1; };
  double work = 1000;  // tokens of a run
  double noise = 0;
  double now = 0;
  int stop_after = 1000000;  // runs, then it is interrupted
  std::vector<Point> measured;
  std::vector<double> limits;
  std::mt19937 random{1};

  SearchHooks hooks() {
    return {.measure = [this](const Point& p, double seconds) { return run(p, seconds); },
            .elapsed = [this] { return now; }};
  }
  Result<Measurement> run(const Point& p, double seconds) {
    if (static_cast<int>(measured.size()) >= stop_after) return make_error(ErrorCode::kCancelled, "stopped");
    measured.push_back(p);
    limits.push_back(seconds);
    Measurement m;
    const double wrong = std::uniform_real_distribution<double>(-noise, noise)(random);
    m.tokens_per_second = speed(p) * (1 + wrong);
    if (m.tokens_per_second <= 0) return Measurement{.failure = "the model does not fit"};
    m.seconds = std::min(work / m.tokens_per_second, seconds);
    m.complete = m.seconds < seconds;
    m.ttft = {ttft(p) / 2, ttft(p)};
    m.itl = {0.01, 0.02};
    now += m.seconds;
    return m;
  }
};

// One hill, its top at (5, 1, 0).
double hill(const Point& p) {
  const double a = std::abs(5.0 - static_cast<double>(p[0])), b = std::abs(1.0 - static_cast<double>(p[1]));
  return 500 - 40 * a - 25 * b - 100 * static_cast<double>(p[2]);
}

TEST(TuneSearch, FindsTheTopOfAHill) {
  Machine machine{.speed = hill};
  const Result<Outcome> r = search(axes(), {}, 1e6, machine.hooks());
  ASSERT_TRUE(r.ok());
  EXPECT_EQ(r->trials[*r->best].point, (Point{5, 1, 0}));
  EXPECT_EQ(r->end, End::kConverged);
  EXPECT_TRUE(r->slo_met);
  EXPECT_EQ(r->trials.front().point, (Point{4, 3, 0})) << "it begins with the recommended settings";
  EXPECT_EQ(r->trials[*r->best].runs.size(), 2u) << "the best is measured twice";
  EXPECT_LT(machine.measured.size(), 16u) << "of 48 points";
}

TEST(TuneSearch, FindsItFromEveryStart) {
  for (size_t a = 0; a < 6; ++a)
    for (size_t b = 0; b < 4; ++b)
      for (size_t c = 0; c < 2; ++c) {
        std::vector<Axis> from = axes();
        from[0].start = a, from[1].start = b, from[2].start = c;
        Machine machine{.speed = hill};
        const Result<Outcome> r = search(from, {}, 1e6, machine.hooks());
        ASSERT_TRUE(r.ok());
        EXPECT_EQ(r->trials[*r->best].point, (Point{5, 1, 0})) << a << " " << b << " " << c;
      }
}

TEST(TuneSearch, NoiseDoesNotMoveItFarFromTheTop) {
  for (unsigned seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(seed);
    Machine machine{.speed = hill, .noise = 0.02, .random = std::mt19937(seed)};
    const Result<Outcome> r = search(axes(), {}, 1e6, machine.hooks());
    ASSERT_TRUE(r.ok());
    EXPECT_GT(hill(r->trials[*r->best].point), 0.9 * 500);
  }
}

TEST(TuneSearch, WhatIsKnownIsKeptWhenNothingIsBetterByMoreThanNoise) {
  Machine machine{.speed = [](const Point& p) { return p == Point{4, 3, 0} ? 500.0 : 505.0; }};
  const Result<Outcome> r = search(axes(), {}, 1e6, machine.hooks());
  ASSERT_TRUE(r.ok());
  EXPECT_EQ(r->best, 0u);
}

TEST(TuneSearch, HoldsItsBudget) {
  for (const double budget : {3.0, 4.0, 7.0, 11.0, 30.0}) {
    SCOPED_TRACE(budget);
    Machine machine{.speed = hill};
    const Result<Outcome> r = search(axes(), {}, budget, machine.hooks());
    ASSERT_TRUE(r.ok());
    EXPECT_LE(machine.now, budget);
    EXPECT_TRUE(r->best.has_value());
    if (budget < 11) {
      EXPECT_EQ(r->end, End::kBudget);
    }
  }
}

TEST(TuneSearch, ABudgetTooSmallForOneRunIsAnError) {
  Machine machine{.speed = hill};
  const Result<Outcome> r = search(axes(), {}, 1, machine.hooks());
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().code, ErrorCode::kConfig);
  EXPECT_THAT(r.error().message, HasSubstr("--minutes"));
}

TEST(TuneSearch, SlowPointsAreStoppedEarly) {
  Machine machine{.speed = [](const Point& p) { return p[0] == 4 ? 500.0 : 10.0; }};
  const Result<Outcome> r = search(axes(), {}, 1e6, machine.hooks());
  ASSERT_TRUE(r.ok());
  EXPECT_LT(machine.now, 2 + 2 * 2.5 + 6 * 2.5) << "a run to the end would take 100 s";
  const auto stopped =
      std::count_if(r->trials.begin(), r->trials.end(), [](const Trial& t) { return !t.usable(); });
  EXPECT_EQ(stopped, 2);
  EXPECT_EQ(r->trials[*r->best].point[0], 4u);
}

// More sequences are faster, and wait longer.
TEST(TuneSearch, TheFastestThatMeetsTheSloWins) {
  Machine machine{.speed = [](const Point& p) { return 100.0 + 50 * static_cast<double>(p[0]); },
                  .ttft = [](const Point& p) { return 0.1 * static_cast<double>(p[0] + 1); }};
  const Result<Outcome> r = search(axes(), {.ttft = 0.35}, 1e6, machine.hooks());
  ASSERT_TRUE(r.ok());
  EXPECT_TRUE(r->slo_met);
  EXPECT_EQ(r->trials[*r->best].point[0], 2u);
}

TEST(TuneSearch, TheNearestWhenNothingMeetsTheSlo) {
  Machine machine{.speed = [](const Point& p) { return 100.0 + 50 * static_cast<double>(p[0]); },
                  .ttft = [](const Point& p) { return 0.1 * static_cast<double>(p[0] + 1); }};
  const Result<Outcome> r = search(axes(), {.ttft = 0.01, .itl = 1}, 1e6, machine.hooks());
  ASSERT_TRUE(r.ok());
  EXPECT_FALSE(r->slo_met);
  EXPECT_EQ(r->trials[*r->best].point[0], 0u);
}

TEST(TuneSearch, InterruptedItTellsTheBestSoFar) {
  Machine machine{.speed = hill, .stop_after = 3};
  const Result<Outcome> r = search(axes(), {}, 1e6, machine.hooks());
  ASSERT_TRUE(r.ok());
  EXPECT_EQ(r->end, End::kInterrupted);
  EXPECT_EQ(r->trials[*r->best].point, (Point{5, 2, 0}));

  Machine at_once{.speed = hill, .stop_after = 0};
  const Result<Outcome> none = search(axes(), {}, 1e6, at_once.hooks());
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->best.has_value());
}

TEST(TuneSearch, PointsThatCannotRunAreLeftOut) {
  Machine machine{.speed = [](const Point& p) { return p[0] > 4 ? 0.0 : hill(p); }};
  const Result<Outcome> r = search(axes(), {}, 1e6, machine.hooks());
  ASSERT_TRUE(r.ok());
  EXPECT_EQ(r->trials[*r->best].point, (Point{4, 1, 0}));

  Machine nothing{.speed = [](const Point&) { return 0.0; }};
  const Result<Outcome> none = search(axes(), {}, 1e6, nothing.hooks());
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().code, ErrorCode::kMemory);
  EXPECT_THAT(none.error().message, HasSubstr("does not fit"));
}

TEST(TuneSearch, OtherErrorsEndIt) {
  SearchHooks hooks{.measure = [](const Point&, double) -> Result<Measurement> {
                      return make_error(ErrorCode::kModel, "broken");
                    },
                    .elapsed = [] { return 0.0; }};
  const Result<Outcome> r = search(axes(), {}, 1e6, hooks);
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().message, "broken");
}

TEST(TuneSearch, MeansAreOfTheCompleteRuns) {
  Trial t{.point = {},
          .runs = {{.tokens_per_second = 10, .ttft = {1, 2}, .seconds = 4, .complete = true},
                   {.tokens_per_second = 99, .complete = false},
                   {.tokens_per_second = 20, .ttft = {3, 4}, .seconds = 2, .complete = true}}};
  EXPECT_DOUBLE_EQ(t.mean().tokens_per_second, 15);
  EXPECT_DOUBLE_EQ(t.mean().ttft.p50, 2);
  EXPECT_DOUBLE_EQ(t.mean().ttft.p99, 3);
  EXPECT_DOUBLE_EQ(t.mean().seconds, 3);
}

}  // namespace
}  // namespace deepinfer::tune
