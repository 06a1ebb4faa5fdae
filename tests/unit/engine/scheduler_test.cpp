// Each promise of the scheduler by itself.
#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "sim.h"
#include "tensor/step_batch.h"

namespace deepinfer::test {
namespace {

using ::testing::ElementsAre;

EngineRequest request(std::vector<int32_t> prompt, int max_tokens = 4) {
  EngineRequest r{.prompt = std::move(prompt)};
  r.sampling.max_tokens = max_tokens;
  r.sampling.seed = 3;
  return r;
}

SimOptions options() {
  SimOptions o;
  o.fake.info = small_info();
  o.fake.reject_drafts = false;
  return o;
}

// [tokens of each row] of the last plan.
std::vector<int64_t> shape(const Sim& sim) {
  std::vector<int64_t> counts;
  for (const PlannedRow& row : sim.last_plan()->rows) counts.push_back(row.count);
  return counts;
}

int64_t blocks_in_use(Sim& sim) {
  return sim.scheduler().pool().total_blocks() - sim.scheduler().pool().free_blocks();
}

TEST(Scheduler, DecodeRowsComeFirstAndPromptsAreCutToTheBudget) {
  Sim sim(options());  // 16 tokens a step
  sim.add(request(iota_prompt(5)));
  sim.step();
  EXPECT_THAT(shape(sim), ElementsAre(5));
  sim.add(request(iota_prompt(30, 1)));
  sim.add(request(iota_prompt(9, 2)));
  sim.step();
  EXPECT_THAT(shape(sim), ElementsAre(1, 15));
  sim.step();
  EXPECT_THAT(shape(sim), ElementsAre(1, 15));
  EXPECT_TRUE(sim.last_plan()->step.rows[1].samples);
  sim.step();
  EXPECT_THAT(shape(sim), ElementsAre(1, 1, 9));
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, WithoutChunksAPromptWaitsForTheWholeBudget) {
  SimOptions o = options();
  o.chunked = false;
  Sim sim(o);
  sim.add(request(iota_prompt(10)));
  sim.add(request(iota_prompt(8, 1)));
  sim.step();
  EXPECT_THAT(shape(sim), ElementsAre(10));
  sim.step();
  EXPECT_THAT(shape(sim), ElementsAre(1, 8));
  EXPECT_EQ(sim.add(request(iota_prompt(16, 2))), 0u) << "prompt and one token must fit into one step";
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, ServesByPriorityThenArrival) {
  SimOptions o = options();
  o.fake.info.num_slots = 1;
  Sim sim(o);
  std::vector<uint64_t> ids;
  for (int priority : {0, 5, 0, -2, -2}) {
    EngineRequest r = request(iota_prompt(6, priority + 9), 2);
    r.priority = priority;
    ids.push_back(sim.add(r));
  }
  sim.run();
  EXPECT_THAT(sim.schedule_order(), ElementsAre(ids[3], ids[4], ids[0], ids[2], ids[1]));
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, SamePromptHitsAllFullBlocksButNeverItsLastToken) {
  Sim sim(options());  // block 4
  uint64_t first = sim.add(request(iota_prompt(12)));
  sim.run();
  uint64_t second = sim.add(request(iota_prompt(12)));
  uint64_t longer = sim.add(request(iota_prompt(13)));
  sim.run();
  EXPECT_EQ(sim.sequence(first).cached_tokens, 0);
  EXPECT_EQ(sim.sequence(second).cached_tokens, 8);
  EXPECT_EQ(sim.sequence(longer).cached_tokens, 12);
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, PrefixesAreSharedOnlyBetweenEqualSalts) {
  SimOptions o = options();
  o.fake.info.touched_first = false;
  Sim sim(o);
  auto salted = [&](const char* salt) {
    EngineRequest r = request(iota_prompt(12));
    r.cache_salt = salt;
    uint64_t id = sim.add(r);
    sim.run();
    return sim.sequence(id).cached_tokens;
  };
  EXPECT_EQ(salted(""), 0);
  EXPECT_EQ(salted("a"), 0);
  EXPECT_EQ(salted("b"), 0);
  EXPECT_EQ(salted("a"), 8);
  EXPECT_EQ(salted(""), 8);
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, NothingIsSharedWhenPrefixCachingIsOff) {
  SimOptions o = options();
  o.prefix_caching = false;
  Sim sim(o);
  sim.add(request(iota_prompt(12)));
  sim.run();
  uint64_t second = sim.add(request(iota_prompt(12)));
  sim.run();
  EXPECT_EQ(sim.sequence(second).cached_tokens, 0);
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, GeneratedTokensAreCachedForTheNextTurn) {
  Sim sim(options());
  uint64_t first = sim.add(request(iota_prompt(6), 11));
  sim.run();
  std::vector<int32_t> next = iota_prompt(6);
  auto& output = sim.sequence(first).output;
  next.insert(next.end(), output.begin(), output.end());
  next.insert(next.end(), {1, 2, 3});
  uint64_t second = sim.add(request(next));
  sim.run();
  EXPECT_EQ(sim.sequence(second).cached_tokens, 16)
      << "17 tokens are known, the last one's KV was never needed";
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, PreemptsTheLatestOfLowestPriorityAndLosesNothing) {
  SimOptions o = options();
  o.fake.info.num_blocks = 12;
  Sim sim(o);
  uint64_t oldest = sim.add(request(iota_prompt(8), 24));
  uint64_t latest = sim.add(request(iota_prompt(8, 20), 24));
  EngineRequest urgent = request(iota_prompt(8, 30), 24);
  urgent.priority = -1;
  uint64_t first = sim.add(urgent);
  sim.run();
  EXPECT_EQ(sim.sequence(first).preemptions, 0);
  EXPECT_GT(sim.sequence(latest).preemptions, 0);
  EXPECT_LE(sim.sequence(oldest).preemptions, sim.sequence(latest).preemptions);
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, ASequenceThatOutgrowsTheWholePoolEndsAtItsEnd) {
  SimOptions o = options();
  o.fake.info.num_blocks = 5;  // 20 positions, the context would be 200
  Sim sim(o);
  EXPECT_EQ(sim.scheduler().max_len(), 20);
  EXPECT_EQ(sim.add(request(iota_prompt(20))), 0u);
  uint64_t id = sim.add(request(iota_prompt(19), 100));
  sim.run();
  EXPECT_EQ(sim.sequence(id).output.size(), 1u);
  EXPECT_EQ(sim.sequence(id).finish, FinishReason::kLength);
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, CancelInMidPrefillKeepsTheComputedBlocksCached) {
  Sim sim(options());
  uint64_t first = sim.add(request(iota_prompt(40)));
  sim.step();  // 16 of 40 tokens
  sim.cancel(first);
  EXPECT_EQ(blocks_in_use(sim), 0);
  EXPECT_EQ(sim.sequence(first).finish, FinishReason::kCancelled);
  uint64_t second = sim.add(request(iota_prompt(40)));
  sim.run();
  EXPECT_EQ(sim.sequence(second).cached_tokens, 16);
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, CancelWithRowsInFlightFreesAtTheirCommit) {
  SimOptions o = options();
  o.fake.info.max_in_flight = 2;
  Sim sim(o);
  uint64_t id = sim.add(request(iota_prompt(40)));
  ASSERT_TRUE(sim.launch());
  ASSERT_TRUE(sim.launch());
  sim.cancel(id);
  EXPECT_EQ(sim.sequence(id).released, -1);
  EXPECT_EQ(blocks_in_use(sim), 8);
  sim.commit();
  EXPECT_EQ(blocks_in_use(sim), 8);
  sim.commit();
  EXPECT_EQ(sim.sequence(id).released, 8);
  EXPECT_EQ(blocks_in_use(sim), 0);
  uint64_t again = sim.add(request(iota_prompt(40)));
  sim.run();
  EXPECT_EQ(sim.sequence(again).cached_tokens, 32) << "what was in flight is computed and cached";
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, PlansInFlightTakeTheTokenFromTheSlot) {
  SimOptions o = options();
  o.fake.info.max_in_flight = 3;
  Sim sim(o);
  sim.add(request(iota_prompt(6), 3));
  ASSERT_TRUE(sim.launch());
  ASSERT_TRUE(sim.launch());
  const StepRow& row = sim.last_plan()->step.rows[0];
  EXPECT_THAT(row.tokens, ElementsAre(kTokenFromSlot));
  EXPECT_EQ(row.context_len, 6);
  EXPECT_EQ(row.sampling.position, 7);
  ASSERT_TRUE(sim.launch());
  EXPECT_FALSE(sim.launch());
  sim.commit();
  EXPECT_FALSE(sim.launch()) << "max_tokens is reached by what is in flight";
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
}

SimOptions stages(int n, int budget) {
  SimOptions o = options();
  o.fake.info.max_in_flight = o.fake.info.stages = n;
  o.fake.info.num_blocks = 400;
  o.budget = budget;
  return o;
}

TEST(Scheduler, StagesGetStepsOfOtherSequencesEachWithItsShare) {
  Sim sim(stages(3, 256));
  for (int i = 0; i < 7; ++i) sim.add(request(iota_prompt(5, i), 12));
  while (sim.sequence(7).output.empty()) sim.step();
  std::set<uint64_t> seen;
  for (int i = 0; i < 3; ++i) {
    while (sim.launch()) {
    }
    EXPECT_EQ(sim.scheduler().in_flight(), 3) << "no stage is without a step";
    const auto counts = shape(sim);
    EXPECT_LE(counts.size(), 3u) << "7 sequences in 3 steps";
    for (const StepRow& row : sim.last_plan()->step.rows) EXPECT_NE(row.tokens[0], kTokenFromSlot);
    for (const PlannedRow& row : sim.last_plan()->rows) {
      EXPECT_EQ(row.sequence->samples_in_flight, 1) << "in one step at a time";
      seen.insert(row.sequence->id);
    }
    sim.commit();
  }
  EXPECT_GE(seen.size(), 6u);
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, ALongPromptPassesStagesInChunksThatFollowEachOther) {
  SimOptions o = stages(2, 1024);
  o.fake.info.max_model_len = 1000;
  Sim sim(o);
  sim.add(request(iota_prompt(600), 2));
  ASSERT_TRUE(sim.launch());
  EXPECT_THAT(shape(sim), ElementsAre(150)) << "a quarter: two for each stage";
  ASSERT_TRUE(sim.launch()) << "the next chunk need not wait for the first one";
  EXPECT_EQ(sim.last_plan()->rows[0].start, 150);
  EXPECT_FALSE(sim.launch());
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
  o.chunked = false;
  Sim whole(o);
  whole.add(request(iota_prompt(600), 2));
  ASSERT_TRUE(whole.launch());
  EXPECT_THAT(shape(whole), ElementsAre(600));
  whole.run();
  EXPECT_EQ(whole.verdict(), "");
}

TEST(Scheduler, ShortPromptsAreNotCutForStages) {
  Sim sim(stages(2, 1024));
  sim.add(request(iota_prompt(50), 3));
  ASSERT_TRUE(sim.launch());
  EXPECT_THAT(shape(sim), ElementsAre(50));
  EXPECT_FALSE(sim.launch()) << "its next token waits for this one";
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, BlocksAndSlotOfAFinishedRowOutliveItsStepsInFlight) {
  SimOptions o = options();
  o.fake.info.max_in_flight = 2;
  o.fake.info.num_slots = 1;
  EngineRequest r = request(iota_prompt(6), 20);
  r.sampling.stop_token_ids = {oracle(o.fake.info, {r.prompt, r.sampling, 3, {}, 200}).tokens[0]};
  Sim sim(o);
  uint64_t id = sim.add(r);
  sim.add(request(iota_prompt(6, 9)));
  ASSERT_TRUE(sim.launch());
  ASSERT_TRUE(sim.launch());
  sim.commit();  // the stop token; one row is still in flight
  EXPECT_EQ(sim.sequence(id).finish, FinishReason::kStop);
  EXPECT_EQ(sim.sequence(id).released, -1);
  EXPECT_FALSE(sim.launch()) << "the only slot is still in use";
  sim.commit();
  EXPECT_EQ(sim.sequence(id).released, 2);
  EXPECT_EQ(sim.sequence(id).output.size(), 1u) << "the row in flight gave nothing";
  EXPECT_TRUE(sim.launch());
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, ChoicesShareOnePrefill) {
  SimOptions o = options();
  o.budget = 64;
  Sim sim(o);
  EngineRequest r = request(iota_prompt(33), 5);
  r.sampling.n = 4;
  uint64_t id = sim.add(r);
  sim.step();
  EXPECT_THAT(shape(sim), ElementsAre(33)) << "the others wait for the first one's prompt";
  sim.run();
  for (int choice = 1; choice < 4; ++choice) {
    EXPECT_EQ(sim.sequence(id, choice).cached_tokens, 32);
    EXPECT_NE(sim.sequence(id, choice).output, sim.sequence(id, 0).output) << "each has its own seed";
  }
  EXPECT_EQ(sim.runner().computed_tokens(), 33 + 3 + 4 * 4);
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, ChoicesGoOnWhenTheFirstIsCancelledInItsPrefill) {
  Sim sim(options());
  EngineRequest r = request(iota_prompt(33), 5);
  r.sampling.n = 2;
  uint64_t id = sim.add(r);
  sim.step();
  sim.scheduler().end_sequence(sequence_id(id, 0), FinishReason::kCancelled);
  sim.run();
  EXPECT_EQ(sim.sequence(id, 0).finish, FinishReason::kCancelled);
  EXPECT_EQ(sim.sequence(id, 1).finish, FinishReason::kLength);
  EXPECT_EQ(sim.sequence(id, 1).cached_tokens, 16);
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, StopsAtEndIdsAndStopIds) {
  SimOptions o = options();
  EngineRequest r = request(iota_prompt(7), 30);
  std::vector<int32_t> free_run = oracle(o.fake.info, {r.prompt, r.sampling, 3, {}, 200}).tokens;
  o.end_ids = {free_run[4]};
  Sim sim(o);
  uint64_t ends = sim.add(r);
  r.sampling.ignore_eos = true;
  uint64_t ignores = sim.add(r);
  r.sampling.stop_token_ids = {free_run[2]};
  uint64_t stops = sim.add(r);
  sim.run();
  EXPECT_LE(sim.sequence(ends).output.size(), 5u);
  EXPECT_EQ(sim.sequence(ends).output.back(), free_run[4]) << "the token that ended it comes last";
  EXPECT_EQ(sim.sequence(ignores).output.size(), 30u);
  EXPECT_LE(sim.sequence(stops).output.size(), 3u);
  EXPECT_EQ(sim.sequence(stops).finish, FinishReason::kStop);
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, MinTokensBansStopsUntilThen) {
  SimOptions o = options();
  o.fake.info.vocab_size = 2;
  o.fake.info.max_accepted = 4;
  o.end_ids = {0};
  Sim sim(o);
  EngineRequest r = request({1, 1, 0}, 30);
  r.sampling.min_tokens = 10;
  uint64_t id = sim.add(r);
  sim.run();
  auto& output = sim.sequence(id).output;
  ASSERT_GE(output.size(), 11u);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(output[i], 1) << i;
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, PenaltiesSeeEveryTokenEvenWithPlansInFlight) {
  SimOptions o = options();
  o.fake.info.max_in_flight = 3;
  Sim sim(o);
  EngineRequest r = request(iota_prompt(5), 12);
  r.sampling.frequency_penalty = 0.5f;
  sim.add(r);
  sim.add(request(iota_prompt(5, 8), 12));
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
  EXPECT_GT(sim.runner().max_in_flight_seen(), 1);
}

// Where the runner knows the tokens in flight, neither penalties nor banned stop ids hold a row back.
TEST(Scheduler, ARunnerThatTracksTokensNeedsNoCommit) {
  for (const bool tracks : {false, true}) {
    SimOptions o = options();
    o.fake.info.max_in_flight = 3;
    o.fake.info.tracks_tokens = tracks;
    o.fake.info.vocab_size = 3;
    o.end_ids = {0};
    Sim sim(o);
    EngineRequest penalties = request({1, 2, 2, 1, 1}, 20), bans = request({2, 1, 1}, 30);
    penalties.sampling.frequency_penalty = 0.5f;
    penalties.sampling.ignore_eos = true;
    bans.sampling.min_tokens = 17;
    const uint64_t first = sim.add(penalties), second = sim.add(bans);
    for (int launched = 0; launched < 3; ++launched) EXPECT_EQ(sim.launch(), tracks || launched == 0);
    sim.run();
    EXPECT_EQ(sim.sequence(first).output.size(), 20u);
    ASSERT_GE(sim.sequence(second).output.size(), 17u);
    for (int i = 0; i < 17; ++i) EXPECT_NE(sim.sequence(second).output[i], 0) << i;
    EXPECT_EQ(sim.verdict(), "");
  }
}

// With drafts a planned position is an upper bound: the ban has to wait, penalties need not.
TEST(Scheduler, TrackedTokensWithDrafts) {
  SimOptions o = options();
  o.fake.info.max_in_flight = 2;
  o.fake.info.max_accepted = 3;
  o.fake.info.tracks_tokens = true;
  o.fake.info.vocab_size = 3;
  o.end_ids = {0};
  Sim sim(o);
  EngineRequest penalties = request({1, 2, 2, 1, 1}, 20), bans = request({2, 1, 1}, 30);
  penalties.sampling.presence_penalty = 0.5f;
  bans.sampling.min_tokens = 17;
  sim.add(penalties);
  const uint64_t banned = sim.add(bans);
  EXPECT_TRUE(sim.launch());
  EXPECT_TRUE(sim.launch());
  ASSERT_EQ(sim.last_plan()->rows.size(), 1u);
  EXPECT_NE(sim.last_plan()->rows[0].sequence->id, sequence_id(banned, 0));
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, AcceptedDraftsBeyondTheEndAreDropped) {
  SimOptions o = options();
  o.fake.info.max_accepted = 4;
  o.fake.info.max_in_flight = 2;
  Sim sim(o);
  EngineRequest r = request(iota_prompt(5), 30);
  std::vector<int32_t> free_run = oracle(o.fake.info, {r.prompt, r.sampling, 3, {}, 200}).tokens;
  r.sampling.stop_token_ids = {free_run[6]};
  uint64_t id = sim.add(r);
  uint64_t other = sim.add(request(iota_prompt(5, 5), 7));
  sim.run();
  EXPECT_LE(sim.sequence(id).output.size(), 7u);
  EXPECT_EQ(sim.sequence(other).output.size(), 7u);
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, RowsThatAcceptNothingAreComputedAgain) {
  SimOptions o = options();
  o.fake.info.max_accepted = 3;
  o.fake.info.max_in_flight = 3;
  o.fake.reject_drafts = true;
  for (uint64_t seed = 1; seed < 20; ++seed) {
    o.fake.seed = seed;
    Sim sim(o);
    for (int i = 0; i < 4; ++i) sim.add(request(iota_prompt(4 + i, i), 20));
    sim.run();
    EXPECT_EQ(sim.verdict(), "");
  }
}

TEST(Scheduler, AfterARollbackWhatWasInFlightIsComputedAgain) {
  SimOptions o = options();
  o.fake.info.max_in_flight = 2;
  Sim sim(o);
  sim.add(request(iota_prompt(20), 9));
  sim.add(request(iota_prompt(4, 9), 9));
  for (int i = 0; i < 12; ++i) {
    sim.launch();
    sim.launch();
    if (i % 3 == 1) {
      sim.rollback();
    } else {
      sim.commit();
    }
    sim.scheduler().check_invariants();
  }
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, AModelWithTwoKvGroupsWorks) {
  SimOptions o = options();
  o.fake.info.groups = {full_group(), window_group(8)};
  o.fake.info.touched_first = false;
  Sim sim(o);
  uint64_t first = sim.add(request(iota_prompt(24), 30));
  int64_t most = 0;
  while (!sim.scheduler().empty()) {
    sim.step();
    sim.scheduler().check_invariants();
    most = std::max(most, blocks_in_use(sim));
  }
  // 53 positions: 14 blocks of the full group, and of the other at most those that 8 + 16 positions touch.
  EXPECT_LE(most, 14 + 7);
  EXPECT_EQ(sim.sequence(first).released, 14 + 3)
      << "behind the window the second group gave its blocks back";
  uint64_t second = sim.add(request(iota_prompt(24), 4));
  sim.run();
  EXPECT_EQ(sim.sequence(second).cached_tokens, 20) << "both groups hold what the next token looks back on";
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, AHitIsWhatAllGroupsHold) {
  SimOptions o = options();
  o.fake.info.groups = {full_group(), window_group(4)};
  o.fake.info.num_blocks = 20;
  Sim sim(o);
  sim.add(request(iota_prompt(16), 1));
  sim.run();
  // Takes blocks until some of the first request's are gone, then asks for the first prompt again.
  sim.add(request(iota_prompt(22, 25), 1));
  sim.run();
  uint64_t again = sim.add(request(iota_prompt(16), 3));
  sim.run();
  EXPECT_LT(sim.sequence(again).cached_tokens, 16);
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, UsedMemoryIsTakenBeforeMemoryThatWasNeverTouched) {
  for (bool touched_first : {true, false}) {
    SimOptions o = options();
    o.fake.info.touched_first = touched_first;
    Sim sim(o);
    std::set<int32_t> blocks;
    for (int i = 0; i < 6; ++i) {
      sim.add(request(iota_prompt(15, 7 * i), 2));
      ASSERT_TRUE(sim.launch());
      for (int32_t b : sim.last_plan()->step.rows[0].block_table[0]) blocks.insert(b);
      sim.run();
    }
    if (touched_first) {
      EXPECT_EQ(blocks.size(), 8u) << "an eighth of the pool, more than the 4 in use and half of them";
    } else {
      EXPECT_GT(blocks.size(), 15u) << "cached blocks are kept while others are free";
    }
    EXPECT_EQ(sim.verdict(), "");
  }
}

TEST(Scheduler, AfterMemoryRanOutStepsAreSmaller) {
  SimOptions o = options();
  o.budget = 32;
  Sim sim(o);
  sim.scheduler().shrink_budget();
  sim.add(request(iota_prompt(40)));
  sim.step();
  EXPECT_THAT(shape(sim), ElementsAre(16));
  for (int i = 0; i < 10; ++i) sim.scheduler().shrink_budget();
  sim.step();
  EXPECT_THAT(shape(sim), ElementsAre(8)) << "never below one token for each slot";
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
}

TEST(Scheduler, SeedGivesTheSameTokensWhateverElseRuns) {
  Sim alone(options());
  uint64_t a = alone.add(request(iota_prompt(9), 20));
  alone.run();
  Sim crowded(options());
  for (int i = 0; i < 3; ++i) crowded.add(request(iota_prompt(11, i), 17));
  uint64_t b = crowded.add(request(iota_prompt(9), 20));
  for (int i = 0; i < 3; ++i) crowded.add(request(iota_prompt(13, i), 17));
  crowded.run();
  EXPECT_EQ(alone.sequence(a).output, crowded.sequence(b).output);
}

}  // namespace
}  // namespace deepinfer::test
