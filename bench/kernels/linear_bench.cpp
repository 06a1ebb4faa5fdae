// The linear layers of a model as the engine runs them (norm, quantization and epilogues included), for a
// number of columns: tokens per second, GMAC/s and GB/s of packed weights. SmolLM2-135M's shapes.
//
//   linear_bench --benchmark_filter=Q4_1 --benchmark_repetitions=5
//   DEEPINFER_CPU_ISA=avx2 linear_bench
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/kernels.h"
#include "base/check.h"
#include "ops/ops.h"

namespace deepinfer {
namespace {

constexpr int64_t kHidden = 576, kQkv = 960, kFfn = 1536, kVocab = 49152;
constexpr int kLayers = 30;

struct Layer {
  LinearWeight qkv, o, gate_up, down;
};

// Weights of one type; random bytes, except for scales.
struct Network {
  Network(DType dtype, int threads)
      : pool(threads), arena(std::move(Buffer::allocate(size_t{512} << 20)).value()) {
    context.pool = &pool;
    context.scratch = &arena;
    for (int i = 0; i < kLayers; ++i)
      layers.push_back({make(dtype, kQkv, kHidden, 1), make(dtype, kHidden, kHidden, 1),
                        make(dtype, kFfn, kHidden, 2), make(dtype, kHidden, kFfn, 1)});
    head = make(dtype == DType::kQ4_1 || dtype == DType::kQ4_0 ? DType::kQ8_0 : dtype, kVocab, kHidden, 1);
    norm.assign(kHidden, 1.0f);
  }

  LinearWeight make(DType dtype, int64_t rows, int64_t cols, int parts) {
    std::vector<std::byte> data(rows * row_bytes(dtype, cols));
    // Numbers as weights have them: no subnormal ones, which a processor may treat slowly.
    std::mt19937 random(1);
    const int element = dtype == DType::kF32 ? 4 : 2;
    const uint32_t base = dtype == DType::kF32 ? 0x3c000000 : dtype == DType::kBF16 ? 0x3c00 : 0x2000;
    for (size_t i = 0; i < data.size(); i += element) {
      const uint32_t bits = base | (random() & (dtype == DType::kF32 ? 0x80ffffff : 0x80ff));
      std::memcpy(&data[i], &bits, element);
    }
    const DTypeInfo& t = info(dtype);
    for (size_t i = 0; t.block_elems > 1 && i < data.size(); i += t.block_bytes) {
      const uint16_t scale = 0x1400, minimum = 0x9c00;
      for (int k = 2; k < t.block_bytes; ++k) data[i + k] = static_cast<std::byte>(random());
      std::memcpy(&data[i], &scale, 2);
      if (dtype == DType::kQ4_1) std::memcpy(&data[i + 2], &minimum, 2);
    }
    LinearSource s{
        .dtype = dtype, .cols = cols, .order = parts == 2 ? RowOrder::kPaired : RowOrder::kConcatenated};
    for (int i = 0; i < parts; ++i) s.parts.push_back({data.data(), rows});
    return std::move(ops::pack_linear(context, s)).value();
  }

  ThreadPool pool;
  Arena arena;
  Context context;
  std::vector<Layer> layers;
  LinearWeight head;
  std::vector<float> norm;
};

// One at a time: weights of several types would not fit the memory together.
Network& network(DType dtype, int threads) {
  static std::unique_ptr<Network> current;
  static std::pair<DType, int> key;
  if (!current || key != std::pair(dtype, threads)) {
    current.reset();
    current = std::make_unique<Network>(dtype, threads);
    key = {dtype, threads};
  }
  return *current;
}

struct Activations {
  explicit Activations(int64_t t) : hidden(t * kHidden, 0.1f), qkv(t * kQkv), ffn(t * kFfn) {
    for (size_t i = 0; i < hidden.size(); ++i) hidden[i] = 0.01f * static_cast<float>(i % 37) - 0.1f;
  }
  std::vector<float> hidden, qkv, ffn;
};

void linear_layers(benchmark::State& state, DType dtype, bool with_head) {
  const int64_t t = state.range(0);
  Network& n = network(dtype, static_cast<int>(state.range(1)));
  Activations a(t);
  const auto view = [&](std::vector<float>& v, int64_t cols) {
    return make_tensor(v.data(), DType::kF32, {t, cols});
  };
  const Norm norm{make_tensor(n.norm.data(), DType::kF32, {kHidden}), 1e-5f};
  size_t bytes = 0;
  for (const Layer& l : n.layers)
    bytes += l.qkv.packed.size() + l.o.packed.size() + l.gate_up.packed.size() + l.down.packed.size();
  std::vector<int32_t> starts = {0, static_cast<int32_t>(t)}, ids(t), wanted(t);
  for (int64_t i = 0; i < t; ++i) wanted[i] = static_cast<int32_t>(i);
  const StepBatch batch{.num_rows = 1,
                        .num_tokens = static_cast<int32_t>(t),
                        .row_slot = {starts.data(), 1},
                        .row_start = starts,
                        .context_len = {starts.data(), 1},
                        .token = ids,
                        .position = ids,
                        .logit_token = wanted};
  std::vector<float> logits(with_head ? t * kVocab : 0);
  const std::vector<float> start = a.hidden;
  for (auto _ : state) {
    a.hidden = start;  // residuals would grow without bound
    std::ranges::fill(a.qkv, 0.0f);
    for (const Layer& l : n.layers) {
      // Without attention: qkv's projection as a project of the same shape (and a norm less).
      ops::project(
          n.context,
          {.x = view(a.hidden, kHidden), .weight = &l.qkv, .bias = {}, .residual = view(a.qkv, kQkv)});
      ops::project(
          n.context,
          {.x = view(a.hidden, kHidden), .weight = &l.o, .bias = {}, .residual = view(a.hidden, kHidden)});
      ops::gate_up(n.context, {.hidden = view(a.hidden, kHidden),
                               .norm = norm,
                               .weight = &l.gate_up,
                               .bias = {},
                               .out = view(a.ffn, kFfn)});
      ops::project(
          n.context,
          {.x = view(a.ffn, kFfn), .weight = &l.down, .bias = {}, .residual = view(a.hidden, kHidden)});
    }
    if (with_head)
      ops::head(n.context, {.batch = &batch,
                            .hidden = view(a.hidden, kHidden),
                            .norm = norm,
                            .weight = &n.head,
                            .logits = make_tensor(logits.data(), DType::kF32, {t, kVocab})});
  }
  if (with_head) bytes += n.head.packed.size();
  const double macs = kLayers * static_cast<double>(kHidden) * (kQkv + kHidden + 3 * kFfn) +
                      (with_head ? double(kVocab) * kHidden : 0);
  const auto rate = [](double v) {
    return benchmark::Counter(v, benchmark::Counter::kIsIterationInvariantRate);
  };
  state.counters["tok/s"] = rate(static_cast<double>(t));
  state.counters["GMAC/s"] = rate(macs * static_cast<double>(t) * 1e-9);
  state.counters["GB/s"] = rate(static_cast<double>(bytes) * 1e-9);
  state.SetLabel(std::string(cpu::kernels().name));
}

// Packing of a head's rows, from memory that is already there.
void pack(benchmark::State& state, DType dtype) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  const std::vector<std::byte> data(kVocab * row_bytes(dtype, kHidden), std::byte{1});
  const LinearSource source{.dtype = dtype, .cols = kHidden, .parts = {{data.data(), kVocab}}};
  for (auto _ : state) {
    Context context{.pool = &pool};
    benchmark::DoNotOptimize(ops::pack_linear(context, source));
  }
  state.counters["GB/s"] = benchmark::Counter(static_cast<double>(data.size()) * 1e-9,
                                              benchmark::Counter::kIsIterationInvariantRate);
}

void register_all() {
  for (const DType d : {DType::kQ4_1, DType::kQ8_0, DType::kBF16}) {
    const std::string name = std::string(info(d).name) + "/pack";
    benchmark::RegisterBenchmark(name.c_str(), [d](benchmark::State& s) { pack(s, d); })
        ->ArgName("threads")
        ->Arg(1)
        ->Arg(2)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
  }
  for (const DType d : {DType::kQ4_1, DType::kQ4_0, DType::kQ8_0, DType::kBF16, DType::kF32}) {
    for (const bool head : {false, true}) {
      const std::string name = std::string(info(d).name) + (head ? "/layers_and_head" : "/layers");
      benchmark::RegisterBenchmark(name.c_str(),
                                   [d, head](benchmark::State& s) { linear_layers(s, d, head); })
          ->ArgNames({"columns", "threads"})
          ->ArgsProduct({{1, 4, 8, 32, 512}, {1, 2}})
          ->Unit(benchmark::kMillisecond)
          ->UseRealTime();
    }
  }
}

}  // namespace
}  // namespace deepinfer

int main(int argc, char** argv) {
  deepinfer::register_all();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
