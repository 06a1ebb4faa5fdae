#include "engine/drafting.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sim.h"

namespace deepinfer::test {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<int32_t> guess(std::vector<int32_t> tokens, size_t most, int least = 2, int longest = 8) {
  std::vector<int32_t> out;
  look_up(tokens, {.lookup_min = least, .lookup_max = longest}, most, out);
  return out;
}

TEST(LookUp, WhatFollowedTheSameEnding) {
  EXPECT_THAT(guess({1, 2, 3, 4, 5, 9, 1, 2, 3}, 3), ElementsAre(4, 5, 9));
  EXPECT_THAT(guess({1, 2, 3, 4, 5, 9, 1, 2, 3}, 0), IsEmpty());
}

TEST(LookUp, NoPlaceThatSharesEnough) {
  EXPECT_THAT(guess({1, 2, 3, 4, 3}, 4), IsEmpty());
  EXPECT_THAT(guess({1, 2, 3, 4, 3}, 1, 1), ElementsAre(4));
  EXPECT_THAT(guess({1, 2, 3, 4}, 4, 1), IsEmpty());
  EXPECT_THAT(guess({7}, 4, 1), IsEmpty());
  EXPECT_THAT(guess({}, 4, 1), IsEmpty());
}

TEST(LookUp, TheLongestEndingAndOfEqualOnesTheLast) {
  EXPECT_THAT(guess({5, 1, 2, 8, 6, 1, 2, 9, 5, 1, 2}, 1), ElementsAre(8));
  EXPECT_THAT(guess({5, 1, 2, 8, 6, 1, 2, 9, 7, 1, 2}, 1), ElementsAre(9));
  // Two tokens are compared and no more: the last place wins.
  EXPECT_THAT(guess({5, 1, 2, 8, 6, 1, 2, 9, 5, 1, 2}, 1, 2, 2), ElementsAre(9));
}

TEST(LookUp, ARepetitionGoesOn) {
  EXPECT_THAT(guess({4, 1, 2, 1, 2}, 5), ElementsAre(1, 2, 1, 2, 1));
  EXPECT_THAT(guess({6, 6, 6}, 4), ElementsAre(6, 6, 6, 6));
}

TEST(StepCost, FitsALine) {
  StepCost cost;
  for (int i = 0; i < 200; ++i) {
    const int tokens = 1 + i % 9;
    cost.observe(tokens, 0.002 + 0.0005 * tokens);
  }
  EXPECT_NEAR(cost.of(17) / cost.of(1), (0.002 + 0.0005 * 17) / 0.0025, 0.05);
}

TEST(StepCost, WithOneSizeSeenTheRestIsAGuess) {
  StepCost cost;
  EXPECT_GT(cost.of(2), cost.of(1));
  for (int i = 0; i < 1000; ++i) cost.observe(4, 0.003);
  EXPECT_NEAR(cost.of(4), 0.003, 1e-9);
  EXPECT_GT(cost.of(5), cost.of(4));
  EXPECT_LE(cost.of(8), 2 * cost.of(4) + 1e-9);  // no more than two such steps
  EXPECT_GT(cost.of(1), 0);
}

TEST(DraftRecord, TrustIsEarned) {
  StepCost cost;
  DraftRecord record;
  EXPECT_EQ(record.worth(8, 1, cost), 0);
  for (int i = 0; i < 12; ++i) record.observe(true);
  EXPECT_GE(record.worth(8, 1, cost), 3);
  EXPECT_LE(record.worth(2, 1, cost), 2);
  for (int i = 0; i < 30; ++i) record.observe(i % 4 == 0);
  EXPECT_EQ(record.worth(8, 1, cost), 0);
}

TEST(DraftRecord, NothingIsWorthAStepThatGrowsAsMuchAsItGives) {
  StepCost cost;
  for (int i = 0; i < 100; ++i) cost.observe(1 + i % 16, 0.001 * (1 + i % 16));
  DraftRecord record;
  for (int i = 0; i < 50; ++i) record.observe(i % 10 != 0);
  EXPECT_EQ(record.worth(8, 32, cost), 0);
}

SimOptions drafting(int tokens) {
  SimOptions o;
  o.fake.info = small_info();
  o.fake.info.vocab_size = 2;  // guesses are often right
  o.fake.info.logit_rows = 40;
  o.speculation = {.num_tokens = tokens, .lookup_min = 1, .lookup_max = 3};
  return o;
}

EngineRequest request(int prompt, int max_tokens) {
  EngineRequest r;
  for (int i = 0; i < prompt; ++i) r.prompt.push_back(i % 2);
  r.sampling.max_tokens = max_tokens;
  r.sampling.seed = 3;
  return r;
}

TEST(Drafting, TheSameTokensInFewerSteps) {
  Sim plain(drafting(0)), sim(drafting(8));
  for (Sim* s : {&plain, &sim}) {
    s->add(request(5, 150));
    s->add(request(9, 150));
  }
  plain.run();
  sim.run();
  EXPECT_EQ(plain.verdict(), "");
  EXPECT_EQ(sim.verdict(), "");
  EXPECT_EQ(plain.runner().drafts_seen(), 0);
  EXPECT_GT(sim.runner().drafts_accepted(), 20);
  EXPECT_LT(sim.last_plan()->step.id, plain.last_plan()->step.id);
  const DraftCounts& counts = sim.scheduler().drafts();
  EXPECT_EQ(counts.tokens, static_cast<uint64_t>(sim.runner().drafts_seen()));
  EXPECT_EQ(counts.accepted, static_cast<uint64_t>(sim.runner().drafts_accepted()));
  EXPECT_LE(counts.drafts, counts.tokens);
}

TEST(Drafting, PenaltiesSeeTheGuessesBefore) {
  Sim sim(drafting(8));
  EngineRequest r = request(5, 150);
  r.sampling.repetition_penalty = 1.3f;
  sim.add(r);
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
  EXPECT_GT(sim.runner().drafts_accepted(), 10);
}

TEST(Drafting, ARequestDecides) {
  for (const int of_engine : {0, 8}) {
    for (const int wanted : {-1, 0, 4}) {
      Sim sim(drafting(of_engine));
      EngineRequest r = request(5, 100);
      r.sampling.num_speculative_tokens = wanted;
      sim.add(r);
      sim.run();
      EXPECT_EQ(sim.verdict(), "");
      EXPECT_EQ(sim.runner().drafts_seen() > 0, wanted == 4 || (wanted == -1 && of_engine == 8));
    }
  }
}

TEST(Drafting, NoMoreThanTheDeviceHasLogitsFor) {
  SimOptions o = drafting(8);
  o.fake.info.logit_rows = 3;
  o.fake.info.num_slots = 3;
  Sim sim(o);
  for (int i = 0; i < 5; ++i) sim.add(request(4 + i, 80));
  sim.run();
  EXPECT_EQ(sim.verdict(), "");  // the runner counts them
}

}  // namespace
}  // namespace deepinfer::test
