// Products by cuBLASLt, by the skinny kernel and in FP8 against the tile kernel, which serves where all are
// off.
#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "backend/cuda.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/packed.h"
#include "backend/cuda/self_check_cases.h"
#include "backend/cuda/self_check_data.h"

namespace deepinfer::cuda {
namespace {

// Makes a bias and a residual about as large as the sums beside them, so that a single wrong one shows.
constexpr float kOfSums = 8;

struct ProductShape {
  int64_t tokens = 1, rows = 64, cols = 128;
  DType weight = DType::kBF16;
  DType out = DType::kF32;
  int64_t group = 0;      // of F8
  bool residual = false;  // is added to what stands in out, with a bias
};

// Scales of F8, powers of two: 1/16 to 1/2.
std::vector<float> random_scales(const ProductShape& s, Random& random) {
  std::vector<float> scales;
  if (s.group == 0) return scales;
  for (int64_t i = 0; i < s.rows * ((s.cols + s.group - 1) / s.group); ++i)
    scales.push_back(0.5f / static_cast<float>(1 << random.next() % 4));
  return scales;
}

// Those for F8 have a power of two for a scale (the largest of each group is 1.75) and 3 bits each.
std::vector<uint16_t> random_input(const ProductShape& s, Random& random) {
  std::vector<uint16_t> input(static_cast<size_t>(s.tokens * s.cols));
  for (size_t i = 0; i < input.size(); ++i) {
    input[i] = random.bf16();
    if (s.weight != DType::kF8E4M3) continue;
    input[i] &= 0xffe0;
    if (static_cast<int64_t>(i) % s.cols % kF8Group == 0) input[i] = 0x3fe0;
  }
  return input;
}

Result<Comparison> compare(Gpu& gpu, const ProductShape& s, bool FastPaths::* path) {
  Random random(17);
  const Device device{Device::Kind::kCuda, gpu.facts().index};
  Context context{.device = device, .gpu = &gpu, .activation = DType::kBF16};
  DI_ASSIGN(Buffer scratch, gpu.allocate(linear_scratch(context, s.tokens, s.cols, s.rows)));
  Arena arena(std::move(scratch), 256);
  context.scratch = &arena;
  const std::vector<std::byte> source = random_weight(s.weight, s.rows, s.cols, random);
  const std::vector<float> scales = random_scales(s, random);
  const LinearPart part{.data = source.data(), .rows = s.rows, .scale = scales.data()};
  DI_ASSIGN(const LinearWeight weight, pack_linear(context, {.dtype = s.weight,
                                                             .cols = s.cols,
                                                             .parts = {part},
                                                             .group = s.group,
                                                             .scale_dtype = DType::kF32}));
  DI_ASSIGN(const Buffer x, send(gpu, random_input(s, random)));
  const auto out_bytes = static_cast<size_t>(s.tokens * s.rows) * (s.out == DType::kF32 ? 4 : 2);
  DI_ASSIGN(const Buffer out, gpu.allocate(out_bytes));
  LinearCall call{.weight = &weight,
                  .x = make_tensor(x.data(), DType::kBF16, {s.tokens, s.cols}, device),
                  .bias = {},
                  .out = make_tensor(out.data(), s.out, {s.tokens, s.rows}, device)};
  Buffer bias, before;
  if (s.residual) {
    DI_ASSIGN(bias, send(gpu, random.floats(s.rows, kOfSums)));
    DI_ASSIGN(before, gpu.allocate_pinned(out_bytes));
    std::memcpy(before.data(), random.floats(s.tokens * s.rows, kOfSums).data(), out_bytes);
    call.epilogue = Epilogue::kAdd;
    call.bias = make_tensor(bias.data(), DType::kF32, {s.rows}, device);
  }
  Comparison c{.shape = fmt::format("{} tokens, {} [{}, {}] into {}{}", s.tokens, info(s.weight).name, s.rows,
                                    s.cols, info(s.out).name, s.residual ? ", a residual, with a bias" : ""),
               .row = static_cast<size_t>(s.rows),
               .bound = kProductBound};
  const SavedPaths saved(gpu);
  for (const bool fast : {false, true}) {
    gpu.fast.cublaslt = gpu.fast.skinny = gpu.fast.cublaslt_f8 = gpu.fast.f8_tile = false;
    gpu.fast.*path = fast;
    if (s.residual)
      gpu.copy_in(out.data(), before.data(), out_bytes);
    else
      gpu.fill(out.data(), 0xff, out_bytes);
    linear(context, call);
    DI_ASSIGN((fast ? c.fast : c.plain), receive(gpu, call.out));
  }
  return c;
}

Result<std::vector<Comparison>> compare_all(Gpu& gpu, const std::vector<ProductShape>& shapes,
                                            bool FastPaths::* path) {
  std::vector<Comparison> all;
  for (const ProductShape& s : shapes) {
    DI_ASSIGN(Comparison c, compare(gpu, s, path));
    all.push_back(std::move(c));
  }
  return all;
}

}  // namespace

Result<std::vector<Comparison>> check_cublaslt(Gpu& gpu) {
  return compare_all(gpu,
                     {{.tokens = 17, .rows = 64, .cols = 128},
                      {.tokens = 40, .rows = 48, .cols = 192, .out = DType::kBF16},
                      {.tokens = 33, .rows = 192, .cols = 128, .residual = true},
                      {.tokens = 70, .rows = 192, .cols = 64, .residual = true}},
                     &FastPaths::cublaslt);
}

Result<std::vector<Comparison>> check_skinny(Gpu& gpu) {
  return compare_all(gpu,
                     {{.tokens = 1, .rows = 64, .cols = 128},
                      {.tokens = 5, .rows = 33, .cols = 192, .out = DType::kBF16},
                      {.tokens = 16, .rows = 48, .cols = 64},
                      {.tokens = 3, .rows = 32, .cols = 128, .weight = DType::kQ4_0},
                      {.tokens = 2, .rows = 32, .cols = 128, .weight = DType::kQ8_0},
                      {.tokens = 1, .rows = 32, .cols = 192, .weight = DType::kF8E4M3, .group = 192},
                      {.tokens = 9, .rows = 32, .cols = 256, .weight = DType::kF8E4M3, .group = 128}},
                     &FastPaths::skinny);
}

Result<std::vector<Comparison>> check_cublaslt_f8(Gpu& gpu) {
  constexpr DType kF8 = DType::kF8E4M3;
  return compare_all(
      gpu,
      {{.tokens = 17, .rows = 64, .cols = 256, .weight = kF8, .group = 256},
       {.tokens = 40, .rows = 48, .cols = 192, .weight = kF8, .out = DType::kBF16, .group = 192},
       {.tokens = 32, .rows = 64, .cols = 256, .weight = kF8, .group = 128},
       {.tokens = 18, .rows = 72, .cols = 320, .weight = kF8, .group = 128}},
      &FastPaths::cublaslt_f8);
}

Result<std::vector<Comparison>> check_f8_tile(Gpu& gpu) {
  constexpr DType kF8 = DType::kF8E4M3;
  return compare_all(
      gpu,
      {{.tokens = 17, .rows = 64, .cols = 256, .weight = kF8, .group = 256},
       {.tokens = 70, .rows = 72, .cols = 320, .weight = kF8, .group = 128},
       {.tokens = 33, .rows = 33, .cols = 192, .weight = kF8, .out = DType::kBF16, .group = 128}},
      &FastPaths::f8_tile);
}

}  // namespace deepinfer::cuda
