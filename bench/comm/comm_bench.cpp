// Calls of ranks that are threads: microseconds a call (call_us: without the use of the values between
// calls), and the part of the machine's memory bandwidth (threads that copy buffers far larger than any
// cache) that an all-reduce moves its least possible bytes with.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <future>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/limits.h"
#include "comm/gloo.h"
#include "comm/local.h"

namespace deepinfer {
namespace {

constexpr int kWarm = 100;

using Ranks = std::vector<std::unique_ptr<Communicator>>;

Ranks local_ranks(int ranks) {
  return local_communicators(ranks, std::chrono::seconds(20));
}

// Over the loopback interface.
Ranks gloo_ranks(int ranks) {
  std::promise<uint16_t> port;
  const std::shared_future<uint16_t> known = port.get_future().share();
  Ranks all(ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      RendezvousOptions o{.rank = r, .size = ranks, .token = "a token of the benchmark"};
      if (r == 0) {
        o.on_listening = [&](uint16_t p) { port.set_value(p); };
      } else {
        o.port = known.get();
      }
      Result<Mesh> mesh = meet(o);
      DI_CHECK(mesh.ok(), "{}", mesh.error().message);
      auto made = gloo_communicator(std::move(*mesh), std::chrono::seconds(20));
      DI_CHECK(made.ok(), "{}", made.error().message);
      all[r] = std::move(*made);
    });
  }
  for (std::thread& t : threads) t.join();
  return all;
}

// One of several threads that do `work` of their rank as often as rank 0, which the benchmark times.
template <class Work>
void on_ranks(benchmark::State& state, int ranks, const Work& work, Ranks (*make)(int) = local_ranks) {
  const Ranks all = make(ranks);
  std::vector<std::thread> threads;
  for (int r = 1; r < ranks; ++r) {
    threads.emplace_back([c = all[r].get(), &work] {
      ask_for_short_turns();
      try {
        for (;;) work(*c);
      } catch (const CommError&) {  // rank 0 has measured enough
      }
    });
  }
  for (int i = 0; i < kWarm; ++i) work(*all[0]);
  for (auto _ : state) work(*all[0]);
  all[0]->abort("done");
  for (std::thread& t : threads) t.join();
}

double copy_bandwidth(int threads) {
  constexpr size_t kBytes = size_t{128} << 20;
  constexpr int kRounds = 6;
  std::vector<std::thread> all;
  std::vector<std::vector<std::byte>> from(threads, std::vector<std::byte>(kBytes, std::byte{1})), to = from;
  const auto start = std::chrono::steady_clock::now();
  for (int t = 0; t < threads; ++t) {
    all.emplace_back([&, t] {
      for (int i = 0; i < kRounds; ++i) {
        std::memcpy(to[t].data(), from[t].data(), kBytes);
        benchmark::DoNotOptimize(to[t].data());
        benchmark::ClobberMemory();
      }
    });
  }
  for (std::thread& t : all) t.join();
  const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return 2.0 * kBytes * kRounds * threads / s;  // read and written
}

// Writes a rank's part and reads the sum, as the layers around an all-reduce do: without it every rank would
// find in its cache what it wrote itself the call before.
float use(std::vector<float>& values, float seed) {
  float sum = 0;
  for (const float v : values) sum = v > sum ? v : sum;
  for (float& v : values) v = seed;
  benchmark::DoNotOptimize(values.data());
  benchmark::ClobberMemory();
  return sum;
}

void all_reduce(benchmark::State& state) {
  const int ranks = static_cast<int>(state.range(0));
  const size_t bytes = state.range(1);
  const size_t n = bytes / sizeof(float);
  std::vector<float> alone(n);
  auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  double use_s = 1;
  for (int batch = 0; batch < 8; ++batch) {  // the best: others use the machine too
    constexpr int kRounds = 50;
    start = std::chrono::steady_clock::now();
    for (int i = 0; i < kRounds; ++i) benchmark::DoNotOptimize(use(alone, 1.0f));
    use_s = std::min(use_s, seconds() / kRounds);
  }
  thread_local std::vector<float> values;
  start = std::chrono::steady_clock::now();
  on_ranks(state, ranks, [&](Communicator& c) {
    if (values.size() != n) values.assign(n, 0.0f);
    c.all_reduce(values);
    benchmark::DoNotOptimize(use(values, 1.0f));
  });
  const double call_s = seconds() / (kWarm + static_cast<double>(state.iterations())) - use_s;
  // Each rank's values are read once and written once.
  const double moved = 2.0 * static_cast<double>(ranks) * static_cast<double>(bytes);
  static const double memory = copy_bandwidth(ranks);
  state.counters["call_us"] = call_s * 1e6;
  state.counters["of_memory"] = moved / call_s / memory;
  state.counters["memory_GB/s"] = memory * 1e-9;
}

void all_gather(benchmark::State& state) {
  const int ranks = static_cast<int>(state.range(0));
  const size_t bytes = state.range(1);
  thread_local std::vector<std::byte> mine, all;
  on_ranks(state, ranks, [&](Communicator& c) {
    mine.resize(bytes);
    all.resize(bytes * ranks);
    c.all_gather(mine, all);
  });
}

void broadcast(benchmark::State& state) {
  const size_t bytes = state.range(1);
  thread_local std::vector<std::byte> data;
  on_ranks(state, static_cast<int>(state.range(0)), [&](Communicator& c) {
    data.resize(bytes);
    c.broadcast(data, 0);
  });
}

void ping_pong(benchmark::State& state) {
  const size_t bytes = state.range(1);
  thread_local std::vector<std::byte> data;
  on_ranks(state, 2, [&](Communicator& c) {
    data.resize(bytes);
    if (c.rank() == 0) {
      c.send(data, 1);
      c.receive(data, 1);
    } else {
      c.receive(data, 0);
      c.send(data, 0);
    }
  });
}

void gloo_all_reduce(benchmark::State& state) {
  if (!has_gloo()) return state.SkipWithError("this build has no Gloo");
  const size_t n = state.range(1) / sizeof(float);
  thread_local std::vector<float> values;
  on_ranks(
      state, static_cast<int>(state.range(0)),
      [&](Communicator& c) {
        values.resize(n);
        c.all_reduce(values);
      },
      gloo_ranks);
}

BENCHMARK(all_reduce)
    ->ArgsProduct({{2}, {64, 2304, 8192, 16384, 32768, 65536, 1 << 18, 1 << 20, 1 << 23}})
    ->UseRealTime();
BENCHMARK(all_gather)->ArgsProduct({{2}, {64, 8192, 1 << 20}})->UseRealTime();
BENCHMARK(broadcast)->ArgsProduct({{2}, {64, 8192, 1 << 20}})->UseRealTime();
BENCHMARK(ping_pong)->ArgsProduct({{2}, {64, 8192, 1 << 20, 1 << 22}})->UseRealTime();
BENCHMARK(gloo_all_reduce)->ArgsProduct({{2}, {64, 2304, 8192, 65536, 1 << 20}})->UseRealTime();

}  // namespace
}  // namespace deepinfer

BENCHMARK_MAIN();
