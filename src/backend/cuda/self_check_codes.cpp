// Products with codes (U4, U8) by the skinny kernel and by that of gemm_codes.cu against the tile kernel over
// the weight expanded to A.
#include <fmt/format.h>

#include <utility>

#include "backend/cuda.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/self_check_cases.h"
#include "backend/cuda/self_check_data.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

// The plain side rounds each weight to BF16 once; the fast one sums exact integers.
constexpr double kCodesBound = kProductBound;

struct CodesShape {
  DType weight = DType::kU4;
  int64_t tokens = 1, rows = 64, cols = 128, group = 64;
  DType scale = DType::kF16;
  bool points = false;  // zero points
};

// As it would stand in a checkpoint.
struct Checkpoint {
  std::vector<std::byte> codes, scales;
  std::vector<int16_t> zeros;
};

Checkpoint random_checkpoint(const CodesShape& s, Random& random) {
  Checkpoint c;
  c.codes.resize(static_cast<size_t>(row_bytes(s.weight, s.cols) * s.rows));
  for (std::byte& b : c.codes) b = static_cast<std::byte>(random.next());
  const int64_t groups = (s.cols + s.group - 1) / s.group * s.rows;
  for (int64_t i = 0; i < groups; ++i) {
    const uint64_t r = random.next();
    // 1/32 to 1/8 in F16, 1/16 to 1/4 in F32.
    const auto half = static_cast<uint16_t>((10 + r % 2) << 10 | (r >> 8) % 1024);
    const auto single = static_cast<uint32_t>((123 + r % 2) << 23 | (r >> 8) % (1 << 23));
    const bool f32 = s.scale == DType::kF32;
    const auto* bytes = reinterpret_cast<const std::byte*>(f32 ? static_cast<const void*>(&single) : &half);
    c.scales.insert(c.scales.end(), bytes, bytes + (f32 ? 4 : 2));
    if (s.points) c.zeros.push_back(static_cast<int16_t>((r >> 40) % (s.weight == DType::kU8 ? 256 : 16)));
  }
  return c;
}

Result<Comparison> compare(Gpu& gpu, const CodesShape& s, bool FastPaths::* path) {
  Random random(23);
  const Device device{Device::Kind::kCuda, gpu.facts().index};
  Context context{.device = device, .gpu = &gpu, .activation = DType::kBF16};
  DI_ASSIGN(Buffer scratch, gpu.allocate(linear_scratch(context, s.tokens, s.cols, s.rows)));
  Arena arena(std::move(scratch), 256);
  context.scratch = &arena;
  const Checkpoint c = random_checkpoint(s, random);
  LinearSource source{.dtype = s.weight, .cols = s.cols, .parts = {{c.codes.data(), s.rows}}};
  source.parts[0].scale = c.scales.data();
  source.parts[0].zero = s.points ? c.zeros.data() : nullptr;
  source.group = s.group;
  source.scale_dtype = s.scale;
  source.zero = s.weight == DType::kU8 ? 128 : 8;
  DI_ASSIGN(const LinearWeight weight, pack_linear(context, source));
  DI_ASSIGN(const Buffer x, send(gpu, random.bf16s(s.tokens * s.cols)));
  DI_ASSIGN(const Buffer out, gpu.allocate(static_cast<size_t>(s.tokens * s.rows) * sizeof(float)));
  const LinearCall call{.weight = &weight,
                        .x = make_tensor(x.data(), DType::kBF16, {s.tokens, s.cols}, device),
                        .out = make_tensor(out.data(), DType::kF32, {s.tokens, s.rows}, device)};
  Comparison result{.shape = fmt::format("{} tokens, {} [{}, {}] in groups of {}", s.tokens,
                                         info(s.weight).name, s.rows, s.cols, s.group),
                    .row = static_cast<size_t>(s.rows),
                    .bound = kCodesBound};
  const SavedPaths saved(gpu);
  for (const bool fast : {false, true}) {
    gpu.fast.cublaslt = gpu.fast.skinny_codes = gpu.fast.codes = false;
    gpu.fast.*path = fast;
    gpu.fill(out.data(), 0xff, out.size());
    linear(context, call);
    DI_ASSIGN((fast ? result.fast : result.plain), receive(gpu, call.out));
  }
  return result;
}

Result<std::vector<Comparison>> compare_all(Gpu& gpu, const std::vector<CodesShape>& shapes,
                                            bool FastPaths::* path) {
  std::vector<Comparison> all;
  for (const CodesShape& s : shapes) {
    DI_ASSIGN(Comparison c, compare(gpu, s, path));
    all.push_back(std::move(c));
  }
  return all;
}

}  // namespace

Result<std::vector<Comparison>> check_skinny_codes(Gpu& gpu) {
  return compare_all(
      gpu,
      {{.tokens = 1, .cols = 256, .group = 128},
       {.tokens = 7, .rows = 33, .cols = 192, .group = 32, .points = true},
       {.tokens = 16, .rows = 48, .scale = DType::kF32},
       {.weight = DType::kU8, .tokens = 3, .rows = 32, .group = 128, .scale = DType::kF32},
       {.weight = DType::kU8, .tokens = 12, .rows = 32, .cols = 96, .group = 32, .points = true}},
      &FastPaths::skinny_codes);
}

Result<std::vector<Comparison>> check_codes(Gpu& gpu) {
  // With K shared by several blocks, too.
  return compare_all(gpu,
                     {{.tokens = 17, .cols = 192, .group = 32, .points = true},
                      {.tokens = 40, .rows = 150, .cols = 1088, .group = 128},
                      {.tokens = 70, .rows = 33, .cols = 128, .scale = DType::kF32, .points = true},
                      {.weight = DType::kU8, .tokens = 33, .rows = 48, .cols = 1088, .group = 1088},
                      {.weight = DType::kU8, .tokens = 20, .rows = 32, .points = true}},
                     &FastPaths::codes);
}

}  // namespace deepinfer::cuda
