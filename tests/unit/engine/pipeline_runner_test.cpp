// Stages against one runner: the same bits, whatever is in flight; that stages work at the same time; and
// what becomes of steps when a rank fails.
#include "engine/pipeline_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <deque>
#include <functional>
#include <mutex>
#include <new>
#include <random>
#include <thread>

#include "comm/subgroup.h"
#include "deepinfer/engine.h"
#include "engine/pipeline_stages.h"
#include "model/random_checkpoint.h"
#include "unit/comm/ranks.h"

namespace deepinfer {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

constexpr int kVocab = 333, kSequences = 4;

// Like the default model: nothing divides.
ModelConfig nine_heads(int layers = 6) {
  return {.arch = "LlamaForCausalLM",
          .vocab_size = kVocab,
          .hidden = 160,
          .layers = layers,
          .heads = 9,
          .kv_heads = 3,
          .head_dim = 32,
          .ffn = 320,
          .max_position = 4096,
          .tied_head = true};
}

CpuRunnerOptions runner_options(int tokens = 64) {
  return {.max_num_seqs = 8,
          .max_num_batched_tokens = tokens,
          .max_model_len = 2 * tokens,
          .num_blocks = kSequences * 2 * tokens / 16,
          .kv_dtype = DType::kF32};
}

std::vector<int32_t> some_tokens(int n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> t(n);
  for (int32_t& x : t) x = static_cast<int32_t>(random() % kVocab);
  return t;
}

struct Got {
  std::vector<std::vector<float>> logits;  // of each row
  std::vector<int32_t> sampled;
  std::vector<std::vector<OutputToken>> scored;
};

// A runner, and the sequences that it works on.
class Runs {
 public:
  using Rows = std::vector<std::pair<int, std::vector<int32_t>>>;

  explicit Runs(std::unique_ptr<ModelRunner> runner) : runner_(std::move(runner)) {
    const int blocks = static_cast<int>(runner_->info().num_blocks);
    for (int i = 0; i < kSequences; ++i)
      for (int b = 0; b < blocks / kSequences; ++b)
        tables_[i].push_back(b * kSequences + (i + 1) % kSequences);
  }

  ModelRunner& runner() { return *runner_; }

  // `tokens` behind what sequence `index` has; scored: all but the last, by what comes behind them.
  void launch(const Rows& rows, bool scored = false) {
    Pending& p = pending_.emplace_back();
    p.rows = rows;
    p.step.id = ++steps_;
    for (const auto& [index, tokens] : p.rows) {
      StepRow row{.sequence = static_cast<uint64_t>(index), .slot = index, .context_len = length_[index]};
      row.tokens = tokens;
      row.block_table = std::span(&tables_[index], 1);
      row.samples = true;
      row.sampling.temperature = 0;
      if (scored) row.targets = std::span(tokens).subspan(1);
      row.target_top = scored ? 2 : 0;
      p.step.rows.push_back(row);
      length_[index] += static_cast<int>(tokens.size());
    }
    try {
      runner_->launch_forward(p.step);
      runner_->launch_sample(p.step);
    } catch (...) {
      pending_.pop_back();
      throw;
    }
  }
  Got finish() {
    const Pending p = std::move(pending_.front());
    pending_.pop_front();
    StepOutput result = runner_->wait(p.step.id);
    auto* pipeline = dynamic_cast<PipelineRunner*>(runner_.get());
    auto* ranks = dynamic_cast<ParallelRunner*>(runner_.get());
    const Tensor logits = pipeline != nullptr ? pipeline->logits()
                          : ranks != nullptr  ? ranks->logits()
                                              : dynamic_cast<CpuRunner&>(*runner_).logits();
    Got got;
    for (size_t i = 0; i < p.rows.size(); ++i) {
      const float* row = logits.row<float>(static_cast<int64_t>(i));
      got.logits.emplace_back(row, row + logits.shape[1]);
      got.sampled.push_back(result.accepted.at(i).at(0).id);
    }
    got.scored = std::move(result.scored);
    return got;
  }
  Got step(const Rows& rows, bool scored = false) {
    launch(rows, scored);
    return finish();
  }
  void forget() { length_.fill(0); }

 private:
  struct Pending {
    Rows rows;
    Step step;
  };

  std::unique_ptr<ModelRunner> runner_;
  std::array<std::vector<int32_t>, kSequences> tables_;
  std::array<int, kSequences> length_{};
  std::deque<Pending> pending_;
  uint64_t steps_ = 0;
};

// A prompt in two chunks, beside it shorter ones, then steps of one token, with another that only then comes.
std::vector<std::vector<float>> all_logits(Runs& runs) {
  std::vector<std::vector<float>> all;
  const auto add = [&](Got got) {
    for (auto& x : got.logits) all.push_back(std::move(x));
  };
  runs.forget();
  add(runs.step({{0, some_tokens(33, 1)}, {1, some_tokens(1, 2)}, {2, some_tokens(17, 3)}}));
  add(runs.step({{1, some_tokens(1, 4)}, {0, some_tokens(20, 5)}}));
  for (unsigned i = 0; i < 3; ++i)
    add(runs.step({{0, some_tokens(1, 10 + i)}, {1, some_tokens(1, 20 + i)}, {2, some_tokens(1, 30 + i)}}));
  add(runs.step({{0, some_tokens(1, 40)}, {3, some_tokens(40, 41)}}));
  return all;
}

std::unique_ptr<ModelRunner> runner_of_ranks(const Checkpoint& c, int ranks, int tokens = 64) {
  auto models = make_rank_models(c, ranks, 2, 20s);
  if (!models) return nullptr;
  if (ranks == 1) {
    auto one =
        CpuRunner::create(std::move(models->pools[0]), std::move(models->models[0]), runner_options(tokens));
    return one ? std::move(*one) : nullptr;
  }
  auto many = ParallelRunner::create(std::move(*models), runner_options(tokens), 20s);
  return many ? std::move(*many) : nullptr;
}

// A model whose forward does something first.
class Prepared final : public Model {
 public:
  Prepared(std::unique_ptr<Model> model, std::function<void()> before)
      : model_(std::move(model)), before_(std::move(before)) {}
  const ModelConfig& config() const override { return model_->config(); }
  std::vector<KvGroupSpec> kv_groups(DType t) const override { return model_->kv_groups(t); }
  void forward(Context& context, const StepBatch& batch, const KvCache& kv, const SlotTable& slots,
               const StageIO& io) override {
    before_();
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

using Before = std::function<void(int rank)>;

std::unique_ptr<ModelRunner> pipeline(const Checkpoint& c, int stages, int shares, const Before& before = {},
                                      std::chrono::milliseconds timeout = 20s, int tokens = 64) {
  const PipelinePlace grid{.stages = stages, .shares = shares};
  auto models = make_stage_models(c, grid, 2);
  if (!models) {
    ADD_FAILURE() << models.error().message;
    return nullptr;
  }
  for (int r = 0; before && r < grid.ranks(); ++r)
    models->models[r] = std::make_unique<Prepared>(std::move(models->models[r]), [before, r] { before(r); });
  auto made = make_pipeline(std::move(*models), grid, runner_options(tokens), timeout);
  return made ? std::move(*made) : nullptr;
}

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

// Greedy texts of some requests at once.
std::vector<std::vector<int32_t>> texts(Engine& engine, int requests, int tokens) {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::vector<int32_t>> out(requests);
  int ended = 0;
  for (int i = 0; i < requests; ++i) {
    EngineRequest r{.prompt = some_tokens(9 + i, 70 + static_cast<unsigned>(i))};
    r.sampling.max_tokens = tokens;
    r.sampling.temperature = 0;
    const auto id = engine.submit(std::move(r), [&, i](const OutputEvent& e) {
      std::lock_guard lock(mutex);
      for (const OutputToken& t : e.tokens) out[i].push_back(t.id);
      ended += e.finish != FinishReason::kNone;
      changed.notify_all();
    });
    EXPECT_TRUE(id.ok());
  }
  std::unique_lock lock(mutex);
  EXPECT_TRUE(changed.wait_for(lock, 100s, [&] { return ended == requests; }));
  return out;
}

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

// Ranks as processes have them: each with its own communicator, over Gloo, following rank 0.
class Processes : public testing::TestWithParam<std::pair<int, int>> {
 protected:
  void SetUp() override {
    if (!has_gloo()) GTEST_SKIP() << "this build has no Gloo (libgloo-dev)";
    auto c = random_checkpoint(nine_heads(), "nine", 16);
    ASSERT_TRUE(c);
    checkpoint_ = std::move(*c);
  }
  void start(std::chrono::milliseconds timeout, const Before& before = {}) {
    const auto [stages, shares] = GetParam();
    const PipelinePlace grid{.stages = stages, .shares = shares};
    ends_.resize(grid.ranks() - 1);
    auto worlds = test::gloo_ranks(grid.ranks(), timeout);
    auto models = make_stage_models(checkpoint_, grid, 2);
    ASSERT_TRUE(models);
    for (PipelinePlace place = grid; place.rank < grid.ranks(); ++place.rank) {
      ASSERT_TRUE(worlds[place.rank]);
      PipelineComms comms;
      std::vector<int> own;
      for (int s = 0; s < shares; ++s) own.push_back(place.stage() * shares + s);
      if (shares > 1) comms.stage = subgroup(*worlds[place.rank], own);
      comms.world = std::move(worlds[place.rank]);
      CpuRunnerOptions options = runner_options();
      options.head = place.first();
      auto& model = models->models[place.rank];
      if (before)
        model = std::make_unique<Prepared>(std::move(model), [before, r = place.rank] { before(r); });
      auto runner = CpuRunner::create(std::move(models->pools[place.rank]), std::move(model), options);
      ASSERT_TRUE(runner);
      if (place.rank == 0) {
        runs_ = std::make_unique<Runs>(
            std::make_unique<PipelineRunner>(place, std::move(comms), std::move(*runner), timeout));
      } else {
        followers_.emplace_back([this, place, c = std::move(comms), r = std::move(*runner)]() mutable {
          std::string end = "told to";
          try {
            PipelineRank rank(place, *r);
            rank.join(c);
            rank.follow();
          } catch (const std::exception& e) {
            end = e.what();
          }
          c = {};
          std::lock_guard lock(mutex_);
          ends_[place.rank - 1] = end;
        });
      }
    }
  }
  std::vector<std::string> ends() {
    for (std::thread& t : followers_) t.join();
    followers_.clear();
    return ends_;
  }
  void TearDown() override {
    runs_.reset();
    ends();
  }

  Checkpoint checkpoint_;
  std::unique_ptr<Runs> runs_;
  std::mutex mutex_;
  std::vector<std::string> ends_;  // [ranks - 1]
  std::vector<std::thread> followers_;
};

TEST_P(Processes, HaveTheBitsOfThreadsAndEndTogether) {
  start(30s);
  Runs threads(pipeline(checkpoint_, GetParam().first, GetParam().second));
  EXPECT_EQ(all_logits(*runs_), all_logits(threads));
  runs_->runner().release_unused();
  runs_->forget();
  threads.forget();
  for (Runs* runs : {runs_.get(), &threads})
    for (int i = 0; i < 2; ++i) runs->launch({{i, some_tokens(11, 80 + static_cast<unsigned>(i))}}, true);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(runs_->finish().logits, threads.finish().logits);
  runs_.reset();
  EXPECT_THAT(ends(), testing::Each("told to"));
}

TEST_P(Processes, ARankThatFailsIsTheEndOfTheGroup) {
  const int bad = GetParam().first * GetParam().second - 1;
  int calls = 0;
  start(30s, [&calls, bad](int rank) {
    if (rank == bad && ++calls == 2) throw std::runtime_error("a rank is on fire");
  });
  runs_->step({{0, {1, 2, 3}}});
  const auto begin = Clock::now();
  try {
    runs_->step({{0, {4}}});
    FAIL() << "the step succeeded";
  } catch (const DeviceLost& e) {
    EXPECT_THAT(e.what(), HasSubstr("a rank is on fire"));
  }
  EXPECT_THROW(runs_->step({{0, {4}}}), DeviceLost);
  EXPECT_LT(Clock::now() - begin, 15s);
  EXPECT_THAT(ends(), testing::Each(HasSubstr("a rank is on fire")));
}

TEST_P(Processes, ARankThatStallsIsTheEndOfTheGroupInTime) {
  const int bad = GetParam().second;  // of the second stage
  int calls = 0;
  start(2s, [&calls, bad](int rank) {
    if (rank == bad && ++calls == 2) std::this_thread::sleep_for(6s);
  });
  runs_->step({{0, {1, 2, 3}}});
  const auto begin = Clock::now();
  EXPECT_THROW(runs_->step({{0, {4}}}), DeviceLost);
  EXPECT_LT(Clock::now() - begin, 5s);
  EXPECT_THAT(ends(), testing::Each(testing::Not(testing::AnyOf("", "told to"))));
}

INSTANTIATE_TEST_SUITE_P(StagesAndShares, Processes,
                         testing::Values(std::pair{2, 1}, std::pair{3, 1}, std::pair{2, 2}),
                         [](const auto& info) {
                           return std::to_string(info.param.first) + "x" + std::to_string(info.param.second);
                         });

}  // namespace
}  // namespace deepinfer
