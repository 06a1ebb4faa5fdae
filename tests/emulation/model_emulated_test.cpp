// Small Llama checkpoints on the device (emulated, or a card), from the file to the tokens, against the same
// model in F32: dense and GGUF's types, in bf16 and fp16, eager and as graphs, alone and in company.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "emulation/model_fixture.h"
#include "support/cpu_engine.h"

namespace deepinfer::test {
namespace {

class LogitsTest : public testing::TestWithParam<std::tuple<std::string, DType>> {};

TEST_P(LogitsTest, AreTheExactOnesButForRounding) {
  Scene s;
  std::tie(s.model, s.activation) = GetParam();
  s.kv = s.activation;
  const auto runner = make_runner(s);
  const auto exact = exact_model(s);
  ASSERT_TRUE(runner && exact);
  Feeder feeder(*runner, 4, 48, 7);
  // A prompt in pieces beside others that decode; then all decode: warm, captured, replayed.
  const RowComparison rows = compare_rows(*exact, feeder,
                                          {{19, 0, 0, 0},
                                           {1, 33, 0, 0},
                                           {1, 1, 7, 21},
                                           {1, 1, 16, 1},
                                           {1, 1, 0, 0},
                                           {1, 1, 1, 1},
                                           {1, 1, 1, 1},
                                           {1, 1, 1, 1},
                                           {0, 1, 1, 1},
                                           {0, 1, 1, 1},
                                           {1, 0, 0, 1},
                                           {1, 0, 0, 1}});
  expect_only_rounding(rows);
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
  const Scene s{.kv = DType::kF8E4M3};
  const auto runner = make_runner(s);
  const auto exact = exact_model(s);
  ASSERT_TRUE(runner && exact);
  Feeder feeder(*runner, 2, 40, 11);
  const RowComparison rows =
      compare_rows(*exact, feeder, {{30, 0}, {1, 25}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}});
  expect_only_rounding(rows);
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

// How far the difference of two logits of one row may be off, once in a thousand times in one of `count`
// rows: a row's distance spreads evenly over its logits, and each is nearly normal, a sum of many roundings.
double slack(std::span<const float> logits, double rms, int64_t count) {
  double square = 0;
  for (const float l : logits) square += static_cast<double>(l) * l;
  const double one = rms * std::sqrt(square / static_cast<double>(logits.size()));
  return std::sqrt(2 * std::log(2e3 * static_cast<double>(count))) * std::sqrt(2.0) * one;
}

// The tokens of one answer, and how many of them were not near to a tie.
int check_greedy(ExactModel& exact, const EngineRequest& request, const Answer& answer, int64_t count) {
  std::vector<int32_t> ids = request.prompt;
  for (const OutputToken& t : answer.tokens) ids.push_back(t.id);
  const ExactModel::Rows rows = exact.rows(ids);
  int decided = 0;
  for (size_t n = 0; n < answer.tokens.size(); ++n) {
    const auto V = static_cast<size_t>(exact.vocab_size());
    const size_t at = request.prompt.size() + n - 1;
    const auto row = std::span(rows.logits).subspan(at * V, V);
    const OutputToken& t = answer.tokens[n];
    std::vector<float> two(2);
    std::partial_sort_copy(row.begin(), row.end(), two.begin(), two.end(), std::greater<>());
    double sum = 0;
    for (const float l : row) sum += std::exp(static_cast<double>(l) - two[0]);
    const double near = slack(row, rows.rms[at], count);
    EXPECT_LE(two[0] - row[t.id], near) << "token " << n;
    EXPECT_NEAR(t.logprob, row[t.id] - two[0] - std::log(sum), near) << "token " << n;
    decided += two[0] - two[1] > near;
  }
  return decided;
}

TEST(ModelEmulated, GreedyTokensAreTheExactOnesWhereLogitsDecide) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Scene s{.seed = seed};
    s.model = seed % 2 == 0 ? "mha_tied/model-q8_0.gguf" : "base";
    s.eager = seed == 3;
    s.library = seed == 1 || seed == 4;
    s.blocks = 14;  // some are preempted
    const auto exact = exact_model(s);
    ASSERT_TRUE(exact);
    std::mt19937_64 random(seed);
    const std::vector<EngineRequest> requests = requests_of(random, 7, exact->vocab_size(), 0);
    const std::vector<Answer> answers = answers_of(s, requests);
    int all = 0, decided = 0;
    for (const EngineRequest& r : requests) all += r.sampling.max_tokens;
    for (size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(fmt::format("request {}", i));
      ASSERT_EQ(static_cast<int>(answers[i].tokens.size()), requests[i].sampling.max_tokens)
          << answers[i].error;
      decided += check_greedy(*exact, requests[i], answers[i], all);
    }
    std::printf("%d of %d tokens decided\n", decided, all);
    EXPECT_GT(decided, all / 2) << "else this test says little";
  }
}

// With gpu.deterministic a row's result does not depend on what runs beside it, on chunks, on prefixes found
// in the cache, nor on graphs and their padding.
TEST(ModelEmulated, DeterministicMeansTheSameTokensWhateverRunsBeside) {
  for (const std::string model : {"base", "mha_tied/model-q4_0.gguf"}) {
    Scene s{.model = model, .deterministic = true};
    std::mt19937_64 random(3);
    const auto checkpoint = open_weights(path_of(model));
    ASSERT_TRUE(checkpoint);
    const int vocab = checkpoint->config.vocab_size;
    const std::vector<EngineRequest> requests = requests_of(random, 6, vocab, 1.0f);
    const std::vector<Answer> graphs = answers_of(s, requests);
    s.eager = true;
    s.seed = 2;
    s.blocks = 14;
    const std::vector<Answer> eager = answers_of(s, requests);
    s.tokens = 9;
    s.eager = false;
    s.graph_sizes = {3};
    s.logits_bytes = 2 * static_cast<size_t>(vocab) * sizeof(float);  // in pieces
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
