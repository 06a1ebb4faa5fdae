// Ranks that only hear of steps from rank 0: what they are told, and what becomes of the group when one
// fails.
#include "engine/rank_leader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <thread>

#include "base/check.h"
#include "comm/local.h"
#include "engine/parallel_runner.h"
#include "model/random_checkpoint.h"
#include "unit/comm/ranks.h"

namespace deepinfer {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr int kVocab = 96;
constexpr StepDecoder::Limits kLimits{
    .slots = 8, .blocks = 64, .groups = 1, .vocab = kVocab, .max_model_len = 128};

// A step of random rows, and what it stands on.
struct RandomStep {
  explicit RandomStep(std::mt19937& random) {
    const auto below = [&](unsigned n) { return static_cast<int>(random() % n); };
    step.id = (uint64_t{random()} << 32) | random();
    const int rows = below(5);
    tokens.resize(rows);
    tables.resize(rows);
    for (int i = 0; i < rows; ++i) {
      tokens[i].resize(1 + below(9));
      for (int32_t& t : tokens[i]) t = below(kVocab);
      if (tokens[i].size() == 1 && below(2)) tokens[i][0] = kTokenFromSlot;
      tables[i].resize(below(8));
      for (int32_t& b : tables[i]) b = below(65) - 1;
      StepRow row{.slot = i, .context_len = below(100)};
      row.tokens = tokens[i];
      row.block_table = std::span(&tables[i], 1);
      row.samples = below(2) != 0;
      row.targets = std::span(tokens[i]).first(below(static_cast<unsigned>(tokens[i].size()) + 1));
      step.rows.push_back(row);
    }
    for (int i = below(3); i > 0; --i) step.copies.push_back({below(64), below(64)});
  }
  std::vector<std::vector<int32_t>> tokens, tables;
  Step step;
};

TEST(StepWire, BringsWhatForwardNeeds) {
  std::mt19937 random(17);
  std::vector<int32_t> last(8);
  for (size_t i = 0; i < last.size(); ++i) last[i] = static_cast<int32_t>(i) + 20;
  const SlotTable slots{make_tensor(last.data(), DType::kI32, {8})};
  StepEncoder encoder;
  StepDecoder decoder(kLimits);
  for (int i = 0; i < 500; ++i) {
    const RandomStep want(random);
    const auto got = decoder.decode(encoder.encode(want.step, slots));
    ASSERT_TRUE(got) << got.error().message;
    const Step& s = **got;
    ASSERT_EQ(s.id, want.step.id);
    ASSERT_EQ(s.rows.size(), want.step.rows.size());
    ASSERT_EQ(s.copies.size(), want.step.copies.size());
    for (size_t r = 0; r < s.rows.size(); ++r) {
      const StepRow &a = want.step.rows[r], &b = s.rows[r];
      ASSERT_EQ(a.slot, b.slot);
      ASSERT_EQ(a.context_len, b.context_len);
      ASSERT_EQ(a.samples, b.samples);
      ASSERT_EQ(a.targets.size(), b.targets.size());
      std::vector<int32_t> tokens(a.tokens.begin(), a.tokens.end());
      if (tokens[0] == kTokenFromSlot) tokens[0] = a.slot + 20;
      ASSERT_THAT(b.tokens, ElementsAreArray(tokens));
      ASSERT_EQ(a.block_table[0], b.block_table[0]);
    }
    for (size_t c = 0; c < s.copies.size(); ++c) ASSERT_EQ(s.copies[c].dst, want.step.copies[c].dst);
  }
}

TEST(StepWire, RefusesWhatIsCutOrWrong) {
  std::mt19937 random(18);
  std::vector<int32_t> last(8);
  const SlotTable slots{make_tensor(last.data(), DType::kI32, {8})};
  StepEncoder encoder;
  StepDecoder decoder(kLimits);
  int refused = 0;
  for (int i = 0; i < 300; ++i) {
    const RandomStep s(random);
    const auto good = encoder.encode(s.step, slots);
    std::vector<int32_t> numbers(good.begin(), good.end());
    for (size_t n = 0; n < numbers.size(); ++n)
      ASSERT_FALSE(decoder.decode(std::span(numbers).first(n))) << n << " of " << numbers.size();
    numbers.push_back(0);
    ASSERT_FALSE(decoder.decode(numbers));
    numbers.pop_back();
    for (int change = 0; change < 20; ++change) {
      std::vector<int32_t> other = numbers;
      other[random() % other.size()] = static_cast<int32_t>(random());
      refused += !decoder.decode(other).ok();
    }
  }
  EXPECT_GT(refused, 4000) << "of 6000; a changed id or length can be right";
}

ModelConfig shape() {
  return {.arch = "LlamaForCausalLM",
          .vocab_size = kVocab,
          .hidden = 96,
          .layers = 2,
          .heads = 3,
          .kv_heads = 1,
          .head_dim = 32,
          .ffn = 160,
          .max_position = 512};
}

struct Form {
  const char* name;
  test::MakeRanks make;
};

// A group of two: rank 1 is a thread that follows.
class Group : public testing::TestWithParam<Form> {
 protected:
  // Long where no test waits for its end: machines are busy.
  static constexpr std::chrono::milliseconds kLong = 30s, kShort = 2s;

  // `before` runs ahead of each forward of rank 1.
  void SetUp() override {
    if (GetParam().name == std::string("Gloo") && !has_gloo())
      GTEST_SKIP() << "this build has no Gloo (libgloo-dev)";
  }
  void start(std::chrono::milliseconds timeout, const std::function<void()>& before = {}) {
    auto checkpoint = random_checkpoint(shape(), "three", 4);
    ASSERT_TRUE(checkpoint);
    checkpoint_ = std::move(*checkpoint);
    comms_ = GetParam().make(2, timeout);
    ASSERT_TRUE(comms_[0] && comms_[1]);
    auto second = runner(*comms_[1], before);
    auto first = runner(*comms_[0], {});
    ASSERT_TRUE(first && second);
    follower_ = std::thread([this, r = std::move(second)] {
      try {
        follow_leader(*comms_[1], *r);
        end_ = "told to";
      } catch (const std::exception& e) {
        end_ = e.what();
      }
    });
    leader_ = std::make_unique<RankLeader>(std::move(comms_[0]), std::move(first), timeout);
  }
  void TearDown() override {
    leader_.reset();
    if (follower_.joinable()) follower_.join();
  }
  std::string end_of_follower() {
    follower_.join();
    return end_;
  }

  std::vector<float> step(std::vector<int32_t> tokens, bool from_slot = false) {
    if (from_slot) tokens = {kTokenFromSlot};
    Step s{.id = ++id_};
    StepRow row{.sequence = 1, .slot = 2, .context_len = length_};
    row.tokens = tokens;
    row.block_table = std::span(&table_, 1);
    row.samples = true;
    row.sampling.temperature = 0;
    s.rows.push_back(row);
    length_ += static_cast<int>(tokens.size());
    leader_->launch_forward(s);
    const float* logits = leader_->logits().as<float>();
    std::vector<float> out(logits, logits + kVocab);
    leader_->launch_sample(s);
    token_ = leader_->wait(s.id).accepted.at(0).at(0).id;
    return out;
  }

  // The first step of a group of as many ranks that are threads.
  std::vector<float> logits_of_threads(const std::vector<int32_t>& tokens) {
    auto models = make_rank_models(checkpoint_, 2, 2, kLong);
    if (!models) return {};
    auto made = ParallelRunner::create(std::move(*models), options(nullptr), kLong);
    if (!made) return {};
    StepRow row{.slot = 2, .tokens = tokens, .block_table = std::span(&table_, 1), .samples = true};
    Step s{.id = 1, .rows = {row}};
    (*made)->launch_forward(s);
    const float* logits = (*made)->logits().as<float>();
    return {logits, logits + kVocab};
  }

  void expect_lost(const char* text) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 2; ++i) {
      try {
        step({5});
        FAIL() << "the step succeeded";
      } catch (const DeviceLost& e) {
        EXPECT_THAT(e.what(), HasSubstr(text));
      }
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, kLong / 2);
  }

  int length_ = 0;
  int32_t token_ = 0;
  std::unique_ptr<RankLeader> leader_;

 private:
  class Prepared;
  static CpuRunnerOptions options(Communicator* comm) {
    return {.max_num_seqs = 4,
            .max_num_batched_tokens = 32,
            .max_model_len = 64,
            .num_blocks = 16,
            .kv_dtype = DType::kF32,
            .comm = comm};
  }
  std::unique_ptr<CpuRunner> runner(Communicator& comm, const std::function<void()>& before);

  Checkpoint checkpoint_;
  std::vector<std::unique_ptr<Communicator>> comms_;
  std::thread follower_;
  std::string end_;
  std::vector<int32_t> table_ = {3, 1, 7};
  uint64_t id_ = 0;
};

class Group::Prepared final : public Model {
 public:
  Prepared(std::unique_ptr<Model> model, std::function<void()> before)
      : model_(std::move(model)), before_(std::move(before)) {}
  const ModelConfig& config() const override { return model_->config(); }
  std::vector<KvGroupSpec> kv_groups(DType t) const override { return model_->kv_groups(t); }
  void forward(Context& context, const StepBatch& batch, const KvCache& kv, const SlotTable& slots,
               const StageIO& io) override {
    if (before_) before_();
    model_->forward(context, batch, kv, slots, io);
  }
  void head(Context& context, const StepBatch& batch, const Tensor& hidden, const Tensor& logits) override {
    model_->head(context, batch, hidden, logits);
  }
  size_t scratch_bytes(const Context& context, int64_t tokens, int64_t rows) const override {
    return model_->scratch_bytes(context, tokens, rows);
  }

 private:
  std::unique_ptr<Model> model_;
  std::function<void()> before_;
};

std::unique_ptr<CpuRunner> Group::runner(Communicator& comm, const std::function<void()>& before) {
  auto pool = std::make_unique<ThreadPool>(1);
  Context context{.pool = pool.get(), .comm = &comm};
  auto model = make_model(checkpoint_.config, checkpoint_.weights, context);
  if (!model) return nullptr;
  auto made = CpuRunner::create(std::move(pool), std::make_unique<Prepared>(std::move(*model), before),
                                options(&comm));
  return made ? std::move(*made) : nullptr;
}

TEST_P(Group, StepsThatContinueFromSlotsHaveTheBitsOfThoseWithIds) {
  start(kLong);
  EXPECT_EQ(step({1, 2, 3, 4, 5}), logits_of_threads({1, 2, 3, 4, 5}));
  std::vector<int32_t> greedy;
  std::vector<std::vector<float>> from_slots;
  for (int i = 0; i < 6; ++i) {
    greedy.push_back(token_);
    from_slots.push_back(step({0}, true));
  }
  length_ = 0;
  step({1, 2, 3, 4, 5});
  for (int i = 0; i < 6; ++i) EXPECT_EQ(step({greedy[i]}), from_slots[i]) << i;
  leader_.reset();
  EXPECT_EQ(end_of_follower(), "told to");
}

TEST_P(Group, NothingToDoForLongerThanTheTimeoutIsNoFault) {
  start(kShort);
  const auto want = step({1, 2, 3});
  std::this_thread::sleep_for(2 * kShort);
  length_ = 0;
  EXPECT_EQ(step({1, 2, 3}), want);
  EXPECT_EQ(leader_->release_unused() > 0, true);
  length_ = 0;
  EXPECT_EQ(step({1, 2, 3}), want);
}

TEST_P(Group, ARankThatFailsIsTheEndOfTheGroup) {
  int calls = 0;
  start(kLong, [&calls] {
    if (++calls == 3) throw std::runtime_error("a rank is on fire");
  });
  step({1, 2, 3});
  step({4});
  expect_lost("a rank is on fire");
  EXPECT_THAT(end_of_follower(), HasSubstr("a rank is on fire"));
}

TEST_P(Group, ARankThatStallsIsTheEndOfTheGroupInTime) {
  int calls = 0;
  start(kShort, [&calls] {
    if (++calls == 3) std::this_thread::sleep_for(3 * kShort);
  });
  step({1, 2, 3});
  step({4});
  expect_lost("rank 1");
  EXPECT_THAT(end_of_follower(), testing::Not(testing::AnyOf("", "told to")));
}

TEST_P(Group, WhatRankZeroItselfThrowsEndsAllToo) {
  start(kLong);
  step({1, 2, 3});
  length_ = 48;  // the table has three blocks of 16
  expect_lost("block table");
  end_of_follower();
}

INSTANTIATE_TEST_SUITE_P(Forms, Group,
                         testing::Values(Form{"Threads", local_communicators},
                                         Form{"Gloo", test::gloo_ranks}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace deepinfer
