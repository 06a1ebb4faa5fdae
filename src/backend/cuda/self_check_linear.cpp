// Products by cuBLASLt, by the skinny kernel and in FP8 against the tile kernel, which serves where all are
// off.
#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "backend/cuda.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/packed.h"
#include "backend/cuda/self_check_cases.h"
#include "base/arena.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

// Both sum in F32 what is exact in BF16; a result in BF16 is rounded to 8 bits once. Activations for FP8 are
// exact in e4m3: what rounding them costs is no fault of a kernel.
constexpr double kProductBound = 1.0 / 128;

struct ProductShape {
  int64_t tokens = 1, rows = 64, cols = 128;
  DType weight = DType::kBF16;
  DType out = DType::kF32;
  int64_t group = 0;  // of F8
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // BF16: either sign, 1/8 to 1.99.
  uint16_t bf16() {
    const uint64_t r = next();
    return static_cast<uint16_t>((r & 0x8000) | ((124 + (r >> 20) % 4) << 7) | (r & 0x7f));
  }

 private:
  uint64_t state_;
};

// As it would stand in a checkpoint.
std::vector<std::byte> random_weight(const ProductShape& s, Random& random) {
  const auto bytes = static_cast<size_t>(row_bytes(s.weight, s.cols) * s.rows);
  std::vector<std::byte> data(bytes);
  if (s.weight == DType::kBF16) {
    for (size_t i = 0; i < bytes; i += 2) {
      const uint16_t bits = random.bf16();
      std::memcpy(&data[i], &bits, 2);
    }
    return data;
  }
  if (s.weight == DType::kF8E4M3) {  // either sign, 1/64 to 240
    for (std::byte& code : data)
      code = static_cast<std::byte>((random.next() & 0x80) | (8 + random.next() % 0x70));
    return data;
  }
  // Blocks of a scale in F16, 1/32 to 1/8, and of any bits.
  const auto block = static_cast<size_t>(info(s.weight).block_bytes);
  for (size_t at = 0; at < bytes; at += block) {
    for (size_t i = 2; i < block; ++i) data[at + i] = static_cast<std::byte>(random.next());
    const auto scale = static_cast<uint16_t>((10 + random.next() % 2) << 10 | random.next() % 1024);
    std::memcpy(&data[at], &scale, 2);
  }
  return data;
}

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

Result<Buffer> send(Gpu& gpu, const std::vector<uint16_t>& values) {
  const size_t bytes = values.size() * sizeof(uint16_t);
  DI_ASSIGN(const Buffer staging, gpu.allocate_pinned(bytes));
  DI_ASSIGN(Buffer buffer, gpu.allocate(bytes));
  std::memcpy(staging.data(), values.data(), bytes);
  gpu.copy_in(buffer.data(), staging.data(), bytes);
  gpu.synchronize();
  return buffer;
}

Result<std::vector<float>> receive(Gpu& gpu, const Tensor& t) {
  const auto count = static_cast<size_t>(t.elems());
  const size_t bytes = count * (t.dtype == DType::kF32 ? 4 : 2);
  DI_ASSIGN(const Buffer staging, gpu.allocate_pinned(bytes));
  gpu.copy_out(staging.data(), t.data, bytes);
  gpu.synchronize();
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits = 0;  // the upper half of an F32 is a BF16
    if (t.dtype == DType::kF32)
      std::memcpy(&bits, staging.data() + 4 * i, 4);
    else
      std::memcpy(reinterpret_cast<std::byte*>(&bits) + 2, staging.data() + 2 * i, 2);
    std::memcpy(&values[i], &bits, 4);
  }
  return values;
}

class SavedPaths {
 public:
  explicit SavedPaths(Gpu& gpu) : gpu_(gpu), saved_(gpu.fast) {}
  ~SavedPaths() { gpu_.fast = saved_; }
  SavedPaths(const SavedPaths&) = delete;

 private:
  Gpu& gpu_;
  FastPaths saved_;
};

Result<Comparison> compare(Gpu& gpu, const ProductShape& s, bool FastPaths::* path) {
  Random random(17);
  const Device device{Device::Kind::kCuda, gpu.facts().index};
  Context context{.device = device, .gpu = &gpu, .activation = DType::kBF16};
  DI_ASSIGN(Buffer scratch, gpu.allocate(linear_scratch(context, s.tokens, s.cols, s.rows)));
  Arena arena(std::move(scratch), 256);
  context.scratch = &arena;
  const std::vector<std::byte> source = random_weight(s, random);
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
  const LinearCall call{.weight = &weight,
                        .x = make_tensor(x.data(), DType::kBF16, {s.tokens, s.cols}, device),
                        .out = make_tensor(out.data(), s.out, {s.tokens, s.rows}, device)};
  Comparison c{.shape = fmt::format("{} tokens, {} [{}, {}] into {}", s.tokens, info(s.weight).name, s.rows,
                                    s.cols, info(s.out).name),
               .row = static_cast<size_t>(s.rows),
               .bound = kProductBound};
  const SavedPaths saved(gpu);
  for (const bool fast : {false, true}) {
    gpu.fast.cublaslt = gpu.fast.skinny = gpu.fast.cublaslt_f8 = gpu.fast.f8_tile = false;
    gpu.fast.*path = fast;
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
  return compare_all(
      gpu,
      {{.tokens = 17, .rows = 64, .cols = 128}, {.tokens = 40, .rows = 48, .cols = 192, .out = DType::kBF16}},
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
