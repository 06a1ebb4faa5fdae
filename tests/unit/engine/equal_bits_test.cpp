// On the CPU nothing that happens beside a request changes a bit of its answer: batch, chunks, prefix hits,
// preemption, threads. Log-probabilities of the most likely tokens are compared as bits.
#include <gtest/gtest.h>

#include <bit>
#include <random>

#include "engine/engine_metrics.h"
#include "support/cpu_engine.h"

namespace deepinfer {
namespace {

const std::filesystem::path kModel = std::filesystem::path(DI_SOURCE_DIR) / "tests/golden/tiny_llama/base";
constexpr int kVocab = 320;

CpuEngineOptions options(int threads = 1) {
  return {
      .threads = threads,
      .runner = {.max_num_seqs = 16, .max_num_batched_tokens = 512, .max_model_len = 256, .num_blocks = 400},
      .engine = {.max_num_batched_tokens = 512, .enable_prefix_caching = false}};
}

// Prompts of many lengths; some share a beginning. Greedy and sampled, with and without penalties.
std::vector<EngineRequest> requests() {
  std::mt19937 random(7);
  auto tokens = [&random](int n) {
    std::vector<int32_t> t(n);
    for (int32_t& x : t) x = static_cast<int32_t>(random() % kVocab);
    return t;
  };
  const std::vector<int32_t> shared = tokens(70);
  std::vector<EngineRequest> all;
  for (const int n : {1, 2, 15, 16, 17, 31, 40, 64, 90, 100, 3, 50}) {
    EngineRequest r{.prompt = n % 2 == 0 ? shared : std::vector<int32_t>{}};
    const std::vector<int32_t> own = tokens(n);
    r.prompt.insert(r.prompt.end(), own.begin(), own.end());
    r.sampling = {.temperature = n % 3 == 0 ? 0.0f : 0.9f,
                  .seed = n,
                  .max_tokens = 20 + n % 7,
                  .ignore_eos = true,
                  .logprobs = 5};
    if (n % 5 == 0) r.sampling.repetition_penalty = 1.2f;
    if (n % 4 == 0) r.sampling.presence_penalty = 0.5f;
    all.push_back(std::move(r));
  }
  return all;
}

void expect_equal(const std::vector<Answer>& want, const std::vector<Answer>& got) {
  ASSERT_EQ(want.size(), got.size());
  for (size_t i = 0; i < want.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(got[i].error, "");
    ASSERT_EQ(want[i].tokens.size(), got[i].tokens.size());
    for (size_t t = 0; t < want[i].tokens.size(); ++t) {
      const OutputToken &a = want[i].tokens[t], &b = got[i].tokens[t];
      ASSERT_EQ(a.id, b.id) << "token " << t;
      ASSERT_EQ(std::bit_cast<uint32_t>(a.logprob), std::bit_cast<uint32_t>(b.logprob)) << "token " << t;
      for (size_t k = 0; k < a.top.size(); ++k) {
        ASSERT_EQ(a.top[k].token, b.top[k].token);
        ASSERT_EQ(std::bit_cast<uint32_t>(a.top[k].logprob), std::bit_cast<uint32_t>(b.top[k].logprob));
      }
    }
  }
}

std::unique_ptr<Engine> make(const CpuEngineOptions& o) {
  auto engine = make_cpu_engine(kModel, o);
  if (!engine) ADD_FAILURE() << engine.error().message;
  return engine ? std::move(*engine) : nullptr;
}

// One after another, in one piece, on one thread: what all others must equal.
std::vector<Answer> reference(DType kv_dtype = DType::kF16) {
  CpuEngineOptions o = options();
  o.runner.kv_dtype = kv_dtype;
  const auto engine = make(o);
  std::vector<Answer> answers;
  for (const EngineRequest& r : requests()) answers.push_back(run_all(*engine, {r})[0]);
  for (const Answer& a : answers) EXPECT_EQ(a.tokens.empty(), false) << a.error;
  return answers;
}

TEST(EqualBits, Batched) {
  const auto engine = make(options());
  expect_equal(reference(), run_all(*engine, requests()));
}

TEST(EqualBits, Threads) {
  for (const int threads : {2, 3}) {
    const auto engine = make(options(threads));
    expect_equal(reference(), run_all(*engine, requests()));
  }
}

TEST(EqualBits, Chunked) {
  for (const int budget : {17, 32, 45}) {
    CpuEngineOptions o = options(2);
    o.engine.max_num_batched_tokens = o.runner.max_num_batched_tokens = budget;
    const auto engine = make(o);
    expect_equal(reference(), run_all(*engine, requests()));
  }
}

TEST(EqualBits, PrefixHits) {
  CpuEngineOptions o = options();
  o.engine.enable_prefix_caching = true;
  const auto engine = make(o);
  expect_equal(reference(), run_all(*engine, requests()));
  const std::vector<Answer> second = run_all(*engine, requests());
  expect_equal(reference(), second);
  int cached = 0;
  for (const Answer& a : second) cached += a.cached_tokens;
  EXPECT_GT(cached, 300) << "the second run must hit what the first one left";
}

TEST(EqualBits, Preempted) {
  CpuEngineOptions o = options();
  o.runner.num_blocks = 20;  // 320 positions for 12 sequences that need some 1100
  const auto engine = make(o);
  expect_equal(reference(), run_all(*engine, requests()));
  EXPECT_GT(engine->stats().preemptions, 0u);
}

// Guessed tokens that are verified together, alone and beside others. Of two tokens many are guessed right.
TEST(EqualBits, Drafted) {
  for (const int budget : {512, 20}) {
    CpuEngineOptions o = options(2);
    o.engine.max_num_batched_tokens = o.runner.max_num_batched_tokens = budget;
    o.engine.speculation = {.num_tokens = 8, .lookup_min = 1, .lookup_max = 4};
    const auto engine = make(o);
    std::vector<EngineRequest> wanted = requests();
    for (EngineRequest& r : wanted) r.sampling.allowed_token_ids = {5, 77};
    std::vector<Answer> want, alone;
    {
      const auto plain = make(options());
      for (const EngineRequest& r : wanted) want.push_back(run_all(*plain, {r})[0]);
      EXPECT_EQ(plain->metrics().draft_tokens.value(), 0u);
    }
    for (const EngineRequest& r : wanted) alone.push_back(run_all(*engine, {r})[0]);
    expect_equal(want, alone);
    expect_equal(want, run_all(*engine, wanted));
    EXPECT_GT(engine->metrics().accepted_draft_tokens.value(), 20u);
  }
}

// The same with two ranks, whose sums have an order of their own; against one another, as above.
TEST(EqualBits, Ranks) {
  CpuEngineOptions o = options(2);
  o.ranks = 2;
  std::vector<Answer> want;
  {
    const auto engine = make(o);
    for (const EngineRequest& r : requests()) want.push_back(run_all(*engine, {r})[0]);
  }
  o.threads = 3;
  o.engine.enable_prefix_caching = true;
  o.engine.speculation = {.num_tokens = 8, .lookup_min = 1, .lookup_max = 4};
  for (const int budget : {512, 37}) {
    o.engine.max_num_batched_tokens = o.runner.max_num_batched_tokens = budget;
    if (budget == 37) o.runner.num_blocks = 20;
    const auto engine = make(o);
    for (int round = 0; round < 2; ++round) expect_equal(want, run_all(*engine, requests()));
    if (budget == 37) EXPECT_GT(engine->stats().preemptions, 0u);
  }
  const std::vector<Answer> one = reference();
  int same = 0;
  for (size_t i = 0; i < one.size(); ++i) same += one[i].tokens[0].id == want[i].tokens[0].id;
  EXPECT_GE(same, static_cast<int>(one.size()) - 1) << "sampled from almost the same probabilities";
}

// All of this at once, with a cache of 8 bits.
TEST(EqualBits, CachesOfEightBits) {
  std::vector<std::vector<Answer>> wanted;
  for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
    wanted.push_back(reference(dtype));
    for (const int budget : {512, 37}) {
      CpuEngineOptions o = options(budget == 37 ? 2 : 1);
      o.runner.kv_dtype = dtype;
      o.engine.max_num_batched_tokens = o.runner.max_num_batched_tokens = budget;
      o.engine.enable_prefix_caching = true;
      if (budget == 37) o.runner.num_blocks = 20;
      const auto engine = make(o);
      expect_equal(wanted.back(), run_all(*engine, requests()));
      const std::vector<Answer> second = run_all(*engine, requests());
      expect_equal(wanted.back(), second);
      int cached = 0;
      for (const Answer& a : second) cached += a.cached_tokens;
      EXPECT_GT(cached, 0);
      if (budget == 37) EXPECT_GT(engine->stats().preemptions, 0u);
    }
  }
  EXPECT_NE(wanted[0][0].tokens[0].logprob, wanted[1][0].tokens[0].logprob) << "the type must matter";
}

// What a request generates, sent again as a prompt, is as likely as it was, in chunks or not, alone or not,
// whatever is cached, with or without an answer behind it.
TEST(EqualBits, ScoresOfAPromptAreThoseOfItsGeneration) {
  std::vector<Answer> generated;
  std::vector<EngineRequest> again;
  for (EngineRequest& r : requests()) {
    r.sampling.repetition_penalty = 1;
    r.sampling.presence_penalty = 0;
    generated.push_back(run_all(*make(options()), {r})[0]);
    again.push_back(r);
    for (const OutputToken& t : generated.back().tokens) again.back().prompt.push_back(t.id);
    again.back().sampling.prompt_logprobs = 5;
    again.back().sampling.max_tokens = static_cast<int>(again.size() % 3);
  }
  for (const int budget : {512, 37}) {
    CpuEngineOptions o = options(budget == 37 ? 2 : 1);
    o.runner.max_num_batched_tokens = o.engine.max_num_batched_tokens = budget;
    o.engine.enable_prefix_caching = budget == 37;
    const auto engine = make(o);
    for (int round = 0; round < 2; ++round) {  // the second finds all in the cache, and must not use it
      const std::vector<Answer> answers = run_all(*engine, again);
      for (size_t i = 0; i < answers.size(); ++i) {
        SCOPED_TRACE(i);
        const std::vector<OutputToken>& want = generated[i].tokens;
        ASSERT_EQ(answers[i].error, "");
        EXPECT_EQ(answers[i].tokens.size(), static_cast<size_t>(again[i].sampling.max_tokens));
        ASSERT_EQ(answers[i].scores.size(), again[i].prompt.size() - 1);
        const size_t first = answers[i].scores.size() - want.size();
        for (size_t t = 0; t < want.size(); ++t) {
          const OutputToken& got = answers[i].scores[first + t];
          ASSERT_EQ(got.id, want[t].id);
          ASSERT_EQ(std::bit_cast<uint32_t>(got.logprob), std::bit_cast<uint32_t>(want[t].logprob));
          ASSERT_EQ(got.top.size(), want[t].top.size());
          for (size_t k = 0; k < got.top.size(); ++k) {
            ASSERT_EQ(got.top[k].token, want[t].top[k].token);
            if (got.top[k].token == got.id) EXPECT_EQ(got.rank, static_cast<int32_t>(k) + 1);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace deepinfer
