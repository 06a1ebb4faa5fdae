// What counting costs, for each token, each request and each scrape of /metrics.
#include <benchmark/benchmark.h>

#include "engine/engine_metrics.h"
#include "server/metrics_text.h"

namespace deepinfer {
namespace {

constexpr int kContext = 8192;

std::unique_ptr<Sequence> sequence() {
  EngineRequest request{.prompt = std::vector<int32_t>(32, 1)};
  return std::move(make_sequences(1, request, {kContext, 16, false, {}}).front());
}

void record_token(benchmark::State& state) {
  EngineMetrics metrics(kContext);
  const auto s = sequence();
  Clock::Time now{};
  RequestTimes times = EngineMetrics::arrived(now, 1);
  metrics.scheduled(times, *s, true, now);
  for (auto _ : state) metrics.emitted(times, *s, 1, now += std::chrono::milliseconds(7));
  benchmark::DoNotOptimize(metrics.generation_tokens.value());
}

void record_request(benchmark::State& state) {
  EngineMetrics metrics(kContext);
  const auto s = sequence();
  Clock::Time now{};
  for (auto _ : state) {
    RequestTimes times = EngineMetrics::arrived(now, 1);
    metrics.scheduled(times, *s, true, now);
    metrics.emitted(times, *s, 1, now += std::chrono::milliseconds(7));
    metrics.ended(times, *s, Ending::kStop, now);
  }
  benchmark::DoNotOptimize(metrics.endings[0].value());
}

void write_histogram(benchmark::State& state) {
  const EngineMetrics metrics(kContext);
  for (auto _ : state) {
    server::MetricsText text;
    text.family("time_to_first_token_seconds", "histogram", "Time.");
    text.histogram({{"engine", "0"}, {"model_name", "smollm2-135m-instruct"}}, metrics.time_to_first_token);
    benchmark::DoNotOptimize(text.take());
  }
}

BENCHMARK(record_token);
BENCHMARK(record_request);
BENCHMARK(write_histogram);

}  // namespace
}  // namespace deepinfer

BENCHMARK_MAIN();
