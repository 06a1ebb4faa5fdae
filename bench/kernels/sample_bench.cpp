// Nanoseconds a row of sampling, one thread: logits as a language model has them, by vocabulary and settings.
#include <benchmark/benchmark.h>

#include <random>
#include <utility>
#include <vector>

#include "base/check.h"
#include "ops/ops.h"

namespace deepinfer {
namespace {

std::vector<float> language_logits(int64_t vocab) {
  std::mt19937 random(7);
  std::normal_distribution<float> base(0, 2), peak(12, 3);
  std::vector<float> x(vocab);
  for (float& v : x) v = base(random);
  for (int i = 0; i < 100; ++i) x[random() % vocab] = peak(random);
  return x;
}

void run(benchmark::State& state, SampleRow row, bool penalties) {
  const int64_t vocab = state.range(0);
  ThreadPool pool(1);
  Result<Buffer> memory = Buffer::allocate(size_t{64} << 20);
  DI_CHECK(memory.ok(), "{}", memory.error().message);
  Arena arena(std::move(*memory));
  Context context{.pool = &pool, .scratch = &arena};
  const std::vector<float> original = language_logits(vocab);
  std::vector<float> logits = original;
  std::vector<int32_t> prompt(512), output(128);
  std::mt19937 random(8);
  for (auto* list : {&prompt, &output})
    for (int32_t& token : *list) token = static_cast<int32_t>(random() % vocab);
  if (penalties) {
    row.prompt = prompt;
    row.output = output;
  }
  int32_t token = 0;
  float logprob = 0, surprise = 0, top_logprob[20];
  int32_t top_token[20];
  SampleParams p{.logits = make_tensor(logits.data(), DType::kF32, {1, vocab}),
                 .rows = {&row, 1},
                 .token = make_tensor(&token, DType::kI32, {1}),
                 .logprob = make_tensor(&logprob, DType::kF32, {1}),
                 .top_token = make_tensor(top_token, DType::kI32, {1, 20}),
                 .top_logprob = make_tensor(top_logprob, DType::kF32, {1, 20}),
                 .surprise = make_tensor(&surprise, DType::kF32, {1})};
  for (auto _ : state) {
    ++row.position;
    ops::sample(context, p);
    benchmark::DoNotOptimize(token);
    if (!penalties) continue;
    for (const auto* list : {&prompt, &output})  // as a forward pass would write them again
      for (const int32_t t : *list) logits[t] = original[t];
  }
}

void vocabularies(benchmark::internal::Benchmark* b) {
  b->Arg(49152)->Arg(128256);
}

BENCHMARK_CAPTURE(run, greedy, SampleRow{.temperature = 0}, false)->Apply(vocabularies);
BENCHMARK_CAPTURE(run, temperature, SampleRow{.temperature = 0.8f}, false)->Apply(vocabularies);
BENCHMARK_CAPTURE(run, top_p, SampleRow{.temperature = 0.8f, .top_p = 0.95f}, false)->Apply(vocabularies);
BENCHMARK_CAPTURE(run, top_p_hot, SampleRow{.temperature = 5.0f, .top_p = 0.95f}, false)->Apply(vocabularies);
BENCHMARK_CAPTURE(run, top_k_top_p, SampleRow{.temperature = 0.8f, .top_p = 0.95f, .top_k = 40}, false)
    ->Apply(vocabularies);
BENCHMARK_CAPTURE(run, min_p, SampleRow{.temperature = 0.8f, .min_p = 0.05f}, false)->Apply(vocabularies);
BENCHMARK_CAPTURE(run, penalties,
                  SampleRow{.temperature = 0.8f,
                            .presence_penalty = 0.5f,
                            .frequency_penalty = 0.2f,
                            .repetition_penalty = 1.1f},
                  true)
    ->Apply(vocabularies);
BENCHMARK_CAPTURE(run, greedy_logprobs_20, SampleRow{.temperature = 0, .logprobs = 20}, false)
    ->Apply(vocabularies);

BENCHMARK_CAPTURE(run, typical_p, SampleRow{.typical_p = 0.9f}, false)->Apply(vocabularies);
BENCHMARK_CAPTURE(run, top_n_sigma, SampleRow{.top_n_sigma = 1.0f}, false)->Apply(vocabularies);
BENCHMARK_CAPTURE(run, xtc, SampleRow{.xtc_probability = 0.5f}, false)->Apply(vocabularies);
BENCHMARK_CAPTURE(run, dynatemp, SampleRow{.dynatemp_range = 0.5f}, false)->Apply(vocabularies);
BENCHMARK_CAPTURE(run, mirostat_1, SampleRow{.mirostat = 1, .mirostat_mu = 8}, false)->Apply(vocabularies);
BENCHMARK_CAPTURE(run, mirostat_2, SampleRow{.mirostat = 2, .mirostat_mu = 8}, false)->Apply(vocabularies);

}  // namespace
}  // namespace deepinfer

BENCHMARK_MAIN();
