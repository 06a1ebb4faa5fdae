// Random histories of the scheduler against a sequential oracle, with all invariants checked after every
// step. DEEPINFER_TEST_SEED=n reruns one history, DEEPINFER_TEST_HISTORIES=n runs that many.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "sim.h"

namespace deepinfer::test {
namespace {

class History {
 public:
  explicit History(uint64_t seed) : random_(seed), seed_(seed) {}

  // Empty when everything held.
  std::string run() {
    Sim sim(options());
    longest_ = static_cast<int>(sim.scheduler().max_len()) - 1;
    const int requests = pick(1, 10);
    const double arrival = chance(0.5) ? 0.9 : 0.2;
    std::vector<uint64_t> ids;
    int added = 0;
    for (int i = 0; i < 5000 && (added < requests || !sim.scheduler().empty()); ++i) {
      if (added < requests && chance(arrival)) {
        if (uint64_t id = sim.add(request()); id != 0) ids.push_back(id);
        ++added;
      }
      if (!ids.empty() && chance(cancel_rate_)) sim.cancel(ids[pick(0, static_cast<int>(ids.size()) - 1)]);
      if (chance(fault_rate_)) sim.rollback();
      while (chance(0.9) && sim.launch()) sim.scheduler().check_invariants();
      if (chance(0.9)) sim.commit();
      sim.scheduler().check_invariants();
      for (uint64_t id : ids) preemptions += sim.sequence(id).preemptions > 0 ? 1 : 0;
      if (chance(0.01) && sim.scheduler().empty()) sim.scheduler().reset_prefix_cache();
    }
    overlapped = sim.runner().max_in_flight_seen() > 1;
    drafts = sim.runner().drafts_seen();
    accepted = sim.runner().drafts_accepted();
    for (uint64_t id : ids) hits += sim.sequence(id).cached_tokens > 0 ? 1 : 0;
    return sim.verdict();
  }

  int64_t preemptions = 0, hits = 0, drafts = 0, accepted = 0;
  bool overlapped = false;

 private:
  int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool chance(double p) { return std::uniform_real_distribution<double>(0, 1)(random_) < p; }

  SimOptions options() {
    SimOptions o;
    ModelRunner::Info& info = o.fake.info;
    info = small_info();
    info.block_size = pick(1, 5);
    info.groups = {full_group()};
    if (chance(0.4)) info.groups.push_back(window_group(pick(1, 9)));
    if (chance(0.1)) info.groups.push_back(window_group(pick(1, 20)));
    if (chance(0.05)) info.groups = {window_group(pick(1, 9))};
    info.num_blocks = pick(2, 16) * static_cast<int>(info.groups.size());
    info.num_slots = pick(1, 6);
    info.vocab_size = pick(0, 1) == 0 ? 3 : 40;
    info.max_model_len = pick(8, 48);
    info.max_in_flight = pick(1, 3);
    info.stages = chance(0.3) ? info.max_in_flight : 1;
    info.max_accepted = chance(0.5) ? 1 : pick(2, 4);
    if (info.max_accepted == 1 && chance(0.7)) {
      info.logit_rows = info.num_slots + pick(0, 12);
      o.speculation = {.num_tokens = pick(0, 6), .lookup_min = pick(1, 2), .lookup_max = pick(2, 5)};
      if (chance(0.7)) info.vocab_size = 3;  // guesses are right now and then
    }
    info.touched_first = chance(0.5);
    info.tracks_tokens = chance(0.4) && info.groups[0].kind == KvGroupSpec::Kind::kFull;
    o.fake.late = chance(0.5);
    o.fake.reject_drafts = chance(0.5);
    o.fake.seed = seed_;
    o.chunked = chance(0.7);
    o.budget = o.chunked ? pick(1, 24) : pick(info.max_model_len / 2, info.max_model_len * 2);
    o.prefix_caching = chance(0.7);
    if (chance(0.5)) o.end_ids = {0};
    vocab_ = info.vocab_size;
    cancel_rate_ = chance(0.3) ? 0.05 : 0;
    fault_rate_ = chance(0.2) ? 0.05 : 0;
    return o;
  }

  EngineRequest request() {
    EngineRequest r;
    // Few different beginnings, so that prefixes are shared.
    int start = pick(0, 2), same = pick(0, 30);
    int length = pick(1, std::max(1, chance(0.7) ? longest_ / 2 : longest_ + 1));
    for (int i = 0; i < length; ++i)
      r.prompt.push_back(i < same ? (start + i) % vocab_ : pick(0, vocab_ - 1));
    SamplingParams& s = r.sampling;
    s.n = chance(0.2) ? pick(2, 4) : 1;
    s.seed = pick(0, 1000);
    s.max_tokens = pick(1, 30);
    if (chance(0.2)) {
      s.prompt_logprobs = pick(0, 3);
      if (chance(0.4)) s.max_tokens = 0;
    }
    if (chance(0.3)) s.stop_token_ids = {1};
    if (chance(0.3)) s.min_tokens = pick(0, s.max_tokens);
    s.ignore_eos = chance(0.3);
    if (chance(0.2)) s.repetition_penalty = 1.5f;
    if (chance(0.3)) s.num_speculative_tokens = pick(0, 5);
    if (chance(0.3)) shape(s);
    r.priority = chance(0.3) ? pick(-1, 1) : 0;
    if (chance(0.2)) r.cache_salt = "salt";
    return r;
  }

  // What the host has to know the tokens for, and lists of the sampler. Token 2 is always left.
  void shape(SamplingParams& s) {
    const auto sequences = [&](int most, int longest) {
      std::vector<std::vector<int32_t>> all(pick(0, most));
      for (auto& one : all) {
        one.resize(pick(1, longest));
        for (int32_t& id : one) id = pick(0, vocab_ - 1);
      }
      return all;
    };
    if (chance(0.4)) s.mirostat = pick(1, 2);
    if (chance(0.4)) {
      s.dry_multiplier = 0.8f;
      s.dry_allowed_length = pick(1, 3);
      s.dry_penalty_last_n = chance(0.3) ? pick(0, 20) : -1;
      s.dry_breakers = sequences(3, 3);
    }
    if (chance(0.5)) s.bad_words = sequences(6, 3);
    std::erase_if(s.bad_words, [](const auto& word) { return word.size() == 1 && word[0] == 2; });
    if (chance(0.3)) {
      s.allowed_token_ids = {2};
      for (int32_t id = 0; id < vocab_; ++id)
        if (id != 2 && chance(0.5)) s.allowed_token_ids.push_back(id);
    }
  }

  std::mt19937_64 random_;
  uint64_t seed_;
  int vocab_ = 0, longest_ = 0;
  double cancel_rate_ = 0, fault_rate_ = 0;
};

uint64_t environment(const char* name, uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

TEST(RandomHistories, OutputsEqualTheOracle) {
  const uint64_t one = environment("DEEPINFER_TEST_SEED", 0);
  const uint64_t count = one != 0 ? 1 : environment("DEEPINFER_TEST_HISTORIES", 16000);
  int64_t preempted = 0, hits = 0, overlapped = 0, drafted = 0, accepted = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t seed = one != 0 ? one : 1000 + i;
    History history(seed);
    std::string wrong;
    try {
      wrong = history.run();
    } catch (const std::exception& e) {
      wrong = e.what();
    }
    ASSERT_EQ(wrong, "") << "rerun with DEEPINFER_TEST_SEED=" << seed;
    preempted += history.preemptions > 0;
    hits += history.hits > 0;
    overlapped += history.overlapped;
    drafted += history.drafts > 0;
    accepted += history.accepted > 0;
  }
  printf(
      "%llu histories from seed 1000: %lld with preemptions, %lld with prefix hits, %lld with plans in "
      "flight, %lld with drafts, %lld with drafts that were right\n",
      static_cast<unsigned long long>(count), static_cast<long long>(preempted), static_cast<long long>(hits),
      static_cast<long long>(overlapped), static_cast<long long>(drafted), static_cast<long long>(accepted));
  if (one != 0) return;
  // The histories must reach what they are there for.
  EXPECT_GT(preempted, static_cast<int64_t>(count / 20));
  EXPECT_GT(hits, static_cast<int64_t>(count / 20));
  EXPECT_GT(overlapped, static_cast<int64_t>(count / 20));
  EXPECT_GT(drafted, static_cast<int64_t>(count / 20));
  EXPECT_GT(accepted, static_cast<int64_t>(count / 20));
}

}  // namespace
}  // namespace deepinfer::test
