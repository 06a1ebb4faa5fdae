// The products of a Llama-3.1-8B layer on a card, by number of tokens and by kernel: microseconds, GB/s of
// packed weights and TFLOP/s, and the part of the floor that is reached, a JSON object a line. Weights of
// several layers take turns in one graph, so that they come from memory and not from the cache.
//
// The floor is the larger of the weight's bytes at the card's rate of copies and the operations at its rate
// of BF16 products, twice that for FP8, both measured first.
//
//   cuda_linear_bench [bf16|q4_0|q4_1|q8_0|f8|f8_blocks|u4|u8] [pdl]
//
// u4: groups of 128 with F16 scales and zero points, as AWQ has them. u8: a scale a row, no zero points.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "backend/cuda.h"
#include "backend/cuda/linear.h"
#include "backend/cuda_gpu.h"
#include "backend/cuda_rates.h"
#include "base/check.h"

namespace deepinfer {
namespace {

constexpr int kLayers = 4;
constexpr int64_t kTokens[] = {1, 2, 4, 8, 16, 17, 32, 64, 128, 256, 512, 1024, 4096, 8192};

struct Shape {
  const char* name;
  int64_t rows, cols;
  cuda::Epilogue epilogue;
  bool norm;
};
constexpr Shape kShapes[] = {{"qkv", 6144, 4096, cuda::Epilogue::kStore, true},
                             {"o", 4096, 4096, cuda::Epilogue::kAdd, false},
                             {"gate_up", 28672, 4096, cuda::Epilogue::kGated, true},
                             {"down", 4096, 14336, cuda::Epilogue::kAdd, false}};

struct Path {
  const char* name;
  bool own, cublaslt, f8_tile;  // own: the skinny kernels and that of codes
};
constexpr Path kPaths[] = {{"as served", true, true, true},
                           {"tile", false, false, false},
                           {"cublaslt", false, true, false},
                           {"f8 tile", false, false, true}};

struct Format {
  const char* name;
  DType dtype;
  int64_t group = 0;  // of F8, U4 and U8; 0: a scale a row
};
constexpr Format kFormats[] = {{"bf16", DType::kBF16},  {"q4_0", DType::kQ4_0},
                               {"q4_1", DType::kQ4_1},  {"q8_0", DType::kQ8_0},
                               {"f8", DType::kF8E4M3},  {"f8_blocks", DType::kF8E4M3, 128},
                               {"u4", DType::kU4, 128}, {"u8", DType::kU8}};

bool has_codes(DType dtype) {
  return dtype == DType::kU4 || dtype == DType::kU8;
}

template <class T>
T must(Result<T> r) {
  DI_CHECK(r.ok(), "{}", r.error().message);
  return std::move(r).value();
}

// Numbers as weights have them; the same rows again and again, for the values do not matter.
std::vector<std::byte> random_rows(DType dtype, int64_t rows, int64_t cols) {
  const auto stride = static_cast<size_t>(row_bytes(dtype, cols));
  constexpr int64_t kDifferent = 64;
  std::vector<std::byte> data(stride * static_cast<size_t>(rows));
  std::mt19937 random(1);
  const DTypeInfo& t = info(dtype);
  if (dtype == DType::kF8E4M3) {
    for (size_t i = 0; i < stride * kDifferent; ++i) data[i] = static_cast<std::byte>(random() & 0xb7);
  } else
    for (size_t i = 0; i < stride * kDifferent; i += 2) {
      const auto bits = static_cast<uint16_t>(
          t.block_elems > 1 || has_codes(dtype) ? random() : 0x3c00 | (random() & 0x80ff));
      std::memcpy(&data[i], &bits, 2);
    }
  for (size_t i = 0; t.block_elems > 2 && i < stride * kDifferent; i += t.block_bytes) {
    const uint16_t scale = 0x1400, minimum = 0x9c00;
    std::memcpy(&data[i], &scale, 2);
    if (dtype == DType::kQ4_1) std::memcpy(&data[i + 2], &minimum, 2);
  }
  for (int64_t r = kDifferent; r < rows; r += kDifferent)
    std::memcpy(&data[stride * static_cast<size_t>(r)], data.data(),
                stride * static_cast<size_t>(std::min(kDifferent, rows - r)));
  return data;
}

class Bench {
 public:
  Bench(const Format& format, bool pdl)
      : format_(format), pool_(static_cast<int>(std::max(1u, std::thread::hardware_concurrency() / 2))) {
    gpu_ = must(cuda::Gpu::open({}));
    const Result<void> ready = gpu_->open_fast_paths();
    DI_CHECK(ready.ok(), "{}", ready.error().message);
    context_ = {
        .device = {Device::Kind::kCuda, 0}, .pool = &pool_, .gpu = gpu_.get(), .activation = DType::kBF16};
    const int64_t most = *std::max_element(std::begin(kTokens), std::end(kTokens));
    arena_ = Arena(must(gpu_->allocate(cuda::linear_scratch(context_, most, 14336, 28672))), 256);
    context_.scratch = &arena_;
    in_ = filled(0x3c, static_cast<size_t>(most) * 14336 * 4);  // 0.0115 in both types: zeros cost less power
    out_ = filled(0, static_cast<size_t>(most) * 28672 * 4);
    norm_ = must(cuda::upload(context_, std::vector<float>(14336, 1.0f)));
    pdl_ = pdl;
    rates_ = must(cuda::measure_rates(*gpu_));
    for (const Shape& s : kShapes) weights_.push_back(pack(s));
  }

  void run() {
    const cuda::FastPaths all = gpu_->fast;
    for (size_t i = 0; i < std::size(kShapes); ++i) {
      for (const int64_t tokens : kTokens) {
        for (const Path& path : kPaths) {
          const bool f8 = format_.dtype == DType::kF8E4M3;
          if (path.cublaslt && !path.own && !all.cublaslt) continue;
          if (path.f8_tile && !path.own && !(f8 && all.f8_tile)) continue;
          gpu_->fast.skinny = path.own && all.skinny;
          gpu_->fast.skinny_codes = path.own && all.skinny_codes;
          gpu_->fast.codes = path.own && all.codes;
          gpu_->fast.cublaslt = path.cublaslt && all.cublaslt;
          gpu_->fast.cublaslt_f8 = path.cublaslt && all.cublaslt_f8;
          gpu_->fast.f8_tile = path.f8_tile && all.f8_tile;
          report(kShapes[i], tokens, path, seconds(i, tokens));
        }
      }
    }
    gpu_->fast = all;
  }

 private:
  Buffer filled(int byte, size_t bytes) {
    Buffer b = must(gpu_->allocate(bytes));
    gpu_->fill(b.data(), byte, bytes);
    return b;
  }

  std::vector<LinearWeight> pack(const Shape& s) {
    const bool paired = s.epilogue == cuda::Epilogue::kGated;
    const int64_t rows = paired ? s.rows / 2 : s.rows;
    const std::vector<std::byte> data = random_rows(format_.dtype, rows, s.cols);
    LinearSource source{.dtype = format_.dtype, .cols = s.cols, .parts = {{data.data(), rows}}};
    std::vector<float> scales;
    if (format_.dtype == DType::kF8E4M3) {
      source.group = format_.group == 0 ? s.cols : format_.group;
      source.scale_dtype = DType::kF32;
      scales.assign(static_cast<size_t>(rows * source.groups()), 0x1p-8f);
      source.parts[0].scale = scales.data();
    }
    std::vector<uint16_t> halves;
    std::vector<int16_t> zeros;
    if (has_codes(format_.dtype)) {
      source.group = format_.group == 0 ? s.cols : format_.group;
      source.zero = 128;
      halves.assign(static_cast<size_t>(rows * source.groups()), 0x1400);
      source.parts[0].scale = halves.data();
      if (format_.dtype == DType::kU4) zeros.assign(halves.size(), 7);
      if (!zeros.empty()) source.parts[0].zero = zeros.data();
    }
    if (paired) source.parts.push_back(source.parts[0]);
    if (paired) source.order = RowOrder::kPaired;
    std::vector<LinearWeight> layers;
    for (int i = 0; i < kLayers; ++i) layers.push_back(must(cuda::pack_linear(context_, source)));
    return layers;
  }

  void launch(size_t shape, int64_t tokens) {
    const Shape& s = kShapes[shape];
    const Norm norm{make_tensor(norm_.data(), DType::kF32, {s.cols}, context_.device), 1e-5f};
    const bool paired = s.epilogue == cuda::Epilogue::kGated;
    const DType out = s.epilogue == cuda::Epilogue::kAdd ? DType::kF32 : DType::kBF16;
    for (const LinearWeight& w : weights_[shape])
      cuda::linear(context_, {.weight = &w,
                              .x = make_tensor(in_.data(), s.norm ? DType::kF32 : DType::kBF16,
                                               {tokens, s.cols}, context_.device),
                              .norm = s.norm ? &norm : nullptr,
                              .epilogue = s.epilogue,
                              .bias = {},
                              .out = make_tensor(out_.data(), out, {tokens, paired ? s.rows / 2 : s.rows},
                                                 context_.device)});
  }

  // Of one product: the best of a few runs of a graph.
  double seconds(size_t shape, int64_t tokens) {
    launch(shape, tokens);  // loads code, tunes
    gpu_->synchronize();
    gpu_->begin_capture();
    gpu_->pdl = pdl_;
    for (int i = 0; i < 4; ++i) launch(shape, tokens);
    gpu_->pdl = false;
    const cuda::Graph graph = gpu_->end_capture();
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < 5; ++i) {
      gpu_->synchronize();
      const auto start = std::chrono::steady_clock::now();
      gpu_->launch(graph);
      gpu_->synchronize();
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return best / (4 * kLayers);
  }

  void report(const Shape& s, int64_t tokens, const Path& path, double seconds) const {
    const size_t shape = static_cast<size_t>(&s - kShapes);
    const double bytes = static_cast<double>(weights_[shape].front().packed.size());
    const double flop =
        2.0 * static_cast<double>(tokens) * static_cast<double>(s.rows) * static_cast<double>(s.cols);
    const double matrix = rates_.tflop_per_second * (format_.dtype == DType::kF8E4M3 ? 2e12 : 1e12);
    const double floor =
        std::max(bytes / (rates_.copy_gb_per_second * 1e9), matrix > 0 ? flop / matrix : 0.0);
    fmt::print(
        R"({{"weights": "{}", "matrix": "{}", "tokens": {}, "kernel": "{}", "us": {:.2f}, "gb_s": {:.0f}, )"
        R"("tflop_s": {:.1f}, "floor_us": {:.2f}, "of_floor": {:.3f}}})"
        "\n",
        format_.name, s.name, tokens, path.name, seconds * 1e6, bytes / seconds / 1e9, flop / seconds / 1e12,
        floor * 1e6, floor / seconds);
    std::fflush(stdout);
  }

  Format format_;
  cuda::DeviceRates rates_;
  ThreadPool pool_;
  std::unique_ptr<cuda::Gpu> gpu_;
  Context context_;
  Arena arena_;
  Buffer in_, out_, norm_;
  std::vector<std::vector<LinearWeight>> weights_;
  bool pdl_ = false;
};

}  // namespace
}  // namespace deepinfer

int main(int argc, char** argv) {
  deepinfer::Format format = deepinfer::kFormats[0];
  bool pdl = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view a = argv[i];
    const auto* found = std::find_if(std::begin(deepinfer::kFormats), std::end(deepinfer::kFormats),
                                     [&](const auto& f) { return a == f.name; });
    if (a == "pdl") {
      pdl = true;
    } else if (found != std::end(deepinfer::kFormats)) {
      format = *found;
    } else {
      fmt::print(stderr, "{}: got {}, expected bf16, q4_0, q4_1, q8_0, f8, f8_blocks, u4, u8 or pdl\n",
                 argv[0], a);
      return 2;
    }
  }
  try {
    deepinfer::Bench(format, pdl).run();
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}\n", e.what());
    return 1;
  }
  return 0;
}
