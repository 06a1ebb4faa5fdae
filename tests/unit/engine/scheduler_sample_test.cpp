// What of a sequence's history the scheduler keeps for its sampler: mirostat's mu, DRY, bad words.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "engine/scheduler.h"
#include "sim.h"
#include "tensor/step_batch.h"

namespace deepinfer::test {
namespace {

SimOptions options(bool tracks_tokens = false) {
  SimOptions o;
  o.fake.info = small_info();
  o.fake.info.max_in_flight = 2;
  o.fake.info.tracks_tokens = tracks_tokens;
  o.fake.reject_drafts = false;
  return o;
}

EngineRequest request(int length, SamplingParams sampling, int start = 0) {
  sampling.max_tokens = sampling.max_tokens == 16 ? 40 : sampling.max_tokens;
  sampling.seed = 3;
  return {.prompt = iota_prompt(length, start), .sampling = std::move(sampling)};
}

SamplingParams stateful() {
  SamplingParams p{.mirostat = 2, .dry_multiplier = 0.8f, .dry_allowed_length = 1};
  p.bad_words = {{4, 5}, {7}};
  return p;
}

// A row whose sampler needs the tokens before is planned when they are known; others run ahead meanwhile.
TEST(SchedulerSample, WaitsForTheTokensBefore) {
  for (const bool tracks : {false, true}) {
    Sim sim(options(tracks));
    const uint64_t waits = sim.add(request(5, stateful()));
    sim.add(request(5, {}, 9));
    while (sim.launch()) {
      for (const PlannedRow& row : sim.last_plan()->rows) {
        EXPECT_FALSE(row.from_slot && row.sequence->request == waits);
        if (row.sequence->request == waits) EXPECT_EQ(row.room, 1);
      }
    }
    sim.run();
    EXPECT_EQ(sim.verdict(), "");
    EXPECT_EQ(sim.runner().max_in_flight_seen(), 2);
  }
}

TEST(SchedulerSample, PreemptionKeepsTheState) {
  SimOptions o = options();
  o.fake.info.num_blocks = 14;
  Sim sim(o);
  std::vector<uint64_t> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(sim.add(request(6, stateful(), i)));
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
  int preemptions = 0;
  for (uint64_t id : ids) preemptions += sim.sequence(id).preemptions;
  EXPECT_GT(preemptions, 0);
}

TEST(SchedulerSample, ARollbackOrARejectedRowLeavesTheStateAsItWas) {
  SimOptions o = options();
  o.fake.reject_drafts = true;  // a row may accept nothing
  Sim sim(o);
  sim.add(request(6, stateful()));
  for (int i = 0; !sim.scheduler().empty(); ++i) {
    sim.launch();
    if (i % 3 == 0) sim.rollback();
    sim.commit();
  }
  EXPECT_EQ(sim.verdict(), "");
}

TEST(SchedulerSample, ChoicesHaveAStateEach) {
  Sim sim(options());
  SamplingParams p = stateful();
  p.n = 3;
  const uint64_t id = sim.add(request(9, p));
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
  EXPECT_NE(sim.sequence(id, 0).output, sim.sequence(id, 1).output);
}

bool holds(const std::vector<int32_t>& output, const std::vector<int32_t>& word) {
  return std::search(output.begin(), output.end(), word.begin(), word.end()) != output.end();
}

TEST(SchedulerSample, BadWordsNeverAppear) {
  SimOptions o = options(true);
  o.fake.info.vocab_size = 4;
  int without = 0;
  for (int start = 0; start < 20; ++start) {
    const std::vector<std::vector<int32_t>> words = {{0, 1}, {2, 2, 3}, {3}};
    Sim sim(o);
    const EngineRequest free = {.prompt = iota_prompt(3 + start, start, 4),
                                .sampling = {.seed = start, .max_tokens = 60}};
    EngineRequest banned = free;
    banned.sampling.bad_words = words;
    const uint64_t a = sim.add(free), b = sim.add(banned);
    sim.run();
    ASSERT_EQ(sim.verdict(), "");
    EXPECT_EQ(sim.sequence(b).output.size(), 60u);
    for (const auto& word : words) {
      without += holds(sim.sequence(a).output, word);
      EXPECT_FALSE(holds(sim.sequence(b).output, word));
    }
  }
  EXPECT_GT(without, 30) << "words that do not come anyway test nothing";
}

// As in vLLM: the prompt's end is no part of a word.
TEST(SchedulerSample, AWordThatBeganInThePromptIsNotSeen) {
  SimOptions o = options();
  o.fake.info.vocab_size = 2;
  Sim sim(o);
  SamplingParams p{.max_tokens = 1};
  p.bad_words = {{1, 0}, {1, 1}};
  sim.add({.prompt = {1, 1}, .sampling = p});
  ASSERT_TRUE(sim.launch());
  EXPECT_TRUE(sim.last_plan()->step.rows[0].sampling.banned.empty());
  sim.run();
}

TEST(SchedulerSample, OnlyAllowedTokensComeAndOneIsAlwaysLeft) {
  SimOptions o = options();
  o.end_ids = {6};
  Sim sim(o);
  SamplingParams p{.max_tokens = 20, .min_tokens = 10};
  p.allowed_token_ids = {6, 8};
  p.bad_words = {{8, 8}, {8, 6}};  // after an 8 nothing is left but what is least bad
  const uint64_t id = sim.add(request(4, p));
  SamplingParams end{.max_tokens = 20, .min_tokens = 10};
  end.allowed_token_ids = {6};
  const uint64_t only_end = sim.add(request(4, end));
  sim.run();
  EXPECT_EQ(sim.verdict(), "");
  for (int32_t token : sim.sequence(id).output) EXPECT_TRUE(token == 6 || token == 8);
  // The end of sequence, the only token that is allowed, counts as one from min_tokens on.
  EXPECT_EQ(sim.sequence(only_end).output, std::vector<int32_t>(11, 6));
  EXPECT_EQ(sim.sequence(only_end).finish, FinishReason::kStop);
}

}  // namespace
}  // namespace deepinfer::test
