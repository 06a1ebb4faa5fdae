// The linear layers of a model as the engine runs them (norm, quantization and epilogues included), for a
// number of columns: tokens per second, GMAC/s, GB/s of packed weights, bits a weight. The shapes are those
// of SmolLM2-135M ("layers", with its head "layers_and_head") and of four layers of Llama-3.1-8B ("llama8b").
//
//   linear_bench --benchmark_filter=Q4_1 --benchmark_repetitions=5
//   linear_bench --benchmark_filter='(Q4_1|U4.*)/llama8b/columns:1/threads:2' --benchmark_repetitions=9
//     --benchmark_enable_random_interleaving=true      (types in turn: a machine's moods meet all of them)
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

struct Model {
  const char* name;
  int layers;
  int64_t hidden, qkv, ffn, vocab;  // vocab 0: no head
};
constexpr Model kSmall = {"layers", 30, 576, 960, 1536, 0};
constexpr Model kSmallHead = {"layers_and_head", 30, 576, 960, 1536, 49152};
constexpr Model kLlama = {"llama8b", 4, 4096, 6144, 14336, 0};

struct Format {
  const char* name;
  DType dtype;
  int64_t group = 0;  // of codes: 0 is a whole row
  bool zeros = false;
  DType scale = DType::kF16;
};
constexpr Format kFormats[] = {
    {"Q4_1", DType::kQ4_1},
    {"Q4_0", DType::kQ4_0},
    {"U4_zeros", DType::kU4, 128, true},
    {"U4", DType::kU4, 128},
    {"U4_f32_scales", DType::kU4, 128, false, DType::kF32},
    {"Q8_0", DType::kQ8_0},
    {"U8", DType::kU8, 128},
    {"U8_zeros", DType::kU8, 128, true},
    {"F8", DType::kF8E4M3, 0, false, DType::kF32},
    {"F8_blocks", DType::kF8E4M3, 128, false, DType::kF32},
    {"BF16", DType::kBF16},
    {"F32", DType::kF32},
};

struct Layer {
  LinearWeight qkv, o, gate_up, down;
};

bool has_codes(DType d) {
  return d == DType::kU4 || d == DType::kU8 || d == DType::kF8E4M3;
}

// A matrix in a file's form, of random numbers as weights have them: no subnormal ones among the floats,
// which a processor may treat slowly. A short run of them is repeated: to draw all would take long.
struct Source {
  Source(const Format& format, int64_t rows, int64_t cols) : data(rows * row_bytes(format.dtype, cols)) {
    const DType dtype = format.dtype;
    const DTypeInfo& t = info(dtype);
    const size_t run = std::min(data.size(), size_t{34 * 20 * 18 * 16});  // whole blocks of every type
    std::mt19937 random(1);
    const int element = dtype == DType::kF32 ? 4 : 2;
    const uint32_t base = dtype == DType::kF32 ? 0x3c000000 : dtype == DType::kBF16 ? 0x3c00 : 0x2000;
    const uint32_t some = has_codes(dtype) ? 0xffff : dtype == DType::kF32 ? 0x80ffffff : 0x80ff;
    for (size_t i = 0; i < run; i += element) {
      uint32_t bits = (has_codes(dtype) ? 0 : base) | (random() & some);
      if (dtype == DType::kF8E4M3) bits &= 0xfefe;  // no NaN
      std::memcpy(&data[i], &bits, element);
    }
    for (size_t i = 0; t.block_elems > 1 && !has_codes(dtype) && i < run; i += t.block_bytes) {
      const uint16_t scale = 0x1400, minimum = 0x9c00;
      for (int k = 2; k < t.block_bytes; ++k) data[i + k] = static_cast<std::byte>(random());
      std::memcpy(&data[i], &scale, 2);
      if (dtype == DType::kQ4_1) std::memcpy(&data[i + 2], &minimum, 2);
    }
    for (size_t i = run; i < data.size(); i += run)
      std::memcpy(&data[i], data.data(), std::min(run, data.size() - i));
    source = {.dtype = dtype, .cols = cols, .parts = {}};
    LinearPart part{data.data(), rows};
    if (has_codes(dtype)) {
      source.group = format.group == 0 ? cols : format.group;
      source.scale_dtype = format.scale;
      source.zero = dtype == DType::kU4 ? 8 : dtype == DType::kU8 ? 128 : 0;
      const size_t groups = rows * source.groups();
      scales.resize(groups * info(format.scale).block_bytes);
      for (size_t i = 0; i < groups; ++i) {
        const uint16_t half = 0x1400;
        const float single = 0.001f + 1e-6f * static_cast<float>(i % 1000);
        if (format.scale == DType::kF16) std::memcpy(&scales[i * 2], &half, 2);
        if (format.scale == DType::kF32) std::memcpy(&scales[i * 4], &single, 4);
      }
      part.scale = scales.data();
      for (size_t i = 0; format.zeros && i < groups; ++i)
        zeros.push_back(static_cast<int16_t>(random() % 16));
      if (format.zeros) part.zero = zeros.data();
    }
    source.parts = {part};
  }
  std::vector<std::byte> data, scales;
  std::vector<int16_t> zeros;
  LinearSource source;
};

// Weights of one type.
struct Network {
  Network(const Format& format, const Model& m)
      : model(m), arena(std::move(Buffer::allocate(size_t{512} << 20)).value()), norm(m.hidden, 1.0f) {
    ThreadPool pool(2);
    context.pool = &pool;
    context.scratch = &arena;
    const Source qkv(format, m.qkv, m.hidden), o(format, m.hidden, m.hidden), down(format, m.hidden, m.ffn);
    Source gate_up(format, m.ffn, m.hidden);
    gate_up.source.order = RowOrder::kPaired;
    gate_up.source.parts.push_back(gate_up.source.parts[0]);
    for (int i = 0; i < m.layers; ++i)
      layers.push_back({pack(qkv.source), pack(o.source), pack(gate_up.source), pack(down.source)});
    if (m.vocab == 0) return;
    const bool nibbles = format.dtype == DType::kQ4_1 || format.dtype == DType::kQ4_0;
    head = pack(Source(nibbles ? Format{"", DType::kQ8_0} : format, m.vocab, m.hidden).source);
  }

  LinearWeight pack(const LinearSource& source) {
    return std::move(ops::pack_linear(context, source)).value();
  }

  Model model;
  Arena arena;
  Context context;
  std::vector<Layer> layers;
  LinearWeight head;
  std::vector<float> norm;
};

// They stay, so that types can take turns; what a filter leaves out is not made.
Network& network(const Format& format, const Model& model) {
  static std::map<std::pair<std::string, std::string>, std::unique_ptr<Network>> made;
  auto& one = made[{format.name, model.name}];
  if (!one) one = std::make_unique<Network>(format, model);
  return *one;
}

struct Activations {
  Activations(int64_t t, const Model& m) : hidden(t * m.hidden, 0.1f), qkv(t * m.qkv), ffn(t * m.ffn) {
    for (size_t i = 0; i < hidden.size(); ++i) hidden[i] = 0.01f * static_cast<float>(i % 37) - 0.1f;
  }
  std::vector<float> hidden, qkv, ffn;
};

void linear_layers(benchmark::State& state, const Format& format, const Model& m) {
  const int64_t t = state.range(0);
  Network& n = network(format, m);
  ThreadPool pool(static_cast<int>(state.range(1)));
  n.context.pool = &pool;
  Activations a(t, m);
  const bool with_head = m.vocab != 0;
  const auto view = [&](std::vector<float>& v, int64_t cols) {
    return make_tensor(v.data(), DType::kF32, {t, cols});
  };
  const Norm norm{make_tensor(n.norm.data(), DType::kF32, {m.hidden}), 1e-5f};
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
  std::vector<float> logits(with_head ? t * m.vocab : 0);
  const std::vector<float> start = a.hidden;
  for (auto _ : state) {
    a.hidden = start;  // residuals would grow without bound
    std::ranges::fill(a.qkv, 0.0f);
    for (const Layer& l : n.layers) {
      // Without attention: qkv's projection as a project of the same shape (and a norm less).
      ops::project(
          n.context,
          {.x = view(a.hidden, m.hidden), .weight = &l.qkv, .bias = {}, .residual = view(a.qkv, m.qkv)});
      ops::project(
          n.context,
          {.x = view(a.hidden, m.hidden), .weight = &l.o, .bias = {}, .residual = view(a.hidden, m.hidden)});
      ops::gate_up(n.context, {.hidden = view(a.hidden, m.hidden),
                               .norm = norm,
                               .weight = &l.gate_up,
                               .bias = {},
                               .out = view(a.ffn, m.ffn)});
      ops::project(
          n.context,
          {.x = view(a.ffn, m.ffn), .weight = &l.down, .bias = {}, .residual = view(a.hidden, m.hidden)});
    }
    if (with_head)
      ops::head(n.context, {.batch = &batch,
                            .hidden = view(a.hidden, m.hidden),
                            .norm = norm,
                            .weight = &n.head,
                            .logits = make_tensor(logits.data(), DType::kF32, {t, m.vocab})});
  }
  if (with_head) bytes += n.head.packed.size();
  const double macs = static_cast<double>(m.hidden) *
                      static_cast<double>(m.layers * (m.qkv + m.hidden + 3 * m.ffn) + m.vocab);
  const auto rate = [](double v) {
    return benchmark::Counter(v, benchmark::Counter::kIsIterationInvariantRate);
  };
  state.counters["tok/s"] = rate(static_cast<double>(t));
  state.counters["GMAC/s"] = rate(macs * static_cast<double>(t) * 1e-9);
  state.counters["GB/s"] = rate(static_cast<double>(bytes) * 1e-9);
  state.counters["bits"] = static_cast<double>(bytes) * 8 / macs;
  state.SetLabel(std::string(cpu::kernels().name));
}

// Packing of a large matrix, from memory that is already there.
void pack(benchmark::State& state, const Format& format) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  const Source from(format, kLlama.ffn, kLlama.hidden);
  for (auto _ : state) {
    Context context{.pool = &pool};
    benchmark::DoNotOptimize(ops::pack_linear(context, from.source));
  }
  state.counters["GB/s"] = benchmark::Counter(static_cast<double>(from.data.size()) * 1e-9,
                                              benchmark::Counter::kIsIterationInvariantRate);
}

void register_all() {
  for (const Format& f : kFormats) {
    benchmark::RegisterBenchmark((std::string(f.name) + "/pack").c_str(),
                                 [&f](benchmark::State& s) { pack(s, f); })
        ->ArgName("threads")
        ->Arg(1)
        ->Arg(2)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
    for (const Model& m : {kSmall, kSmallHead, kLlama}) {
      benchmark::RegisterBenchmark((std::string(f.name) + "/" + m.name).c_str(),
                                   [&f, m](benchmark::State& s) { linear_layers(s, f, m); })
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
