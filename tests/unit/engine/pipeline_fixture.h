// Runners of some sequences by hand: one, ranks that share layers, stages; as threads, and as ranks that
// follow.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>

#include "comm/subgroup.h"
#include "deepinfer/engine.h"
#include "engine/pipeline_stages.h"
#include "engine/rank_leader.h"
#include "model/random_checkpoint.h"
#include "unit/comm/ranks.h"

namespace deepinfer::test {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

inline constexpr int kVocab = 333, kSequences = 4;

// Like the default model: nothing divides.
inline ModelConfig nine_heads(int layers = 6) {
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

inline CpuRunnerOptions runner_options(int tokens = 64) {
  return {.max_num_seqs = 8,
          .max_num_batched_tokens = tokens,
          .max_model_len = 2 * tokens,
          .num_blocks = kSequences * 2 * tokens / 16,
          .kv_dtype = DType::kF32};
}

inline std::vector<int32_t> some_tokens(int n, unsigned seed) {
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
    auto* leader = dynamic_cast<RankLeader*>(runner_.get());
    const Tensor logits = pipeline != nullptr ? pipeline->logits()
                          : ranks != nullptr  ? ranks->logits()
                          : leader != nullptr ? leader->logits()
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
inline std::vector<std::vector<float>> all_logits(Runs& runs) {
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

inline std::unique_ptr<ModelRunner> runner_of_ranks(const Checkpoint& c, int ranks, int tokens = 64) {
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

inline std::unique_ptr<ModelRunner> pipeline(const Checkpoint& c, int stages, int shares,
                                             const Before& before = {},
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

// Greedy texts of some requests at once.
inline std::vector<std::vector<int32_t>> texts(Engine& engine, int requests, int tokens) {
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

// Ranks as processes have them: each with its own communicator, following rank 0.
class Followers {
 public:
  // `before` runs ahead of each forward.
  Followers(const Checkpoint& checkpoint, const PipelinePlace& grid, const MakeRanks& make,
            std::chrono::milliseconds timeout, const Before& before = {})
      : ends_(grid.ranks() - 1) {
    auto worlds = make(grid.ranks(), timeout);
    auto models = make_stage_models(checkpoint, grid, 2);
    if (!models) throw std::runtime_error(models.error().message);
    for (PipelinePlace place = grid; place.rank < grid.ranks(); ++place.rank) {
      if (worlds[place.rank] == nullptr) throw std::runtime_error("no communicator");
      PipelineComms comms;
      std::vector<int> own;
      for (int s = 0; s < grid.shares; ++s) own.push_back(place.stage() * grid.shares + s);
      if (grid.stages > 1 && grid.shares > 1) comms.stage = subgroup(*worlds[place.rank], own);
      comms.world = std::move(worlds[place.rank]);
      CpuRunnerOptions options = runner_options();
      options.head = place.first();
      options.comm = grid.stages == 1 ? comms.world.get() : nullptr;
      auto& model = models->models[place.rank];
      if (before)
        model = std::make_unique<Prepared>(std::move(model), [before, r = place.rank] { before(r); });
      auto runner = CpuRunner::create(std::move(models->pools[place.rank]), std::move(model), options);
      if (!runner) throw std::runtime_error(runner.error().message);
      place.rank == 0 ? lead(place, std::move(comms), std::move(*runner), timeout)
                      : follow(place, std::move(comms), std::move(*runner));
    }
  }
  ~Followers() {
    runs.reset();
    ends();
  }

  // Why each has ended, when all have.
  const std::vector<std::string>& ends() {
    for (std::thread& t : threads_) t.join();
    threads_.clear();
    return ends_;
  }

  std::unique_ptr<Runs> runs;

 private:
  void lead(const PipelinePlace& place, PipelineComms comms, std::unique_ptr<CpuRunner> runner,
            std::chrono::milliseconds timeout) {
    std::unique_ptr<ModelRunner> leader;
    if (place.stages == 1) {
      leader = std::make_unique<RankLeader>(std::move(comms.world), std::move(runner), timeout);
    } else {
      leader = std::make_unique<PipelineRunner>(place, std::move(comms), std::move(runner), timeout);
    }
    runs = std::make_unique<Runs>(std::move(leader));
  }
  void follow(const PipelinePlace& place, PipelineComms comms, std::unique_ptr<CpuRunner> runner) {
    threads_.emplace_back([this, place, c = std::move(comms), r = std::move(runner)]() mutable {
      std::string& end = ends_[place.rank - 1];
      try {
        if (place.stages == 1) {
          follow_leader(*c.world, *r);
        } else {
          PipelineRank rank(place, *r);
          rank.join(c);
          rank.follow();
        }
        end = "told to";
      } catch (const std::exception& e) {
        end = e.what();
      }
      c = {};
    });
  }

  std::vector<std::string> ends_;  // [ranks - 1]
  std::vector<std::thread> threads_;
};

}  // namespace deepinfer::test
