// What a span costs: without a profiler, while nothing is recorded, while it is, and when the buffer is full.
#include <benchmark/benchmark.h>

#include "profile/profiler.h"

namespace deepinfer {
namespace {

void spans(benchmark::State& state, Profiler* profiler) {
  for (auto _ : state) {
    const Span span(profiler, Phase::kQkv, 1, 576, 960);
    benchmark::DoNotOptimize(profiler);
  }
}

void without(benchmark::State& state) {
  spans(state, nullptr);
}

void off(benchmark::State& state) {
  Profiler profiler({});
  spans(state, &profiler);
}

void on(benchmark::State& state) {
  Profiler profiler({.max_events = 100'000'000});
  (void)profiler.start();
  spans(state, &profiler);
}

void full(benchmark::State& state) {
  Profiler profiler({.max_events = 1});
  (void)profiler.start();
  spans(state, &profiler);
}

BENCHMARK(without);
BENCHMARK(off);
BENCHMARK(on)->Iterations(10'000'000);
BENCHMARK(full);

}  // namespace
}  // namespace deepinfer

BENCHMARK_MAIN();
