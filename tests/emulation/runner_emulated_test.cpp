// The whole way of a step on the emulated device: engine, scheduler, runner, graphs, the first kernel and the
// sampler, with a model that is a hash, so that any token computed from something wrong shows. Streams and
// threads interleave by the seed.
#include <gmock/gmock.h>

#include <cmath>
#include <random>

#include "backend/cuda_error.h"
#include "emulation/emulated_gpu.h"
#include "emulation/hash_model.h"
#include "engine/cuda_runner.h"
#include "engine/memory_plan.h"
#include "support/cpu_engine.h"

namespace deepinfer::test {
namespace {

using ::testing::HasSubstr;

struct Scene {
  HashModelOptions model;
  CudaRunnerOptions runner{.max_num_seqs = 6, .max_num_batched_tokens = 24, .max_model_len = 96};
  EngineOptions engine{.max_num_batched_tokens = 24};
  int64_t blocks = 60;
  uint64_t seed = 1;
  emulation::MachineConfig machine;
};

class RunnerTest : public ::testing::Test {
 protected:
  void TearDown() override { engine_.reset(); }

  std::unique_ptr<CudaRunner> make_runner(Scene& s) {
    emulation::reset_machine(s.machine);
    emulation::set_seed(s.seed);
    auto gpu = cuda::Gpu::open({});
    EXPECT_TRUE(gpu.ok());
    if (!s.runner.plan_cache) {
      s.runner.plan_cache = [&s](const MeasuredMemory& m) { return CachePlan{s.blocks, m.max_model_len}; };
    }
    auto runner = CudaRunner::create(std::move(*gpu), make_hash_model(s.model), s.runner);
    if (!runner) ADD_FAILURE() << runner.error().message;
    return runner ? std::move(*runner) : nullptr;
  }
  void start(Scene& s) {
    engine_.reset();
    auto runner = make_runner(s);
    ASSERT_TRUE(runner);
    engine_ = std::make_unique<Engine>(std::move(runner), s.engine);
  }

  static EngineRequest greedy(std::vector<int32_t> prompt, int max_tokens) {
    EngineRequest r{.prompt = std::move(prompt)};
    r.sampling.temperature = 0;
    r.sampling.max_tokens = max_tokens;
    return r;
  }
  static std::vector<int32_t> tokens_of(const Answer& a) {
    std::vector<int32_t> ids;
    for (const OutputToken& t : a.tokens) ids.push_back(t.id);
    return ids;
  }
  // Prompts that share beginnings, so that prefixes are found in the cache.
  static std::vector<EngineRequest> random_requests(std::mt19937_64& random, const Scene& s, int count) {
    auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
    std::vector<int32_t> common(40);
    for (int32_t& id : common) id = pick(0, s.model.vocab_size - 1);
    std::vector<EngineRequest> requests;
    for (int i = 0; i < count; ++i) {
      std::vector<int32_t> prompt(common.begin(), common.begin() + pick(0, 40));
      for (int n = pick(1, 20); n > 0; --n) prompt.push_back(pick(0, s.model.vocab_size - 1));
      requests.push_back(greedy(std::move(prompt), pick(1, 25)));
    }
    return requests;
  }
  void expect_oracle(const Scene& s, const std::vector<EngineRequest>& requests) {
    const std::vector<Answer> answers = run_all(*engine_, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(answers[i].error, "");
      EXPECT_EQ(tokens_of(answers[i]), hash_continuation(s.model, requests[i].prompt,
                                                         requests[i].sampling.max_tokens, s.engine.end_ids))
          << "seed " << s.seed << ", request " << i;
    }
  }

  std::unique_ptr<Engine> engine_;
};

TEST_F(RunnerTest, TokensAreTheModelsWhateverRunsBeside) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    Scene s{.seed = seed};
    std::mt19937_64 random(seed);
    s.runner.enforce_eager = seed % 4 == 0;
    if (seed % 3 == 0) s.runner.graph_sizes = {2, 3};
    if (seed % 2 == 0) s.model.window = 5 + static_cast<int>(seed);
    if (seed % 5 == 0) s.engine.end_ids = {3, 4, 5};
    if (seed % 6 >= 3)
      s.runner.logits_bytes = (seed % 3 + 1) * static_cast<size_t>(s.model.vocab_size) * sizeof(float);
    s.blocks = seed % 2 == 0 ? 22 : 11;  // some sequences are preempted
    start(s);
    expect_oracle(s, random_requests(random, s, 14));
    EXPECT_EQ(emulation::machine_counts().graph_launches > 0, !s.runner.enforce_eager);
  }
}

// A greedy answer, sent again as a prompt: each of its tokens is the most likely one. Chunks, pieces of
// logits and what runs beside change no bit.
TEST_F(RunnerTest, ScoresOfAPromptDoNotDependOnChunksAndPieces) {
  std::vector<std::vector<OutputToken>> first;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    Scene s{.seed = seed};
    if (seed % 2 == 0) s.engine.max_num_batched_tokens = s.runner.max_num_batched_tokens = 9;
    if (seed >= 3)
      s.runner.logits_bytes = (seed - 2) * static_cast<size_t>(s.model.vocab_size) * sizeof(float);
    s.runner.enforce_eager = seed == 4;
    std::mt19937_64 random(11);
    std::vector<EngineRequest> requests = random_requests(random, s, 8);
    std::vector<size_t> own;
    for (EngineRequest& r : requests) {
      own.push_back(r.prompt.size());
      const auto answer = hash_continuation(s.model, r.prompt, r.sampling.max_tokens, {});
      r.prompt.insert(r.prompt.end(), answer.begin(), answer.end());
      r.sampling.prompt_logprobs = static_cast<int>(r.prompt.size() % 4);
      r.sampling.max_tokens = r.prompt.size() % 2 == 0 ? 0 : 2;
    }
    requests.push_back(greedy({7}, 3));  // a prompt of one token has no scores
    requests.back().sampling.prompt_logprobs = 1;
    own.push_back(1);
    start(s);
    const std::vector<Answer> answers = run_all(*engine_, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", request " << i);
      ASSERT_EQ(answers[i].error, "");
      const std::vector<OutputToken>& scores = answers[i].scores;
      ASSERT_EQ(scores.size(), requests[i].prompt.size() - 1);
      EXPECT_EQ(answers[i].tokens.size(), static_cast<size_t>(requests[i].sampling.max_tokens));
      for (size_t t = own[i] - 1; t < scores.size(); ++t) EXPECT_EQ(scores[t].rank, 1) << "token " << t;
      if (seed == 1) {
        first.push_back(scores);
        continue;
      }
      for (size_t t = 0; t < scores.size(); ++t) {
        EXPECT_EQ(scores[t].id, requests[i].prompt[t + 1]);
        EXPECT_EQ(scores[t].rank, first[i][t].rank);
        EXPECT_EQ(scores[t].logprob, first[i][t].logprob);
        ASSERT_EQ(scores[t].top.size(), static_cast<size_t>(requests[i].sampling.prompt_logprobs));
        for (size_t k = 0; k < scores[t].top.size(); ++k)
          EXPECT_EQ(scores[t].top[k].token, first[i][t].top[k].token);
      }
    }
  }
}

TEST_F(RunnerTest, TablesThatNoDeltaReachesAreRefused) {
  emulation::reset_machine();
  auto gpu = cuda::Gpu::open({});
  ASSERT_TRUE(gpu.ok());
  CudaRunnerOptions options{.max_num_seqs = 40000, .max_num_batched_tokens = 64, .max_model_len = 1 << 20};
  options.plan_cache = [](const MeasuredMemory& m) { return CachePlan{60, m.max_model_len}; };
  const auto runner = CudaRunner::create(std::move(*gpu), make_hash_model({}), options);
  ASSERT_FALSE(runner.ok());
  EXPECT_EQ(runner.error().code, ErrorCode::kMemory);
  EXPECT_THAT(runner.error().message, HasSubstr("40000 sequences of 1048576 tokens"));
}

TEST_F(RunnerTest, AStepIsLaunchedBeforeTheHostHasSeenTheTokensBefore) {
  Scene s;
  auto runner = make_runner(s);
  ASSERT_TRUE(runner);
  EXPECT_EQ(runner->info().max_in_flight, 2);
  const std::vector<int32_t> prompt{5, 6, 7, 8, 9}, from_slot{kTokenFromSlot};
  const std::vector<std::vector<int32_t>> table{{3, 4, 5, 6}};
  std::vector<int32_t> got;
  auto launch = [&](uint64_t id, int32_t context, std::span<const int32_t> tokens) {
    Step step{.id = id};
    StepRow row{.sequence = 1, .slot = 2, .context_len = context, .tokens = tokens, .samples = true};
    row.block_table = table;
    row.sampling.temperature = 0;
    step.rows.push_back(row);
    runner->launch_forward(step);
    runner->launch_sample(step);
  };
  launch(1, 0, prompt);
  for (int i = 1; i <= 20; ++i) {
    launch(i + 1, static_cast<int32_t>(prompt.size()) + i - 1, from_slot);
    EXPECT_GT(emulation::machine_counts().pending, 0u);
    got.push_back(runner->wait(i).accepted.at(0).at(0).id);
  }
  (void)runner->wait(21);
  EXPECT_EQ(got, hash_continuation(s.model, prompt, 20));
}

// A grammar's mask is read when sampling is launched, not before; rows that pad, or that do not sample, draw
// nothing.
TEST_F(RunnerTest, MasksMayComeWhileForwardRuns) {
  Scene s;
  s.runner.graph_sizes = {4};
  auto runner = make_runner(s);
  ASSERT_TRUE(runner);
  const std::vector<std::vector<std::vector<int32_t>>> tables{{{3}}, {{4}}, {{5}}};
  std::vector<std::vector<int32_t>> ids{{1}, {2}, {3}};
  std::mt19937_64 random(3);
  std::uniform_int_distribution<int32_t> any(0, s.model.vocab_size - 1);
  for (int n = 0; n < 12; ++n) {
    std::vector<uint32_t> mask(2, 0);
    Step step{.id = static_cast<uint64_t>(n) + 1};
    for (int32_t i = 0; i < 3; ++i) {
      StepRow row{.sequence = static_cast<uint64_t>(i) + 1, .slot = i, .context_len = n};
      row.tokens = std::span(ids[i]).last(1);
      row.block_table = tables[i];
      row.samples = i != 1;
      row.sampling.temperature = 0;
      if (i == 2) row.sampling.mask = mask.data();
      step.rows.push_back(row);
    }
    runner->launch_forward(step);
    const int32_t allowed = any(random);
    mask[allowed / 32] |= 1u << allowed % 32;
    runner->launch_sample(step);
    std::fill(mask.begin(), mask.end(), ~0u);
    const StepOutput out = runner->wait(step.id);
    ASSERT_EQ(out.accepted.size(), 2u);
    EXPECT_EQ(out.accepted[0].at(0).id, hash_continuation(s.model, ids[0], 1)[0]);
    EXPECT_EQ(out.accepted[1].at(0).id, allowed);
    for (auto& sequence : ids) sequence.push_back(any(random));
  }
  EXPECT_GT(emulation::machine_counts().graph_launches, 0);
}

TEST_F(RunnerTest, NothingIsAllocatedPerStep) {
  Scene s;
  start(s);
  std::mt19937_64 random(5);
  const std::vector<EngineRequest> requests = random_requests(random, s, 12);
  expect_oracle(s, requests);
  const int64_t before = emulation::machine_counts().allocations;
  expect_oracle(s, requests);
  expect_oracle(s, random_requests(random, s, 12));
  EXPECT_EQ(emulation::machine_counts().allocations, before);
}

TEST_F(RunnerTest, LogprobsAreThoseOfTheLogits) {
  for (const bool eager : {false, true}) {
    Scene s;
    s.runner.enforce_eager = eager;
    start(s);
    std::vector<EngineRequest> requests;
    for (int i = 0; i < 5; ++i) {
      requests.push_back(greedy({i, 7, i + 3}, 8));
      requests.back().sampling.logprobs = i - 1;  // none, the token's, and up to three more
    }
    const std::vector<Answer> answers = run_all(*engine_, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      std::vector<int32_t> tokens = requests[i].prompt;
      for (const OutputToken& t : answers[i].tokens) {
        const std::vector<float> logits = hash_logits(s.model, tokens);
        double sum = 0;
        for (const float l : logits) sum += std::exp(static_cast<double>(l));
        ASSERT_EQ(static_cast<int>(t.top.size()), std::max(requests[i].sampling.logprobs, 0));
        if (requests[i].sampling.logprobs >= 0) {
          EXPECT_NEAR(t.logprob, logits[t.id] - std::log(sum), 1e-5);
        }
        for (const TokenLogprob& top : t.top)
          EXPECT_NEAR(top.logprob, logits[top.token] - std::log(sum), 1e-5);
        if (!t.top.empty()) EXPECT_EQ(t.top[0].token, t.id) << "greedy";
        tokens.push_back(t.id);
      }
      EXPECT_EQ(answers[i].tokens.size(), 8u);
    }
  }
}

// Penalties read the tokens that stand on the device, those in flight too.
TEST_F(RunnerTest, PenaltiesCountTokensThatTheHostHasNotSeen) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    Scene s{.seed = seed};
    s.model.vocab_size = 12;
    start(s);
    std::vector<EngineRequest> requests;
    for (int i = 0; i < 6; ++i) {
      requests.push_back(greedy({i, 2, 3}, 20));
      requests.back().sampling.frequency_penalty = 2.0f;
    }
    const std::vector<Answer> answers = run_all(*engine_, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      std::vector<int32_t> tokens = requests[i].prompt, counts(s.model.vocab_size);
      for (const OutputToken& t : answers[i].tokens) {
        std::vector<float> logits = hash_logits(s.model, tokens);
        for (int id = 0; id < s.model.vocab_size; ++id) logits[id] -= 2.0f * static_cast<float>(counts[id]);
        ASSERT_EQ(t.id, std::max_element(logits.begin(), logits.end()) - logits.begin()) << "request " << i;
        tokens.push_back(t.id);
        ++counts[t.id];
      }
      EXPECT_EQ(answers[i].tokens.size(), 20u) << answers[i].error;
    }
  }
}

// What the host makes of the tokens before (mirostat's mu, DRY, bad words), masks and the second graph of
// sampling: a request gives the same alone, without graphs, and among others that preempt it.
TEST_F(RunnerTest, LlamaSamplersGiveTheSameAloneAndAmongOthers) {
  Scene s;
  s.model.vocab_size = 40;
  std::vector<EngineRequest> requests;
  for (int i = 0; i < 8; ++i) {
    EngineRequest& r = requests.emplace_back(greedy({i, 2, 3, 2, 3}, 24));
    SamplingParams& p = r.sampling;
    p.temperature = i == 7 ? 0.0f : 1.3f;
    p.seed = 50 + i;
    if (i % 3 == 0) p.mirostat = 1 + i % 2, p.mirostat_tau = 2, p.mirostat_eta = 0.5f;
    if (i % 3 == 1) p.typical_p = 0.7f, p.xtc_probability = 0.5f, p.xtc_threshold = 0.05f;
    if (i % 3 == 2) p.top_n_sigma = 1.5f, p.dynatemp_range = 0.8f;
    if (i % 2 == 1) p.dry_multiplier = 2.0f, p.dry_allowed_length = 1;
    if (i == 4) p.allowed_token_ids = {3, 4, 5, 6, 7, 8, 30, 39};
    if (i == 4 || i == 5) p.bad_words = {{4, 5}, {6}, {7, 7, 8}};
  }
  std::vector<std::vector<int32_t>> alone;
  s.runner.enforce_eager = true;
  start(s);
  for (const EngineRequest& r : requests) {
    alone.push_back(tokens_of(run_all(*engine_, {r})[0]));
    EXPECT_EQ(alone.back().size(), 24u);
  }
  for (int32_t id : alone[4]) EXPECT_THAT(requests[4].sampling.allowed_token_ids, ::testing::Contains(id));
  for (const int i : {4, 5}) EXPECT_THAT(alone[i], ::testing::Not(::testing::Contains(6)));
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    Scene many{.model = s.model, .blocks = seed % 2 == 0 ? 8 : 60, .seed = seed};
    if (seed >= 3) many.runner.logits_bytes = 2 * 40 * sizeof(float);
    start(many);
    requests.push_back(greedy({9, 9}, 30));  // no such sampler
    const std::vector<Answer> answers = run_all(*engine_, requests);
    EXPECT_EQ(tokens_of(answers.back()), hash_continuation(s.model, {9, 9}, 30));
    requests.pop_back();
    for (size_t i = 0; i < requests.size(); ++i)
      EXPECT_EQ(tokens_of(answers[i]), alone[i]) << "seed " << seed << " request " << i << answers[i].error;
    if (seed % 2 == 0) EXPECT_GT(engine_->stats().preemptions, 0u);
    EXPECT_GT(emulation::machine_counts().graph_launches, 0);
  }
}

TEST_F(RunnerTest, LongListsOfBiasesMakeTheBlockLarger) {
  Scene s;
  s.model.vocab_size = 8000;
  start(s);
  std::vector<EngineRequest> requests{greedy({1, 2, 3}, 12), greedy({1, 2, 3}, 12), greedy({4, 5}, 12)};
  for (int32_t id = 0; id < 8000; id += 4) requests[2].sampling.logit_bias.push_back({id, -100.0f});
  auto run = [&] {
    const std::vector<Answer> answers = run_all(*engine_, requests);
    for (const int i : {0, 1})
      EXPECT_EQ(tokens_of(answers[i]), hash_continuation(s.model, requests[i].prompt, 12));
    return answers[2];
  };
  const Answer biased = run();
  ASSERT_EQ(biased.tokens.size(), 12u) << biased.error;
  for (const OutputToken& t : biased.tokens) EXPECT_NE(t.id % 4, 0);

  // No memory for a larger one: the newest request fails, the others go on. Then there is.
  for (int32_t id = 0; id < 8000; ++id)
    if (id % 4 != 0) requests[2].sampling.logit_bias.push_back({id, 0.0f});
  emulation::fail_allocation(0);
  EXPECT_THAT(run().error, HasSubstr("ran out of memory"));
  EXPECT_EQ(tokens_of(run()), tokens_of(biased));
}

TEST_F(RunnerTest, OutOfMemoryInFlightEndsOneSequenceOnly) {
  int failed = 0;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    Scene s{.seed = seed};
    s.runner.enforce_eager = seed % 4 != 0;
    int forwards = -1000;  // the engine's thread counts, after the trial steps
    const int at = static_cast<int>(3 * seed);
    s.model.before_forward = [&](const StepBatch&) {
      if (++forwards == at) throw cuda::CudaOutOfMemory("a library wanted memory");
    };
    start(s);
    forwards = 0;
    std::vector<EngineRequest> requests;
    for (int i = 0; i < 4; ++i) requests.push_back(greedy({i, i + 1, i + 2}, 40));
    const std::vector<Answer> answers = run_all(*engine_, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      const std::vector<int32_t> wanted = hash_continuation(s.model, requests[i].prompt, 40);
      if (answers[i].finish == FinishReason::kError) {
        ++failed;
        EXPECT_THAT(answers[i].error, HasSubstr("ran out of memory"));
        const std::vector<int32_t> got = tokens_of(answers[i]);
        EXPECT_TRUE(std::equal(got.begin(), got.end(), wanted.begin()));
      } else {
        EXPECT_EQ(tokens_of(answers[i]), wanted) << "seed " << seed << ", request " << i;
      }
    }
    expect_oracle(s, requests);
  }
  // A capture that finds no memory fails nobody: its step runs without a graph.
  EXPECT_EQ(failed, 6);
}

TEST_F(RunnerTest, AFaultOfOneStepEndsItsRequestsAndServingGoesOn) {
  Scene s;
  s.runner.enforce_eager = true;
  int forwards = -1000;
  s.model.before_forward = [&](const StepBatch& batch) {
    // The second request may come some steps after the first.
    if (batch.num_rows == 2 && ++forwards == 9) throw cuda::CudaError("invalid configuration", 9, false);
  };
  start(s);
  forwards = 0;
  const std::vector<EngineRequest> requests{greedy({1, 2}, 30), greedy({3, 4}, 30)};
  for (const Answer& a : run_all(*engine_, requests)) {
    EXPECT_EQ(a.finish, FinishReason::kError);
    EXPECT_THAT(a.error, HasSubstr("internal error"));
  }
  expect_oracle(s, requests);
}

TEST_F(RunnerTest, ABrokenContextEndsAllAndNothingHangs) {
  for (const bool eager : {true, false}) {
    for (const int at : {0, 1, 2, 7, 40}) {
      Scene s{.seed = static_cast<uint64_t>(at + 1)};
      s.runner.enforce_eager = eager;
      start(s);
      std::string told;
      engine_->on_device_lost([&](const std::string& why) { told = why; });
      emulation::fail_kernel(at);
      const std::vector<EngineRequest> requests{greedy({1, 2}, 30), greedy({3, 4}, 30)};
      for (const Answer& a : run_all(*engine_, requests)) {
        EXPECT_THAT(a.error, HasSubstr("started again"));  // ended, or refused when it came
      }
      const auto refused = engine_->submit(requests[0], [](const OutputEvent&) {});
      engine_->stop();
      EXPECT_THAT(told, HasSubstr("illegal"));
      EXPECT_FALSE(refused.ok());
    }
  }
}

TEST_F(RunnerTest, CancelledRequestsLeaveTheOthersAlone) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    Scene s{.blocks = 14, .seed = seed};
    start(s);
    std::mt19937_64 random(seed);
    std::vector<EngineRequest> requests = random_requests(random, s, 8);
    std::vector<uint64_t> noise;
    for (int i = 0; i < 8; ++i) {
      auto* engine = engine_.get();
      const auto id = engine_->submit(greedy({i, 1, i}, 60), [engine, seed](const OutputEvent& e) {
        if (e.tokens.empty() || e.tokens.back().id % static_cast<int>(2 + seed) != 0) return;
        engine->cancel(e.request);
      });
      ASSERT_TRUE(id.ok());
    }
    expect_oracle(s, requests);
  }
}

TEST_F(RunnerTest, MemoryIsMeasuredAndPlanned) {
  Scene s;
  s.runner.plan_cache = [](const MeasuredMemory& m) {
    EXPECT_EQ(m.total, size_t{1} << 30);
    EXPECT_EQ(m.others, 0u);
    EXPECT_GT(m.fixed, 0u);
    EXPECT_GT(m.mapped, 0u);
    EXPECT_GT(m.later_graphs, 0u);
    EXPECT_EQ(m.free + m.fixed + m.mapped + m.weights + m.step + m.graphs, m.total);
    return plan_cache(m, {.utilization = 0.5, .headroom = size_t{64} << 20});
  };
  auto runner = make_runner(s);
  ASSERT_TRUE(runner);
  const MeasuredMemory& m = runner->measured();
  const size_t cache = static_cast<size_t>(runner->info().num_blocks) * m.block_bytes;
  EXPECT_LE(cache + m.fixed + m.weights + m.graphs + m.later_graphs, m.total / 2);
  EXPECT_GT(cache, m.total / 4);
  EXPECT_EQ(runner->info().max_model_len, 96);
  EXPECT_FALSE(runner->info().touched_first);
  EXPECT_TRUE(runner->info().tracks_tokens);
}

// One step of `rows` sequences of one token each; `shaped`: with llama.cpp's samplers.
void decode(CudaRunner& runner, uint64_t id, int rows, bool shaped) {
  Step step{.id = id};
  const std::vector<int32_t> token{7};
  std::vector<std::vector<std::vector<int32_t>>> tables;
  for (int32_t i = 0; i < rows; ++i) tables.push_back({{i}});
  for (int32_t i = 0; i < rows; ++i) {
    StepRow row{.sequence = static_cast<uint64_t>(i) + 1, .slot = i, .tokens = token};
    row.block_table = tables[i];
    row.samples = true;
    if (shaped) row.sampling.typical_p = 0.5f;
    step.rows.push_back(row);
  }
  runner.launch_forward(step);
  runner.launch_sample(step);
  (void)runner.wait(id);
}

// The graphs that are captured after the cache was mapped take what was set aside for them.
TEST_F(RunnerTest, LaterGraphsTakeNoMoreThanWasLeftForThem) {
  Scene s{.machine = {.bytes_of_node = size_t{1} << 20}};
  s.runner.graph_sizes = {1, 2, 3, 5};
  auto runner = make_runner(s);
  ASSERT_TRUE(runner);
  const size_t before = runner->gpu().memory().free_bytes;
  uint64_t id = 0;
  for (int rows = 1; rows <= 6; ++rows)
    for (const bool shaped : {false, true})
      for (int i = 0; i < 3; ++i) decode(*runner, ++id, rows, shaped);
  const size_t taken = before - runner->gpu().memory().free_bytes;
  EXPECT_GT(taken, size_t{3} << 20) << "of three sizes";
  EXPECT_LE(taken, runner->measured().later_graphs);
  EXPECT_GT(emulation::machine_counts().graph_launches, 0);
}

// Code that a request is the first to need would be loaded into memory that the cache has by then.
TEST_F(RunnerTest, ScoresAndAllSamplersAreLoadedBeforeTheCacheIsPlanned) {
  for (const bool eager : {false, true})
    for (const int seqs : {1, 6}) {
      Scene s;
      s.runner.enforce_eager = eager;
      s.runner.max_num_seqs = seqs;
      size_t loaded = 0;
      s.runner.plan_cache = [&](const MeasuredMemory& m) {
        loaded = emulation::machine_counts().functions;
        return CachePlan{s.blocks, m.max_model_len};
      };
      start(s);
      std::vector<EngineRequest> requests;
      for (int i = 0; i < 4; ++i) {
        requests.push_back(greedy({i, 7, 3, 9, 1}, 6));
        if (i % 2 == 0) requests.back().sampling.prompt_logprobs = i;
        if (i >= 2) requests.back().sampling.temperature = 1, requests.back().sampling.typical_p = 0.5f;
      }
      for (const Answer& a : run_all(*engine_, requests)) EXPECT_EQ(a.tokens.size(), 6u) << a.error;
      EXPECT_GT(loaded, 0u);
      EXPECT_EQ(emulation::machine_counts().functions, loaded) << seqs << " sequences, eager " << eager;
    }
}

// A prompt of one of few sequences: the head's weight is read once for many of its tokens, as far as the
// memory for logits goes.
TEST_F(RunnerTest, ScoresComeInLargePieces) {
  for (const int rows_of_logits : {0, 4, 200}) {
    Scene s;
    s.runner = {.max_num_seqs = 1, .max_num_batched_tokens = 90, .max_model_len = 96, .enforce_eager = true};
    s.runner.logits_bytes = static_cast<size_t>(rows_of_logits * s.model.vocab_size) * sizeof(float);
    auto runner = make_runner(s);
    ASSERT_TRUE(runner);
    const std::vector<int32_t> prompt(90, 5);
    const std::vector<std::vector<int32_t>> table{{0, 1, 2, 3, 4, 5}};
    int64_t kernels[2] = {};
    for (const bool scored : {false, true}) {
      Step step{.id = scored ? 2u : 1u};
      StepRow row{.sequence = 1, .slot = 0, .tokens = prompt, .block_table = table};
      if (scored) row.targets = prompt;
      step.rows.push_back(row);
      const int64_t before = emulation::machine_counts().kernels;
      runner->launch_forward(step);
      runner->launch_sample(step);
      const StepOutput out = runner->wait(step.id);
      if (scored) EXPECT_EQ(out.scored.at(0).size(), prompt.size());
      kernels[scored ? 1 : 0] = emulation::machine_counts().kernels - before;
    }
    // Of each piece its logits and its scores.
    const int pieces = rows_of_logits == 4 ? 23 : 1;
    EXPECT_EQ(kernels[1] - kernels[0], 2 * pieces) << rows_of_logits;
  }
}

TEST_F(RunnerTest, ACardThatIsTooSmallIsAnErrorWithNumbers) {
  for (const size_t total : {size_t{1} << 20, size_t{3} << 20, size_t{8} << 20}) {
    emulation::reset_machine({.total_memory = total});
    auto gpu = cuda::Gpu::open({});
    ASSERT_TRUE(gpu.ok());
    CudaRunnerOptions o{.max_num_seqs = 64, .max_num_batched_tokens = 4096, .max_model_len = 100000};
    o.plan_cache = [](const MeasuredMemory& m) {
      return plan_cache(m, {.utilization = 0.9, .auto_max_model_len = false});
    };
    const auto runner = CudaRunner::create(std::move(*gpu), make_hash_model({}), o);
    ASSERT_FALSE(runner.ok());
    EXPECT_EQ(runner.error().code, ErrorCode::kMemory);
    EXPECT_THAT(runner.error().message, HasSubstr("GPU 0"));
  }
}

TEST(GraphSizes, AreOrderedAndEndWithTheLargestStep) {
  EXPECT_THAT(graph_sizes({.max_num_seqs = 1}), ::testing::ElementsAre(1));
  EXPECT_THAT(graph_sizes({.max_num_seqs = 20}), ::testing::ElementsAre(1, 2, 4, 8, 16, 20));
  EXPECT_THAT(graph_sizes({.max_num_seqs = 8, .graph_sizes = {4, 2, 16}}), ::testing::ElementsAre(2, 4, 8));
  EXPECT_THAT(graph_sizes({.max_num_seqs = 8, .enforce_eager = true}), ::testing::IsEmpty());
  EXPECT_EQ(graph_sizes({.max_num_seqs = 512}).back(), 512);
}

}  // namespace
}  // namespace deepinfer::test
