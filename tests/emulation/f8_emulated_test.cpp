// F8 weights on CUDA against double precision: every scale kind, awkward shapes, each way that a product goes
// on each kind of card.
#include <cuda_fp8.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>

#include "backend/cuda/cublaslt.h"
#include "backend/cuda/f8.h"
#include "backend/cuda/packed.cuh"
#include "backend/cuda/parts.h"
#include "backend/cuda/staging.h"
#include "emulation/linear_fixture.h"
#include "quant/codes.h"
#include "tensor/half.h"

#ifdef DEEPINFER_EMULATION
#include "backend/cuda/ptx.h"
#endif

namespace deepinfer::test {
namespace {

struct Codes {
  int64_t rows = 0, cols = 0, group = 0;
  DType scale_dtype = DType::kF32;
  std::vector<uint8_t> codes;
  std::vector<std::byte> scales;

  LinearPart part() const { return {.data = codes.data(), .rows = rows, .scale = scales.data()}; }
};

Codes random_codes(Random& random, int64_t rows, int64_t cols, int64_t group, DType scale_dtype) {
  Codes c{rows, cols, group, scale_dtype, {}, {}};
  c.codes.resize(static_cast<size_t>(rows * cols));
  for (uint8_t& code : c.codes) {
    code = static_cast<uint8_t>(random());
    if ((code & 0x7f) == 0x7f) code ^= 0x08;
  }
  std::vector<float> scales;
  std::uniform_real_distribution<float> scale(0.5e-4f, 2e-4f);
  for (int64_t i = 0; i < rows * ((cols + group - 1) / group); ++i) scales.push_back(scale(random));
  c.scales.resize(scales.size() * static_cast<size_t>(info(scale_dtype).block_bytes));
  encode(scale_dtype, scales, c.scales.data());
  return c;
}

LinearSource source_of(const std::vector<const Codes*>& parts, RowOrder order = RowOrder::kConcatenated,
                       float x_scale = 0) {
  LinearSource s{.dtype = DType::kF8E4M3, .cols = parts[0]->cols, .parts = {}, .order = order};
  s.group = parts[0]->group;
  s.scale_dtype = parts[0]->scale_dtype;
  s.x_scale = x_scale;
  for (const Codes* c : parts) s.parts.push_back(c->part());
  return s;
}

LinearWeight pack_codes(CudaMachine& m, const LinearSource& s) {
  Result<LinearWeight> packed = cuda::pack_linear(m.context, s);
  DI_CHECK(packed.ok(), "{}", packed.error().message);
  return std::move(packed).value();
}

std::vector<double> row_of(const Codes& c, int64_t row) {
  const LinearSource s = source_of({&c});
  std::vector<float> values(static_cast<size_t>(c.cols));
  dequantize_codes(s, s.parts[0], row, values.data());
  return {values.begin(), values.end()};
}

// What f8.h promises: x rounded to e4m3 with a scale a token, or one for 128 columns.
std::vector<double> rounded_to_f8(const float* x, int64_t cols, bool groups, float x_scale) {
  std::vector<double> out;
  const int64_t step = groups ? 128 : cols;
  for (int64_t first = 0; first < cols; first += step) {
    const int64_t end = std::min(cols, first + step);
    float largest = 0;
    for (int64_t i = first; i < end; ++i) largest = std::max(largest, std::fabs(x[i]));
    const float scale = x_scale > 0 ? x_scale : std::max(largest / 448.0f, 1e-30f), inverse = 1.0f / scale;
    for (int64_t i = first; i < end; ++i)
      out.push_back(static_cast<double>(static_cast<float>(__nv_fp8_e4m3(x[i] * inverse))) * scale);
  }
  return out;
}

// The most by which rounding may change w x (f8.h).
double rounding_bound(const std::vector<double>& w, const float* x, bool groups) {
  double bound = 0;
  const size_t step = groups ? 128 : w.size();
  for (size_t first = 0; first < w.size(); first += step) {
    double largest = 0;
    const size_t end = std::min(w.size(), first + step);
    for (size_t i = first; i < end; ++i) largest = std::max<double>(largest, std::fabs(x[i]));
    for (size_t i = first; i < end; ++i)
      bound += std::fabs(w[i]) * std::max<double>(std::fabs(x[i]) / 16, largest / 448 / 1024);
  }
  return 1.001 * bound;
}

enum class Way { kHopperLibrary, kOtherLibrary, kTile, kWithoutF8 };

struct Setup {
  DType activation;
  bool groups;
  Way way;
};
std::string name(const testing::TestParamInfo<Setup>& i) {
  const char* ways[] = {"Hopper", "Other", "Tile", "WithoutF8"};
  return std::string(info(i.param.activation).name) + (i.param.groups ? "_groups_" : "_rows_") +
         ways[static_cast<int>(i.param.way)];
}

class CudaF8 : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("deepinfer_f8_" + std::to_string(getpid()));
    setenv("DEEPINFER_CACHE_DIR", folder_.c_str(), 1);
#ifdef DEEPINFER_EMULATION
    if (way() == Way::kOtherLibrary) emulation::reset_machine({.major = 12, .minor = 0});
    if (way() == Way::kTile) emulation::reset_machine({.major = 8, .minor = 9});
    if (way() == Way::kWithoutF8) emulation::reset_machine({.major = 8, .minor = 0});
#else
    const CudaMachine m(a());
    const int capability = m.gpu->facts().capability;
    const bool is_hopper = capability == 90, has_f8 = cuda::has_f8_products(*m.gpu);
    const bool fits = way() == Way::kHopperLibrary  ? is_hopper
                      : way() == Way::kOtherLibrary ? has_f8 && !is_hopper
                      : way() == Way::kTile         ? m.gpu->fast.f8_tile
                                                    : !has_f8;
    if (!fits) GTEST_SKIP() << "products do not go this way on a card of sm_" << capability;
#endif
  }
  void TearDown() override {
    unsetenv("DEEPINFER_CACHE_DIR");
    std::filesystem::remove_all(folder_);
#ifdef DEEPINFER_EMULATION
    emulation::reset_machine();
#endif
  }

  DType a() const { return GetParam().activation; }
  bool groups() const { return GetParam().groups; }
  Way way() const { return GetParam().way; }
  int64_t group(int64_t cols) const { return groups() && cols > 128 ? 128 : cols; }
  void open(CudaMachine& m) const {
    if (way() == Way::kHopperLibrary || way() == Way::kOtherLibrary) cuda::open_cublaslt(*m.gpu);
    ASSERT_EQ(m.gpu->fast.f8_tile, way() != Way::kWithoutF8);
    ASSERT_EQ(m.gpu->fast.cublaslt_f8, way() == Way::kHopperLibrary || way() == Way::kOtherLibrary);
    // What the library refuses would not be noticed.
    if (way() == Way::kHopperLibrary || (way() == Way::kOtherLibrary && !groups()))
      m.gpu->fast.f8_tile = false;
  }
  bool in_f8(const CudaMachine& m, int64_t tokens) const { return tokens > 16 && cuda::serves_f8(*m.gpu); }

  // Of the sum in F32, in fewer bits where a card adds products of codes; of weights expanded to A; of sums
  // that a library leaves in BF16.
  double bound(const CudaMachine& m, const Sum& s, int64_t cols, int64_t tokens) const {
    const bool f8 = in_f8(m, tokens), expanded = !f8 && (tokens > 64 || !m.gpu->fast.skinny);
    const double card = f8 && !kEmulated ? 0x1p-12 : 0;
    return ((static_cast<double>(cols) + 16) * kEps + (expanded ? eps_of(a()) : 0) + card) * s.magnitude +
           (f8 ? 0x1p-8 * std::fabs(s.value) : 0) + 1e-30;
  }

  void project(CudaMachine& m, int64_t rows, int64_t cols, const std::vector<int64_t>& counts,
               float x_scale = 0, DType scale_dtype = DType::kF32) {
    const Codes codes = random_codes(random_, rows, cols, group(cols), scale_dtype);
    const LinearWeight packed = pack_codes(m, source_of({&codes}, RowOrder::kConcatenated, x_scale));
    std::vector<std::vector<double>> values;
    for (int64_t r = 0; r < rows; ++r) values.push_back(row_of(codes, r));
    for (const int64_t tokens : counts) {
      const auto row_of = [&](const float* row) {
        const std::vector<double> q = in_f8(m, tokens)
                                          ? rounded_to_f8(row, cols, packed.group < cols, x_scale)
                                          : std::vector<double>(row, row + cols);
        return [&values, q](int64_t r) { return dot(values[r], q.data()); };
      };
      check_project(m, a(), random_, packed, tokens,
                    std::pair(row_of, [&](const Sum& s) { return bound(m, s, cols, tokens); }));
    }
  }

  // Against products with x as it is: within the bound of rounding, and as near as random errors come.
  void gate_up(CudaMachine& m, int64_t f, int64_t cols, int64_t tokens) {
    const Codes gate = random_codes(random_, f, cols, group(cols), DType::kBF16),
                up = random_codes(random_, f, cols, group(cols), DType::kBF16);
    const LinearWeight packed = pack_codes(m, source_of({&gate, &up}, RowOrder::kPaired));
    const bool with_bias = tokens % 2 == 1;
    const std::vector<float> x = random_floats(random_, tokens * cols), norm = random_floats(random_, cols),
                             bias = random_floats(random_, 2 * f);
    DeviceTensor dx(m, DType::kF32, x), dnorm(m, DType::kF32, norm), dbias(m, DType::kF32, bias),
        out(m, a(), static_cast<size_t>(tokens * f));
    cuda::gate_up(m.context, {.hidden = dx.tensor({tokens, cols}),
                              .norm = {dnorm.tensor({cols}), 1e-5f},
                              .weight = &packed,
                              .bias = with_bias ? dbias.tensor({2 * f}) : Tensor{},
                              .activation = Activation::kSilu,
                              .out = out.tensor({tokens, f})});
    const std::vector<float> result = out.read();
    double error = 0, whole = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const std::vector<float> row = ref::rms_norm({x.data() + t * cols, size_t(cols)}, norm, 1e-5f);
      for (int64_t r = 0; r < f; ++r) {
        double value[2], off[2];
        for (const int half : {0, 1}) {
          const std::vector<double> w = row_of(half == 0 ? gate : up, r);
          Sum s;
          for (int64_t k = 0; k < cols; ++k) {
            s.value += w[k] * row[k];
            s.magnitude += std::fabs(w[k] * row[k]);
          }
          value[half] = s.value + (with_bias ? bias[half * f + r] : 0);
          off[half] = bound(m, s, cols, tokens) + eps_of(a()) * s.magnitude;
          if (in_f8(m, tokens)) off[half] += rounding_bound(w, row.data(), packed.group < cols);
        }
        const double act = ref::activate(Activation::kSilu, value[0]), expected = act * value[1];
        // 1.10: SiLU's steepest slope.
        ASSERT_NEAR(result[t * f + r], expected,
                    1.1 * off[0] * (std::fabs(value[1]) + off[1]) + std::fabs(act) * off[1] +
                        (2 * eps_of(a()) + 64 * kEps) * std::fabs(expected) + 1e-7)
            << "f " << f << " cols " << cols << " token " << t << " of " << tokens << " row " << r;
        error += (result[t * f + r] - expected) * (result[t * f + r] - expected);
        whole += expected * expected;
      }
    }
    EXPECT_LT(std::sqrt(error / whole), in_f8(m, tokens) ? 0.06 : 0.01) << f << " " << cols << " " << tokens;
  }

  Random random_{20260731};
  std::filesystem::path folder_;
};

TEST_P(CudaF8, ProjectMatchesDoublePrecision) {
  CudaMachine m(a());
  open(m);
  project(m, 16, 64, {0, 1, 5, 9, 16, 17});
  project(m, 1, 2, {1, 18});
  project(m, 37, 70, {2, 33}, 0, DType::kF16);
  project(m, 72, 130, {1, 12, 20}, 0, DType::kBF16);
  project(m, 48, 320, {3, 8, 17, 36, 70});
}

TEST_P(CudaF8, ManySectionsOfK) {
  CudaMachine m(a());
  open(m);
  project(m, 17, 1088, {1, 11, 24});
}

TEST_P(CudaF8, ScalesOfActivationsAreTakenFromTheCheckpoint) {
  CudaMachine m(a());
  open(m);
  project(m, 32, 192, {4, 20, 21}, 1.0f / 128);
  project(m, 32, 192, {20}, 1.0f / 1024);  // what is beyond 448 of them is cut
}

TEST_P(CudaF8, GateUpMatchesDoublePrecision) {
  CudaMachine m(a());
  open(m);
  gate_up(m, 1, 66, 1);
  gate_up(m, 24, 192, 4);
  gate_up(m, 20, 320, 11);
  gate_up(m, 24, 192, 20);
  gate_up(m, 37, 320, 21);
}

TEST_P(CudaF8, AnyOrderOfThreadsAndOverlap) {
  for (const uint64_t seed : {1, 2, 3}) {
    use_order(seed);
    CudaMachine m(a());
    open(m);
    m.gpu->pdl = m.gpu->fast.pdl;
    project(m, 40, 192, {1, 10, 30});
  }
  use_order(1);
}

TEST_P(CudaF8, WithoutFastPathsWeightsAreExpanded) {
  CudaMachine m(a());
  m.gpu->fast.skinny = m.gpu->fast.f8_tile = false;
  project(m, 37, 200, {1, 20});
}

// Alone or among others, a token's bits are the same.
TEST_P(CudaF8, DeterministicBitsDoNotDependOnTheBatch) {
  CudaMachine m(a(), true);
  open(m);
  const int64_t rows = 24, cols = 320, tokens = 40;
  const Codes codes = random_codes(random_, rows, cols, group(cols), DType::kF32);
  const LinearWeight packed = pack_codes(m, source_of({&codes}));
  check_bits_alone(m, a(), random_, packed, tokens);
}

std::vector<Setup> setups() {
  std::vector<Setup> all;
  for (const DType a : {DType::kBF16, DType::kF16})
    for (const bool groups : {false, true})
      for (const Way way : {Way::kHopperLibrary, Way::kOtherLibrary, Way::kTile, Way::kWithoutF8})
        all.push_back({a, groups, way});
  return all;
}
INSTANTIATE_TEST_SUITE_P(Ways, CudaF8, testing::ValuesIn(setups()), name);

// --- Conversions and packing.

#ifdef DEEPINFER_EMULATION  // elsewhere the wrapper is the device's
TEST(CudaF8Codes, AreExactInBothTypes) {
  for (uint32_t code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;
    const uint32_t word = code | (code ^ 0x80) << 8 | (255 - code) % 0x7f << 16 | code << 24;
    const uint2 bf = cuda::from_e4m3x4<__nv_bfloat16>(word), half = cuda::from_e4m3x4<__half>(word);
    const float2 b0 = cuda::unpack2<__nv_bfloat16>(bf.x), b1 = cuda::unpack2<__nv_bfloat16>(bf.y),
                 h0 = cuda::unpack2<__half>(half.x), h1 = cuda::unpack2<__half>(half.y);
    const float got[2][4] = {{b0.x, b0.y, b1.x, b1.y}, {h0.x, h0.y, h1.x, h1.y}};
    for (int i = 0; i < 4; ++i)
      for (const auto& values : got)
        ASSERT_EQ(values[i], e4m3_to_float(static_cast<uint8_t>(word >> (8 * i)))) << code << " " << i;
  }
}

#endif

TEST(CudaF8Pack, ValuesStandWhereTheHeaderSays) {
  CudaMachine m(DType::kBF16);
  Random random(3);
  for (const auto& [rows, cols, group] :
       {std::tuple<int64_t, int64_t, int64_t>{21, 70, 70}, {40, 200, 128}, {300, 384, 128}}) {
    const Codes gate = random_codes(random, rows, cols, group, DType::kF16),
                up = random_codes(random, rows, cols, group, DType::kF16);
    const LinearWeight w = pack_codes(m, source_of({&gate, &up}, RowOrder::kPaired, 0.25f));
    EXPECT_EQ(w.x_scale, 0.25f);
    EXPECT_EQ(w.group, group);
    Result<Buffer> host = m.gpu->allocate_pinned(w.packed.size());
    ASSERT_TRUE(host.ok());
    m.gpu->copy_out(host.value().data(), w.packed.data(), w.packed.size());
    m.gpu->synchronize();
    cuda::PackedView view = cuda::packed_view(w);
    view.scales = host.value().data() + (static_cast<const std::byte*>(view.scales) - w.packed.data());
    view.data = host.value().data();
    for (int64_t row = 0; row < view.rows; ++row) {
      const int64_t part_row = row / 16 * 8 + row % 8;
      std::vector<double> expected(view.cols, 0.0);
      if (part_row < rows) {
        const std::vector<double> values = row_of(row % 16 < 8 ? gate : up, part_row);
        std::copy(values.begin(), values.end(), expected.begin());
      }
      for (int64_t k = 0; k < view.cols; ++k)
        ASSERT_EQ(cuda::packed_value(view, row, k), static_cast<float>(expected[k])) << row << " " << k;
    }
  }
  cuda::release_staging(*m.gpu);
}

TEST(CudaF8Pack, TakesLittleMoreThanHalfOfBF16) {
  const auto bytes = [](int64_t group) {
    return static_cast<double>(
        cuda::packed_size({.layout = cuda::Layout::kF8}, 4096, 4096, RowOrder::kConcatenated, group).bytes);
  };
  EXPECT_LE(bytes(4096), 0.502 * 2 * 4096 * 4096);
  EXPECT_LE(bytes(128), 0.52 * 2 * 4096 * 4096);
}

TEST(CudaF8Pack, RefusesWhatItHasNoKernelFor) {
  CudaMachine m(DType::kBF16);
  Random random(5);
  const Codes codes = random_codes(random, 3, 256, 256, DType::kF32);
  const auto refused = [&](const auto& change) {
    LinearSource s = source_of({&codes});
    change(s);
    const Result<LinearWeight> packed = cuda::pack_linear(m.context, s);
    m.gpu->synchronize();
    return packed.ok() ? std::string() : packed.error().message;
  };
  const std::vector<int16_t> zeros(3);
  EXPECT_EQ(refused([](LinearSource&) {}), "");
  EXPECT_THAT(refused([](LinearSource& s) { s.group = 64; }), testing::HasSubstr("64"));
  EXPECT_THAT(refused([](LinearSource& s) { s.scale_dtype = DType::kI8; }), testing::HasSubstr("I8"));
  EXPECT_THAT(refused([](LinearSource& s) { s.zero = 8; }), testing::HasSubstr("zero"));
  EXPECT_THAT(refused([&](LinearSource& s) { s.parts[0].zero = zeros.data(); }), testing::HasSubstr("zero"));
  EXPECT_THAT(refused([](LinearSource& s) { s.column_order.assign(256, 0); }), testing::HasSubstr("order"));
  EXPECT_THAT(refused([](LinearSource& s) { s.parts[0].scale = nullptr; }), testing::HasSubstr("scales"));
  EXPECT_THAT(refused([](LinearSource& s) { s.parts[0].rows = 0; }), testing::HasSubstr("rows"));
  EXPECT_THAT(refused([](LinearSource& s) { s.parts.clear(); }), testing::HasSubstr("no rows"));
  EXPECT_THAT(refused([](LinearSource& s) { s.order = RowOrder::kPaired; }), testing::HasSubstr("paired"));
  for (const size_t at : {0u, 255u, 700u, 767u}) {
    Codes broken = codes;
    broken.codes[at] = at % 2 == 0 ? 0x7f : 0xff;
    const Result<LinearWeight> packed = cuda::pack_linear(m.context, source_of({&broken}));
    ASSERT_FALSE(packed.ok());
    EXPECT_THAT(packed.error().message, testing::HasSubstr("row " + std::to_string(at / 256)));
  }
}

}  // namespace
}  // namespace deepinfer::test
