// Small Llama checkpoints on the device (emulated, or a card), fed by hand, beside the same model in F32.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <random>

#include "base/check.h"
#include "emulation/fresh_machine.h"
#include "engine/cuda_runner.h"
#include "model/checkpoint.h"
#include "support/exact_model.h"

namespace deepinfer::test {

struct Scene {
  std::string model = "base";
  DType activation = DType::kBF16;
  DType kv = DType::kBF16;
  bool deterministic = false;
  bool eager = false;
  bool library = false;  // cuBLASLt for what it serves
  uint64_t seed = 1;
  int seqs = 5, tokens = 40, max_len = 128;
  int64_t blocks = 40;
  std::vector<int> graph_sizes;
  size_t logits_bytes = 0;
  std::function<void(Checkpoint&)> damage;  // of what the device gets
};

// DI_TEST_SOURCE: where the repository lies on the machine that runs the test, when it was built elsewhere.
inline std::filesystem::path path_of(const std::string& model) {
  const char* root = std::getenv("DI_TEST_SOURCE");
  return std::filesystem::path(root != nullptr ? root : DI_SOURCE_DIR) / "tests/golden/tiny_llama" / model;
}

inline std::unique_ptr<CudaRunner> make_runner(const Scene& s) {
  fresh_machine(s.seed);
  auto checkpoint = open_weights(path_of(s.model));
  auto gpu = cuda::Gpu::open({.deterministic = s.deterministic, .self_check = false});
  if (!checkpoint || !gpu) {
    ADD_FAILURE() << (checkpoint ? gpu.error().message : checkpoint.error().message);
    return nullptr;
  }
  if (s.library) {
    const Result<void> opened = (*gpu)->open_fast_paths();
    EXPECT_TRUE(opened.ok());
  }
  if (s.damage) s.damage(*checkpoint);
  ThreadPool pool(1);
  Context context{
      .device = {Device::Kind::kCuda, 0}, .pool = &pool, .gpu = gpu->get(), .activation = s.activation};
  auto model = make_model(checkpoint->config, checkpoint->weights, context);
  if (!model) {
    ADD_FAILURE() << model.error().message;
    return nullptr;
  }
  auto runner = CudaRunner::create(
      std::move(*gpu), std::move(*model),
      {.max_num_seqs = s.seqs,
       .max_num_batched_tokens = s.tokens,
       .max_model_len = s.max_len,
       .kv_dtype = s.kv,
       .activation = s.activation,
       .enforce_eager = s.eager,
       .graph_sizes = s.graph_sizes,
       .logits_bytes = s.logits_bytes,
       .plan_cache = [&s](const MeasuredMemory& m) { return CachePlan{s.blocks, m.max_model_len}; }});
  if (!runner) ADD_FAILURE() << runner.error().message;
  return runner ? std::move(*runner) : nullptr;
}

inline std::unique_ptr<ExactModel> exact_model(const Scene& s) {
  auto m = ExactModel::open(path_of(s.model), s.activation, s.kv);
  if (!m) ADD_FAILURE() << m.error().message;
  return m ? std::move(*m) : nullptr;
}

inline std::vector<int32_t> random_tokens(std::mt19937_64& random, int count, int vocab) {
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = std::uniform_int_distribution<int>(0, vocab - 1)(random);
  return ids;
}

// Sequences that are fed by hand, so that the logits of many positions are seen.
class Feeder {
 public:
  // Runner: what has read_logits().
  template <class Runner>
  Feeder(Runner& runner, int sequences, int tokens, uint64_t seed)
      : runner_(runner), read_logits_([&runner] { return runner.read_logits(); }) {
    std::mt19937_64 random(seed);
    int32_t block = 0;
    for (int i = 0; i < sequences; ++i) {
      ids.push_back(random_tokens(random, tokens, runner.info().vocab_size));
      tables_.emplace_back(1);
      for (int n = 0; n * 16 < tokens; ++n) tables_.back()[0].push_back(block++);
      at.push_back(0);
    }
  }

  // `counts[i]` tokens of sequence i, rows of one token first. Logits of each row's last token.
  std::map<int, std::vector<float>> step(const std::vector<int>& counts) {
    Step step{.id = ++steps_};
    std::vector<int> order;
    for (const bool decode : {true, false})
      for (size_t i = 0; i < counts.size(); ++i)
        if (counts[i] > 0 && (counts[i] == 1) == decode) order.push_back(static_cast<int>(i));
    for (const int i : order) {
      StepRow row{.sequence = static_cast<uint64_t>(i) + 1, .slot = i, .context_len = at[i]};
      row.tokens = std::span(ids[i]).subspan(at[i], counts[i]);
      row.block_table = tables_[i];
      row.samples = true;
      row.sampling.temperature = 0;
      step.rows.push_back(row);
      at[i] += counts[i];
    }
    runner_.launch_forward(step);
    runner_.launch_sample(step);
    (void)runner_.wait(step.id);
    const std::vector<float> logits = read_logits_();
    std::map<int, std::vector<float>> out;
    const int V = runner_.info().vocab_size;
    for (size_t r = 0; r < order.size(); ++r)
      out[order[r]] = {logits.begin() + static_cast<int64_t>(r) * V,
                       logits.begin() + static_cast<int64_t>(r + 1) * V};
    return out;
  }

  std::vector<std::vector<int32_t>> ids;
  std::vector<int> at;  // tokens in the cache

 private:
  ModelRunner& runner_;
  std::function<std::vector<float>()> read_logits_;
  std::vector<std::vector<std::vector<int32_t>>> tables_;
  uint64_t steps_ = 0;
};

// What a device gave beside what is exact, in multiples of what noise does to a row (rms).
class RowComparison {
 public:
  RowComparison(ExactModel& exact, const std::vector<std::vector<int32_t>>& sequences) : exact_(exact) {
    for (const auto& ids : sequences) want_.push_back(exact.rows(ids));
  }

  void add(int sequence, int at, std::span<const float> logits) {
    const ExactModel::Rows& w = want_[sequence];
    const double d = distance(logits, std::span(w.logits).subspan((at - 1) * logits.size(), logits.size()));
    const double ratio = std::isfinite(d) ? d / w.rms[at - 1] : HUGE_VAL;
    worst_ = std::max(worst_, ratio);
    squares_ += ratio * ratio;
    ++count_;
  }

  double worst() const { return worst_; }
  double most() const { return exact_.row().most(static_cast<double>(count_)); }
  double mean() const { return std::sqrt(squares_ / static_cast<double>(count_)); }
  NoiseBound mean_bound() const { return exact_.all(static_cast<int64_t>(want_.size())); }
  std::string describe() const {
    return fmt::format(
        "{} rows off by {:.2f} (rms) of what noise does, expected {:.2f} to {:.2f}; the worst by {:.2f} of "
        "at "
        "most {:.2f}; {:.0f} directions",
        count_, mean(), mean_bound().least(1), mean_bound().most(1), worst(), most(),
        exact_.row().directions);
  }

 private:
  ExactModel& exact_;
  std::vector<ExactModel::Rows> want_;
  double worst_ = 0, squares_ = 0;
  int64_t count_ = 0;
};

inline void expect_only_rounding(const RowComparison& rows) {
  std::printf("%s\n", rows.describe().c_str());
  EXPECT_LE(rows.worst(), rows.most()) << rows.describe();
  EXPECT_LE(rows.mean(), rows.mean_bound().most(1)) << rows.describe();
  EXPECT_GE(rows.mean(), rows.mean_bound().least(1)) << rows.describe();
}

inline RowComparison compare_rows(ExactModel& exact, Feeder& feeder,
                                  const std::vector<std::vector<int>>& plan) {
  RowComparison rows(exact, feeder.ids);
  for (const auto& counts : plan)
    for (const auto& [i, logits] : feeder.step(counts)) rows.add(i, feeder.at[i], logits);
  return rows;
}

}  // namespace deepinfer::test
