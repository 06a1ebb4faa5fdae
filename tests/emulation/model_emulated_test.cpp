// Small Llama checkpoints on the device (emulated, or a card), from the file to the tokens, against the CPU
// backend: dense and GGUF's types, in bf16 and fp16, eager and as graphs, alone and in company.
#include <gmock/gmock.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <random>

#include "emulation/fresh_machine.h"
#include "engine/cuda_runner.h"
#include "model/checkpoint.h"
#include "support/cpu_engine.h"
#include "support/model_harness.h"

namespace deepinfer::test {
namespace {

namespace fs = std::filesystem;

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
};

// DI_TEST_SOURCE: where the repository lies on the machine that runs the test, when it was built elsewhere.
fs::path path_of(const std::string& model) {
  const char* root = std::getenv("DI_TEST_SOURCE");
  return fs::path(root != nullptr ? root : DI_SOURCE_DIR) / "tests/golden/tiny_llama" / model;
}

std::unique_ptr<CudaRunner> make_runner(const Scene& s) {
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

std::unique_ptr<ModelHarness> cpu_model(const std::string& model) {
  auto h = ModelHarness::open(path_of(model), {.max_tokens = 256});
  if (!h) ADD_FAILURE() << h.error().message;
  return h ? std::move(*h) : nullptr;
}

// How far two devices' logits may be apart, relative to their norm. A value is rounded to A about eight times
// a layer on its way (norm, q, k and v, attention's probabilities and result, gate_up's norm and result, and
// once for the head), each with a relative error of 2^-9 / sqrt(3) rms (bf16; 2^-12 for fp16) that the
// layers behind may double: two layers give 2 sqrt(17) 2^-9 / sqrt(3). The CPU rounds activations to int8 per
// 32 for quantized weights: 0.5% each of nine times, doubled. FP8 keys and values have a step of 2^-4, of
// which softmax averages most away: a third is left. The worst of some tens of rows is half as much again.
double bound_of(const Scene& s) {
  const double unit = s.activation == DType::kBF16 ? 0x1p-9 : 0x1p-12;
  double square = std::pow(2 * std::sqrt(17.0) * unit / std::sqrt(3.0), 2);
  if (s.model.find("-q") != std::string::npos) square += std::pow(2 * 0.005 * 3, 2);
  if (s.kv == DType::kF8E4M3) square += std::pow(0x1p-4 / 3, 2);
  return 1.5 * std::sqrt(square);
}

double distance(std::span<const float> got, std::span<const float> want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - want[i], 2);
    norm += std::pow(static_cast<double>(want[i]), 2);
  }
  return std::sqrt(difference / norm);
}

std::vector<int32_t> random_tokens(std::mt19937_64& random, int count, int vocab) {
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = std::uniform_int_distribution<int>(0, vocab - 1)(random);
  return ids;
}

// Sequences that are fed by hand, so that the logits of many positions are seen.
class Feeder {
 public:
  Feeder(CudaRunner& runner, int sequences, int tokens, uint64_t seed) : runner_(runner) {
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
    const std::vector<float> logits = runner_.read_logits();
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
  CudaRunner& runner_;
  std::vector<std::vector<std::vector<int32_t>>> tables_;
  uint64_t steps_ = 0;
};

class LogitsTest : public testing::TestWithParam<std::tuple<std::string, DType>> {};

TEST_P(LogitsTest, EqualTheCpus) {
  Scene s;
  std::tie(s.model, s.activation) = GetParam();
  s.kv = s.activation;
  const auto runner = make_runner(s);
  const auto cpu = cpu_model(s.model);
  ASSERT_TRUE(runner && cpu);
  Feeder feeder(*runner, 4, 48, 7);
  std::vector<std::vector<float>> want;
  for (const auto& ids : feeder.ids) want.push_back(cpu->logits(ids));
  const int V = cpu->vocab_size();
  double worst = 0;
  // A prompt in pieces beside others that decode; then all decode: warm, captured, replayed.
  const std::vector<std::vector<int>> plan{{19, 0, 0, 0}, {1, 33, 0, 0}, {1, 1, 7, 21}, {1, 1, 16, 1},
                                           {1, 1, 0, 0},  {1, 1, 1, 1},  {1, 1, 1, 1},  {1, 1, 1, 1},
                                           {0, 1, 1, 1},  {0, 1, 1, 1},  {1, 0, 0, 1},  {1, 0, 0, 1}};
  for (const auto& counts : plan) {
    for (const auto& [i, logits] : feeder.step(counts)) {
      const auto row = std::span(want[i]).subspan(static_cast<size_t>(feeder.at[i] - 1) * V, V);
      const double d = distance(logits, row);
      EXPECT_LT(d, bound_of(s)) << "sequence " << i << " at " << feeder.at[i];
      worst = std::max(worst, d);
    }
  }
  RecordProperty("worst", std::to_string(worst));
  std::printf("%s %s: %.5f of %.5f\n", s.model.c_str(), std::string(info(s.activation).name).c_str(), worst,
              bound_of(s));
}

INSTANTIATE_TEST_SUITE_P(
    TinyLlama, LogitsTest,
    testing::Combine(testing::Values("base", "biases", "linear_rope", "llama3_rope", "mha_tied", "sharded",
                                     "wide_heads", "base/model-q4_1.gguf", "mha_tied/model-q4_0.gguf",
                                     "mha_tied/model-q8_0.gguf", "mha_tied/model-f16.gguf",
                                     "llama3_rope/model-bf16.gguf"),
                     testing::Values(DType::kBF16, DType::kF16)),
    [](const auto& i) {
      std::string name = std::get<0>(i.param) + "_" + std::string(deepinfer::info(std::get<1>(i.param)).name);
      for (char& c : name)
        if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
      return name;
    });

TEST(ModelEmulated, AnFp8CacheStaysWithinItsBound) {
  Scene s{.kv = DType::kF8E4M3};
  const auto runner = make_runner(s);
  const auto cpu = cpu_model(s.model);
  ASSERT_TRUE(runner && cpu);
  Feeder feeder(*runner, 2, 40, 11);
  double worst = 0;
  for (const auto& counts : std::vector<std::vector<int>>{{30, 0}, {1, 25}, {1, 1}, {1, 1}, {1, 1}}) {
    for (const auto& [i, logits] : feeder.step(counts)) {
      const std::vector<float> want = cpu->logits(std::span(feeder.ids[i]).first(feeder.at[i]));
      const double d = distance(logits, std::span(want).last(logits.size()));
      EXPECT_LT(d, bound_of(s));
      worst = std::max(worst, d);
    }
  }
  std::printf("fp8: %.5f of %.5f\n", worst, bound_of(s));
}

std::vector<EngineRequest> requests_of(std::mt19937_64& random, int count, int vocab, float temperature) {
  const std::vector<int32_t> common = random_tokens(random, 36, vocab);
  auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  std::vector<EngineRequest> requests;
  for (int i = 0; i < count; ++i) {
    EngineRequest r;
    r.prompt.assign(common.begin(), common.begin() + pick(0, 36));
    const std::vector<int32_t> own = random_tokens(random, pick(1, 12), vocab);
    r.prompt.insert(r.prompt.end(), own.begin(), own.end());
    r.sampling.temperature = temperature;
    r.sampling.seed = 100 + i;
    r.sampling.max_tokens = pick(3, 12);
    r.sampling.logprobs = 0;
    requests.push_back(std::move(r));
  }
  return requests;
}

std::vector<Answer> answers_of(const Scene& s, const std::vector<EngineRequest>& requests) {
  auto runner = make_runner(s);
  if (!runner) return std::vector<Answer>(requests.size());
  Engine engine(std::move(runner), {.max_num_batched_tokens = s.tokens});
  return run_all(engine, requests);
}

std::vector<int32_t> tokens_of(const Answer& a) {
  std::vector<int32_t> ids;
  for (const OutputToken& t : a.tokens) ids.push_back(t.id);
  return ids;
}

// Of one logit, where the whole row is off by the bound: six times the root mean square of that.
double slack(std::span<const float> logits, double bound) {
  double square = 0;
  for (const float l : logits) square += static_cast<double>(l) * l;
  return 6 * bound * std::sqrt(square / static_cast<double>(logits.size()));
}

TEST(ModelEmulated, GreedyTokensAreTheCpusWhereItsLogitsDecide) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    Scene s{.seed = seed};
    s.model = seed % 2 == 0 ? "mha_tied/model-q8_0.gguf" : "base";
    s.eager = seed == 3;
    s.library = seed == 1 || seed == 4;
    s.blocks = 14;  // some are preempted
    const auto cpu = cpu_model(s.model);
    ASSERT_TRUE(cpu);
    std::mt19937_64 random(seed);
    const std::vector<EngineRequest> requests = requests_of(random, 7, cpu->vocab_size(), 0);
    const std::vector<Answer> answers = answers_of(s, requests);
    int equal = 0, all = 0;
    for (size_t i = 0; i < requests.size(); ++i) {
      ASSERT_EQ(static_cast<int>(answers[i].tokens.size()), requests[i].sampling.max_tokens)
          << answers[i].error;
      std::vector<int32_t> ids = requests[i].prompt;
      for (const OutputToken& t : answers[i].tokens) ids.push_back(t.id);
      const std::vector<float> logits = cpu->logits(ids);
      for (size_t n = 0; n < answers[i].tokens.size(); ++n) {
        const size_t V = static_cast<size_t>(cpu->vocab_size());
        const auto row = std::span(logits).subspan((requests[i].prompt.size() + n - 1) * V, V);
        const OutputToken& t = answers[i].tokens[n];
        const float best = *std::max_element(row.begin(), row.end());
        double sum = 0;
        for (const float l : row) sum += std::exp(static_cast<double>(l) - best);
        const double near = slack(row, bound_of(s));
        EXPECT_LE(best - row[t.id], 2 * near) << "seed " << seed << ", request " << i << ", token " << n;
        EXPECT_NEAR(t.logprob, row[t.id] - best - std::log(sum), 2 * near);
        equal += best == row[t.id];
        ++all;
      }
    }
    EXPECT_GT(equal, all * 9 / 10) << "most are not near to a tie";
  }
}

// With gpu.deterministic a row's result does not depend on what runs beside it, on chunks, on prefixes found
// in the cache, nor on graphs and their padding.
TEST(ModelEmulated, DeterministicMeansTheSameTokensWhateverRunsBeside) {
  for (const std::string model : {"base", "mha_tied/model-q4_0.gguf"}) {
    Scene s{.model = model, .deterministic = true};
    std::mt19937_64 random(3);
    const auto cpu = cpu_model(s.model);
    ASSERT_TRUE(cpu);
    const std::vector<EngineRequest> requests = requests_of(random, 6, cpu->vocab_size(), 1.0f);
    const std::vector<Answer> graphs = answers_of(s, requests);
    s.eager = true;
    s.seed = 2;
    s.blocks = 14;
    const std::vector<Answer> eager = answers_of(s, requests);
    s.tokens = 9;
    s.eager = false;
    s.graph_sizes = {3};
    s.logits_bytes = 2 * static_cast<size_t>(cpu->vocab_size()) * sizeof(float);  // in pieces
    const std::vector<Answer> chunks = answers_of(s, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      const std::vector<Answer> alone = answers_of(s, {requests[i]});
      EXPECT_EQ(graphs[i].tokens.size(), static_cast<size_t>(requests[i].sampling.max_tokens))
          << graphs[i].error;
      for (const Answer* other : {&eager[i], &chunks[i], &alone[0]}) {
        ASSERT_EQ(tokens_of(*other), tokens_of(graphs[i])) << model << ", request " << i;
        for (size_t n = 0; n < graphs[i].tokens.size(); ++n)
          EXPECT_EQ(other->tokens[n].logprob, graphs[i].tokens[n].logprob);
      }
    }
  }
}

}  // namespace
}  // namespace deepinfer::test
