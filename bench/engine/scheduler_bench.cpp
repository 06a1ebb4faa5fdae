// What a step costs on the host, without any model: plan and commit of N decoding sequences.
#include <benchmark/benchmark.h>

#include "engine/scheduler.h"

namespace deepinfer {
namespace {

SchedulerOptions options(int sequences, int in_flight) {
  SchedulerOptions o;
  o.device.groups = {KvGroupSpec{}};
  o.device.num_blocks = 200'000;
  o.device.num_slots = sequences;
  o.device.vocab_size = 50'000;
  o.device.max_model_len = 100'000;
  o.device.max_in_flight = in_flight;
  o.max_num_batched_tokens = 8192;
  return o;
}

// A full engine of `sequences` that decode without end; blocks fill, are hashed and published on the way.
void decode_step(benchmark::State& state) {
  const auto sequences = static_cast<int>(state.range(0));
  Scheduler scheduler(options(sequences, static_cast<int>(state.range(1))));
  std::vector<Emission> emissions;
  StepOutput output;
  auto commit = [&] {
    StepPlan& plan = *scheduler.oldest();
    size_t rows = 0;
    for (const PlannedRow& row : plan.rows) rows += row.room > 0;
    output.accepted.assign(rows, std::vector<OutputToken>(1));
    emissions.clear();
    scheduler.commit(plan, output, emissions);
    scheduler.clear_events();
  };
  // New sequences when the old ones come to 1,000 tokens, so that any number of steps can be measured.
  uint64_t request = 0;
  auto fill = [&] {
    while (scheduler.running() + scheduler.waiting() < sequences) {
      EngineRequest r{.prompt = std::vector<int32_t>(32, static_cast<int32_t>(request % 1000))};
      r.sampling.max_tokens = 968;
      for (auto& s : make_sequences(++request, r, {scheduler.max_len(), 16, true, {}}))
        scheduler.add(std::move(s));
    }
  };
  for (auto _ : state) {
    fill();
    while (scheduler.plan() != nullptr) {
    }
    commit();
    benchmark::DoNotOptimize(emissions.data());
  }
  state.counters["steps/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

void prompt_keys(benchmark::State& state) {
  EngineRequest r{.prompt = std::vector<int32_t>(static_cast<size_t>(state.range(0)), 7)};
  for (auto _ : state) benchmark::DoNotOptimize(make_sequences(1, r, {1'000'000, 16, true, {}}));
}

BENCHMARK(decode_step)
    ->ArgNames({"sequences", "in_flight"})
    ->ArgsProduct({{1, 32, 128, 512}, {1, 2}})
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(prompt_keys)->Arg(512)->Arg(100'000)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace deepinfer

BENCHMARK_MAIN();
