// Several ranks against one: the same logits within a bound of the norms, whatever the weights' format; and
// what becomes of a step when a rank fails.
#include "engine/parallel_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <new>
#include <random>
#include <thread>

#include "base/check.h"
#include "model/quantization.h"
#include "model/random_checkpoint.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using ::testing::HasSubstr;

constexpr int kBlocks = 32, kMaxTokens = 64;

fs::path golden() {
  return fs::path(DI_SOURCE_DIR) / "tests/golden";
}

// Like the default model: nothing divides.
ModelConfig nine_heads() {
  return {.arch = "LlamaForCausalLM",
          .vocab_size = 333,
          .hidden = 160,
          .layers = 2,
          .heads = 9,
          .kv_heads = 3,
          .head_dim = 32,
          .ffn = 320,
          .max_position = 512,
          .tied_head = true};
}

CpuRunnerOptions runner_options(DType kv) {
  return {.max_num_seqs = 8,
          .max_num_batched_tokens = kMaxTokens,
          .max_model_len = 128,
          .num_blocks = kBlocks,
          .kv_dtype = kv};
}

// One runner, and the sequences it works on.
class Runs {
 public:
  Runs(const Checkpoint& checkpoint, int ranks, int threads = 4, DType kv = DType::kF32) {
    auto models = make_rank_models(checkpoint, ranks, threads, 20s);
    if (!models) {
      error_ = models.error().message;
      return;
    }
    start(std::move(*models), kv);
  }
  Runs(RankModels models, std::chrono::milliseconds timeout) {
    start(std::move(models), DType::kF32, timeout);
  }

  const std::string& error() const { return error_; }
  ModelRunner& runner() { return *runner_; }

  // `tokens` behind what sequence `index` has; the logits behind the last of each.
  std::vector<std::vector<float>> step(const std::vector<std::pair<int, std::vector<int32_t>>>& rows) {
    Step s{.id = ++steps_};
    for (const auto& [index, tokens] : rows) {
      StepRow row{.sequence = static_cast<uint64_t>(index), .slot = index, .context_len = length_[index]};
      row.tokens = tokens;
      row.block_table = std::span(&tables_[index], 1);
      row.samples = true;
      row.sampling.temperature = 0;
      s.rows.push_back(row);
      length_[index] += static_cast<int>(tokens.size());
    }
    runner_->launch_forward(s);
    const Tensor logits = one_ != nullptr ? one_->logits() : many_->logits();
    std::vector<std::vector<float>> out;
    for (size_t i = 0; i < rows.size(); ++i) {
      const float* row = logits.row<float>(static_cast<int64_t>(i));
      out.emplace_back(row, row + logits.shape[1]);
    }
    runner_->launch_sample(s);
    const StepOutput result = runner_->wait(s.id);
    sampled.clear();
    for (const auto& accepted : result.accepted) sampled.push_back(accepted.at(0).id);
    return out;
  }
  void forget() { length_.fill(0); }

  std::vector<int32_t> sampled;  // of the last step

 private:
  void start(RankModels models, DType kv, std::chrono::milliseconds timeout = 20s) {
    for (int i = 0; i < 4; ++i) {
      tables_[i].resize(kBlocks / 4);
      for (int b = 0; b < kBlocks / 4; ++b) tables_[i][b] = b * 4 + (i + 1) % 4;
    }
    if (models.models.size() == 1) {
      auto r = CpuRunner::create(std::move(models.pools[0]), std::move(models.models[0]), runner_options(kv));
      one_ = r ? r->get() : nullptr;
      if (r) runner_ = std::move(*r);
    } else {
      auto r = ParallelRunner::create(std::move(models), runner_options(kv), timeout);
      many_ = r ? r->get() : nullptr;
      if (r) runner_ = std::move(*r);
    }
  }

  std::string error_;
  std::unique_ptr<ModelRunner> runner_;
  CpuRunner* one_ = nullptr;
  ParallelRunner* many_ = nullptr;
  std::array<std::vector<int32_t>, 4> tables_;
  std::array<int, 4> length_{};
  uint64_t steps_ = 0;
};

std::vector<int32_t> some_tokens(int n, int vocab, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> t(n);
  for (int32_t& x : t) x = static_cast<int32_t>(random() % static_cast<unsigned>(vocab));
  return t;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

// A prompt in two chunks, beside it shorter ones, then steps of one token, with another that only then comes.
std::vector<std::vector<float>> all_logits(Runs& runs, int vocab) {
  std::vector<std::vector<float>> all;
  const auto add = [&](std::vector<std::vector<float>> more) {
    for (auto& x : more) all.push_back(std::move(x));
  };
  add(runs.step(
      {{0, some_tokens(33, vocab, 1)}, {1, some_tokens(1, vocab, 2)}, {2, some_tokens(17, vocab, 3)}}));
  add(runs.step({{1, some_tokens(1, vocab, 4)}, {0, some_tokens(20, vocab, 5)}}));
  for (unsigned i = 0; i < 3; ++i)
    add(runs.step({{0, some_tokens(1, vocab, 10 + i)},
                   {1, some_tokens(1, vocab, 20 + i)},
                   {2, some_tokens(1, vocab, 30 + i)}}));
  add(runs.step({{0, some_tokens(1, vocab, 40)}, {3, some_tokens(40, vocab, 41)}}));
  return all;
}

struct Case {
  std::string name, folder, online;
  double bound;
  int ranks;  // at most
};

// In F32 both sides round some tens of times a value, and add in other orders: below 2e-5 of the norm, as
// against transformers (llama_test.cpp). Where activations become integers of 8 bits a rounding error of
// theirs turns whole steps: 3%, as there (quantized_test.cpp).
constexpr double kFloat = 2e-5, kCodes = 0.03;

std::vector<Case> cases() {
  std::vector<Case> all = {{"nine", "", "", kFloat, 9},
                           {"nine_fp8", "", "fp8", kFloat, 4},
                           {"nine_int4", "", "int4", kCodes, 4},
                           {"base", "tiny_llama/base", "", kFloat, 4},
                           {"biases", "tiny_llama/biases", "", kFloat, 2},
                           {"wide_heads", "tiny_llama/wide_heads", "", kFloat, 2},
                           {"q4_1", "tiny_llama/base/model-q4_1.gguf", "", kCodes, 2}};
  for (const auto& entry : fs::directory_iterator(golden())) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("quant_")) continue;
    const bool floats = name.find("fp8") != std::string::npos;
    all.push_back({name, name, "", floats ? kFloat : kCodes, 4});
  }
  return all;
}

Result<Checkpoint> open(const Case& c) {
  DI_ASSIGN(Checkpoint checkpoint, c.folder.empty() ? random_checkpoint(nine_heads(), "nine", 5)
                                                    : open_weights(golden() / c.folder));
  if (!c.online.empty()) DI_TRY(set_quantization(checkpoint, c.online));
  return checkpoint;
}

class Ranks : public testing::TestWithParam<Case> {};

TEST_P(Ranks, HaveTheLogitsOfOne) {
  const auto c = open(GetParam());
  ASSERT_TRUE(c) << c.error().message;
  Runs one(*c, 1);
  ASSERT_EQ(one.error(), "");
  const int vocab = c->config.vocab_size;
  const auto want = all_logits(one, vocab);
  double most = 0;
  for (const int ranks : {2, 3, 4, 9}) {
    if (ranks > GetParam().ranks) break;
    Runs many(*c, ranks);
    if (ranks > 2 && many.error().find("expected at most 2") != std::string::npos) break;  // of its groups
    ASSERT_EQ(many.error(), "") << ranks << " ranks";
    const auto got = all_logits(many, vocab);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      const double d = distance(got[i], want[i]);
      most = std::max(most, d);
      EXPECT_LT(d, GetParam().bound) << ranks << " ranks, row " << i;
    }
  }
  RecordProperty("most", fmt::format("{:.2e}", most));
}

INSTANTIATE_TEST_SUITE_P(Formats, Ranks, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST(ParallelRunner, GreedyTokensAreThoseOfOneRankUntilTheGapIsUnderTheBound) {
  const auto c = random_checkpoint(nine_heads(), "nine", 8);
  ASSERT_TRUE(c);
  for (const int ranks : {2, 3, 4}) {
    Runs one(*c, 1), many(*c, ranks);
    std::vector<int32_t> tokens = some_tokens(12, c->config.vocab_size, 6);
    for (int i = 0; i < 60; ++i) {
      const std::vector<float> logits = one.step({{0, tokens}})[0];
      many.step({{0, tokens}});
      std::vector<float> sorted = logits;
      std::nth_element(sorted.begin(), sorted.begin() + 1, sorted.end(), std::greater<>());
      double norm = 0;
      for (const float x : logits) norm += double{x} * x;
      if (sorted[0] - sorted[1] < kFloat * std::sqrt(norm)) break;
      ASSERT_EQ(many.sampled, one.sampled) << ranks << " ranks, token " << i;
      tokens = one.sampled;
    }
  }
}

TEST(ParallelRunner, CachesOfEightBits) {
  const auto c = random_checkpoint(nine_heads(), "nine", 9);
  ASSERT_TRUE(c);
  for (const DType kv : {DType::kI8, DType::kF16, DType::kF8E4M3}) {
    Runs one(*c, 1, 2, kv), many(*c, 4, 4, kv);
    const auto want = all_logits(one, 333), got = all_logits(many, 333);
    // A value on the edge between two codes may fall to either side.
    for (size_t i = 0; i < got.size(); ++i) EXPECT_LT(distance(got[i], want[i]), 5e-3) << info(kv).name;
  }
}

TEST(ParallelRunner, ThreadsOfARankAndThePlaceInTheBatchChangeNoBit) {
  const auto c = random_checkpoint(nine_heads(), "nine", 10);
  ASSERT_TRUE(c);
  Runs narrow(*c, 2, 2), wide(*c, 2, 5);
  EXPECT_EQ(all_logits(narrow, 333), all_logits(wide, 333));
  const std::vector<int32_t> prompt = some_tokens(40, 333, 12);
  Runs alone(*c, 2, 2), beside(*c, 2, 2);
  const auto whole = alone.step({{2, prompt}})[0];
  const auto split = prompt.begin() + 13;
  beside.step({{0, some_tokens(9, 333, 13)}, {2, {prompt.begin(), split}}});
  EXPECT_EQ(beside.step({{1, some_tokens(5, 333, 14)}, {2, {split, prompt.end()}}})[1], whole);
}

TEST(ParallelRunner, MoreRanksThanHeadsAreRefused) {
  const auto c = random_checkpoint(nine_heads(), "nine", 1);
  ASSERT_TRUE(c);
  const Runs ten(*c, 10);
  EXPECT_THAT(ten.error(), HasSubstr("gpu.tensor_parallel_size: got 10, expected at most 9"));
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

// Three ranks, of which one does something in its third forward.
class RankFaults : public testing::TestWithParam<int> {
 protected:
  // The step fails with this text, and the runner serves on with the bits that it would have had.
  template <class Exception>
  void expect_fault(const std::function<void()>& fault, const std::string& text,
                    std::chrono::milliseconds timeout = 20s) {
    const auto c = random_checkpoint(nine_heads(), "nine", 11);
    ASSERT_TRUE(c);
    auto models = make_rank_models(*c, 3, 3, timeout);
    ASSERT_TRUE(models);
    int calls = 0;
    auto& model = models->models[GetParam()];
    model = std::make_unique<Prepared>(std::move(model), [&] {
      if (++calls == 3) fault();
    });
    Runs runs(std::move(*models), timeout), good(*c, 3);
    const auto want = all_logits(good, 333);
    runs.step({{0, {1, 2, 3}}});
    runs.step({{0, {4}}});
    const auto start = std::chrono::steady_clock::now();
    try {
      runs.step({{0, {5}}});
      FAIL() << "the step succeeded";
    } catch (const Exception& e) {
      EXPECT_THAT(e.what(), HasSubstr(text));
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, 20s);
    runs.forget();
    EXPECT_EQ(all_logits(runs, 333), want);
  }

  static constexpr std::chrono::milliseconds kShort = 2s;
};

TEST_P(RankFaults, AThrowEndsTheStepWithItsText) {
  expect_fault<std::runtime_error>([] { throw std::runtime_error("a rank is on fire"); },
                                   "a rank is on fire");
}

TEST_P(RankFaults, NoMemoryOnOneRankIsNoMemoryForTheStep) {
  expect_fault<std::bad_alloc>([] { throw std::bad_alloc(); }, "");
}

TEST_P(RankFaults, AStalledRankEndsTheStepInTime) {
  expect_fault<CommError>([] { std::this_thread::sleep_for(2 * kShort); }, "", kShort);
}

INSTANTIATE_TEST_SUITE_P(EachRank, RankFaults, testing::Range(0, 3));

}  // namespace
}  // namespace deepinfer
