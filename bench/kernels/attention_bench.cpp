// Attention of one layer over the paged cache: a prompt, one decode row, a batch of decode rows. SmolLM2's
// heads (9 over 3 of 64); caches of F16, of int8 with a scale for each position, of e4m3.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "backend/cpu/kernels.h"
#include "ops/ops.h"

namespace deepinfer {
namespace {

constexpr int kHeads = 9, kKvHeads = 3, kDim = 64;

void attention(benchmark::State& state) {
  const auto rows = static_cast<int32_t>(state.range(0)), tokens = static_cast<int32_t>(state.range(1)),
             context_len = static_cast<int32_t>(state.range(2));
  constexpr DType kTypes[] = {DType::kF16, DType::kI8, DType::kF8E4M3};
  const DType dtype = kTypes[state.range(4)];
  ThreadPool pool(static_cast<int>(state.range(3)));
  Arena arena(std::move(Buffer::allocate(size_t{64} << 20)).value());
  Context context{.pool = &pool, .scratch = &arena};
  const int32_t blocks = (context_len + tokens + 15) / 16;
  const std::vector<KvGroupSpec> groups = {
      {.num_layers = 1, .kv_heads = kKvHeads, .head_dim_k = kDim, .head_dim_v = kDim, .dtype = dtype}};
  Buffer memory = std::move(Buffer::allocate(KvCache::block_bytes(groups, 16) * blocks * rows)).value();
  for (size_t i = 0; i < memory.size(); ++i)
    memory.data()[i] = static_cast<std::byte>(i % 2 == 0 ? i * 7 : 0x38);
  const KvCache cache(groups, 16, blocks * rows, memory.data(), {});

  const int32_t all = rows * tokens;
  std::vector<int32_t> slot(rows), start = {0}, length(rows, context_len), id(all), position, table;
  for (int32_t r = 0; r < rows; ++r) {
    start.push_back(start.back() + tokens);
    for (int32_t t = 0; t < tokens; ++t) position.push_back(context_len + t);
    for (int32_t b = 0; b < blocks; ++b) table.push_back(r * blocks + b);
  }
  const BlockTable tables[] = {{table, blocks}};
  const StepBatch batch{.num_rows = rows,
                        .num_tokens = all,
                        .row_slot = slot,
                        .row_start = start,
                        .context_len = length,
                        .token = id,
                        .position = position,
                        .block_table = tables};
  std::vector<float> q(size_t(all) * kHeads * kDim, 0.01f), out(q.size());
  const auto view = [&](std::vector<float>& v) {
    return make_tensor(v.data(), DType::kF32, {all, kHeads * kDim});
  };
  const AttentionParams p{.batch = &batch,
                          .q = view(q),
                          .kv = cache.layer(0, 0),
                          .heads = kHeads,
                          .scale = 0.125f,
                          .out = view(out)};
  for (auto _ : state) ops::attention(context, p);
  double macs = 0;
  for (const int32_t at : position) macs += 2.0 * (at + 1) * kHeads * kDim;
  state.counters["GMAC/s"] = benchmark::Counter(macs * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.SetLabel(std::string(cpu::kernels().name) + " " + std::string(info(dtype).name));
}

BENCHMARK(attention)
    ->ArgNames({"rows", "tokens", "context", "threads", "cache"})
    ->ArgsProduct({{1}, {512}, {0}, {1, 2}, {0, 1, 2}})
    ->ArgsProduct({{1}, {512}, {1536}, {2}, {0, 1, 2}})
    ->ArgsProduct({{1}, {1}, {255}, {1, 2}, {0, 1, 2}})
    ->ArgsProduct({{1}, {1}, {2047, 8191}, {1, 2}, {0, 1, 2}})
    ->ArgsProduct({{32}, {1}, {255, 2047}, {2}, {0, 1, 2}})
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

}  // namespace
}  // namespace deepinfer

BENCHMARK_MAIN();
