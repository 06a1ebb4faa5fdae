// Several emulated devices that share every layer: the logits and tokens of one, in every format of weights,
// from graphs and without, in shuffled orders.
#include <gmock/gmock.h>

#include <filesystem>

#include "emulation/ranks_fixture.h"
#include "support/cpu_engine.h"

namespace deepinfer::test {
namespace {

namespace fs = std::filesystem;

// A prompt in pieces beside others that decode; then all decode: warm, captured, replayed.
const std::vector<std::vector<int>> kPlan = {{19, 0, 0, 0}, {1, 33, 0, 0}, {1, 1, 7, 21}, {1, 1, 16, 1},
                                             {1, 1, 0, 0},  {1, 1, 1, 1},  {1, 1, 1, 1},  {1, 1, 1, 1},
                                             {0, 1, 1, 1},  {0, 1, 1, 1},  {1, 0, 0, 1},  {1, 0, 0, 1}};

struct ExactCase {
  std::string model;
  DType activation;
  int ranks;
};

class ExactRanks : public testing::TestWithParam<ExactCase> {};

TEST_P(ExactRanks, LogitsAreTheExactOnesButForRounding) {
  const ExactCase& c = GetParam();
  RanksScene r{.scene = {.model = c.model, .activation = c.activation, .kv = c.activation}, .ranks = c.ranks};
  const auto runner = make_ranks(r);
  const auto exact = exact_model(r.scene);
  ASSERT_TRUE(runner && exact);
  Feeder feeder(*runner, 4, 48, 7);
  expect_only_rounding(compare_rows(*exact, feeder, kPlan));
  EXPECT_GT(emulation::machine_counts().graph_launches, 0);
}

// biases, wide_heads: two ranks have the one KV head each; base on four: two have each of its two.
INSTANTIATE_TEST_SUITE_P(
    TinyLlama, ExactRanks,
    testing::Values(ExactCase{"base", DType::kBF16, 2}, ExactCase{"base", DType::kF16, 4},
                    ExactCase{"biases", DType::kBF16, 2}, ExactCase{"wide_heads", DType::kF16, 2},
                    ExactCase{"sharded", DType::kBF16, 4},
                    ExactCase{"mha_tied/model-f16.gguf", DType::kBF16, 2},
                    ExactCase{"base/model-q4_1.gguf", DType::kBF16, 2}),
    [](const auto& i) {
      std::string name =
          fmt::format("{}_{}_{}", i.param.model, deepinfer::info(i.param.activation).name, i.param.ranks);
      for (char& c : name)
        if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
      return name;
    });

struct FormatCase {
  std::string name, model, online;
};

std::vector<FormatCase> formats() {
  std::vector<FormatCase> all = {{"online_fp8", "base", "fp8"},
                                 {"online_int4", "base", "int4"},
                                 {"q4_1", "base/model-q4_1.gguf", ""},
                                 {"f16", "mha_tied/model-f16.gguf", ""}};
  for (const auto& entry : fs::directory_iterator(path_of("").parent_path().parent_path())) {
    const std::string name = entry.path().filename();
    if (name.starts_with("quant_")) all.push_back({name, "../" + name, ""});
  }
  return all;
}

class FormatRanks : public testing::TestWithParam<FormatCase> {};

// Against one device: what differs is the order of sums, and what of that turns a rounding to BF16 (2^-9 of
// a value, of which a row has as many as the two layers have steps): 1% of the norm is far above both. With
// FP8 activations are rounded too, by a scale that a token has for the columns of a rank: to 2^-4 of a value
// in each of eight products, anew.
TEST_P(FormatRanks, LogitsAreThoseOfOneDevice) {
  const FormatCase& c = GetParam();
  const double bound = c.name.find("fp8") == std::string::npos ? 0.01 : 0.15;
  RanksScene r{.scene = {.model = c.model}, .ranks = 1, .online = c.online};
  std::vector<std::map<int, std::vector<float>>> want;
  double most = 0;
  for (const int ranks : {1, 2, 4}) {
    r.ranks = ranks;
    fresh_cards(3, ranks);
    auto runner = try_ranks(r);
    if (ranks == 4 && !runner) break;  // some groups of columns cannot be cut so finely
    ASSERT_TRUE(runner) << runner.error().message;
    Feeder feeder(**runner, 4, 48, 7);
    for (size_t i = 0; i < 8; ++i) {
      const auto got = feeder.step(kPlan[i]);
      if (ranks == 1) {
        want.push_back(got);
        continue;
      }
      for (const auto& [sequence, logits] : got) {
        const double d = distance(logits, want[i].at(sequence));
        most = std::max(most, d);
        EXPECT_LT(d, bound) << ranks << " ranks, step " << i << ", sequence " << sequence;
      }
    }
  }
  std::printf("at most %.2e of the norm apart\n", most);
}

INSTANTIATE_TEST_SUITE_P(Formats, FormatRanks, testing::ValuesIn(formats()),
                         [](const auto& i) { return i.param.name; });

std::vector<EngineRequest> requests_of(std::mt19937_64& random, int count, int vocab) {
  const std::vector<int32_t> common = random_tokens(random, 36, vocab);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  std::vector<EngineRequest> requests;
  for (int i = 0; i < count; ++i) {
    EngineRequest r;
    r.prompt.assign(common.begin(), common.begin() + pick(0, 36));
    const std::vector<int32_t> own = random_tokens(random, pick(1, 12), vocab);
    r.prompt.insert(r.prompt.end(), own.begin(), own.end());
    r.sampling.temperature = i % 3 == 2 ? 0.8f : 0;
    r.sampling.seed = 100 + i;
    r.sampling.max_tokens = pick(3, 12);
    r.sampling.ignore_eos = true;
    r.sampling.logprobs = 2;
    if (i % 2 == 1) r.sampling.repetition_penalty = 1.3f;  // which counts the tokens on rank 0's card
    if (i % 4 == 0) r.sampling.prompt_logprobs = 1;
    if (i % 5 == 1) r.sampling.typical_p = 0.9f;
    requests.push_back(std::move(r));
  }
  return requests;
}

std::vector<Answer> answers_of(const RanksScene& r, const std::vector<EngineRequest>& requests) {
  auto runner = make_ranks(r);
  if (!runner) return std::vector<Answer>(requests.size());
  Engine engine(std::move(runner), {.max_num_batched_tokens = r.scene.tokens});
  return run_all(engine, requests);
}

// Two steps in flight, each fed from the device by the one before it; preempted, in company, from the cache,
// in pieces: greedy tokens are those of one device, as far as the gap of the first two is no tie.
TEST(RanksEmulated, TokensAreThoseOfOneDevice) {
  int same = 0, all = 0;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    RanksScene r{.scene = {.seed = seed}};
    r.scene.model = seed % 2 == 0 ? "base/model-q4_1.gguf" : "base";
    r.scene.eager = seed == 3;
    r.scene.library = seed == 4;
    r.scene.blocks = 14;
    constexpr int vocab = 320;
    if (seed >= 3) r.scene.logits_bytes = 2 * static_cast<size_t>(vocab) * sizeof(float);
    std::mt19937_64 random(seed);
    const auto requests = requests_of(random, 8, vocab);
    r.ranks = 1;
    const auto one = answers_of(r, requests);
    r.ranks = seed == 1 ? 4 : 2;
    const auto many = answers_of(r, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(fmt::format("request {}", i));
      const size_t n = static_cast<size_t>(requests[i].sampling.max_tokens);
      ASSERT_EQ(one[i].tokens.size(), n) << one[i].error;
      ASSERT_EQ(many[i].tokens.size(), n) << many[i].error;
      ASSERT_EQ(many[i].scores.size(), one[i].scores.size());
      for (size_t t = 1; t < one[i].scores.size(); ++t)
        EXPECT_NEAR(many[i].scores[t].logprob, one[i].scores[t].logprob, 0.02);
      for (size_t t = 0; t < n; ++t, ++all) {
        const OutputToken &a = one[i].tokens[t], &b = many[i].tokens[t];
        if (a.id != b.id) {
          // Only where a hair decides; what follows is another text.
          EXPECT_TRUE(requests[i].sampling.temperature > 0 || a.top[0].logprob - a.top[1].logprob < 0.02)
              << t;
          break;
        }
        EXPECT_NEAR(b.logprob, a.logprob, 0.02) << t;
        ++same;
      }
    }
  }
  std::printf("%d of %d tokens are the same\n", same, all);
  EXPECT_GT(same, all * 9 / 10);
}

// With gpu.deterministic two ranks are as one device: whatever runs beside.
TEST(RanksEmulated, DeterministicMeansTheSameTokensWhateverRunsBeside) {
  RanksScene r{.scene = {.deterministic = true}};
  std::mt19937_64 random(3);
  const auto requests = requests_of(random, 5, 320);
  const auto graphs = answers_of(r, requests);
  r.scene.eager = true;
  r.scene.seed = 2;
  r.scene.tokens = 9;
  r.scene.blocks = 14;
  const auto chunks = answers_of(r, requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_FALSE(graphs[i].tokens.empty()) << graphs[i].error;
    ASSERT_EQ(graphs[i].tokens.size(), chunks[i].tokens.size());
    for (size_t t = 0; t < graphs[i].tokens.size(); ++t) {
      EXPECT_EQ(graphs[i].tokens[t].id, chunks[i].tokens[t].id) << i;
      EXPECT_EQ(graphs[i].tokens[t].logprob, chunks[i].tokens[t].logprob) << i;
    }
  }
}

// What a decode step exchanges is in the graph: the last tokens, the embedding's rows, two sums a layer and
// the logits' columns of each other rank. Nothing else comes from the host than its block and the launch.
TEST(RanksEmulated, ADecodeStepIsAGraphARankWithItsSumsInIt) {
  const RanksScene r{.ranks = 4};
  const auto runner = make_ranks(r);
  ASSERT_TRUE(runner);
  Feeder feeder(*runner, 2, 40, 7);
  for (int i = 0; i < 3; ++i) feeder.step({1, 1});
  const auto before = emulation::machine_counts();
  feeder.step({1, 1});
  const auto after = emulation::machine_counts();
  EXPECT_EQ(after.graph_launches - before.graph_launches, 4 + 1);  // and rank 0's sampling
  EXPECT_EQ(after.exchanges - before.exchanges, 1 + 1 + 2 * 2 + 3);
}

TEST(RanksEmulated, BlocksAreTheLeastOfAllCardsAndMemoryIsOfAll) {
  RanksScene r;
  fresh_cards(1, 2);
  auto made = try_ranks(r);
  ASSERT_TRUE(made) << made.error().message;
  const HeldMemory both = (*made)->held_memory();
  EXPECT_EQ((*made)->info().num_blocks, r.scene.blocks);
  // Of two KV heads each rank has one, so its blocks are half as large.
  EXPECT_LT((*made)->measured(1).block_bytes, (*made)->measured(0).block_bytes);  // rank 0 counts tokens too
  EXPECT_EQ(both.cache, static_cast<int64_t>((*made)->measured(0).mapped + (*made)->measured(1).mapped));
  made->reset();
  EXPECT_EQ(emulation::machine_counts().live_allocations, 0);
}

}  // namespace
}  // namespace deepinfer::test
