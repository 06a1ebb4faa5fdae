// Products with codes (U4, U8) on CUDA against double precision: groups, scales, zero points, column orders,
// awkward shapes, every kernel.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/cuda/packed.cuh"
#include "backend/cuda/staging.h"
#include "emulation/codes_fixture.h"

namespace deepinfer::test {
namespace {

class CudaCodes : public testing::TestWithParam<CodesCase> {
 protected:
  DType a() const { return GetParam().activation; }

  // Residual += W x, with a bias for odd numbers of tokens and strided rows.
  void project(CudaMachine& m, int64_t rows, int64_t cols, const std::vector<int64_t>& token_counts,
               double rounded_to_a = 0) {
    const Codes codes(random_, GetParam(), {rows}, cols);
    const LinearWeight packed = codes.pack(m.context);
    std::vector<std::vector<double>> values;
    for (int64_t r = 0; r < rows; ++r) values.push_back(codes.row(0, r));
    const auto row_of = [&](const float* x) { return [&values, x](int64_t r) { return dot(values[r], x); }; };
    const auto bound = [&](const Sum& s) { return codes_bound(s, cols, rounded_to_a); };
    for (const int64_t tokens : token_counts)
      check_project(m, a(), random_, packed, tokens, std::pair(row_of, bound));
  }

  // act(W_gate norm(x)) * (W_up norm(x)).
  void gate_up(CudaMachine& m, int64_t f, int64_t cols, int64_t tokens) {
    SCOPED_TRACE(testing::Message() << "[2 * " << f << ", " << cols << "] times " << tokens << " tokens");
    const Codes codes(random_, GetParam(), {f, f}, cols);
    const LinearWeight packed = codes.pack(m.context, RowOrder::kPaired);
    const std::vector<float> x = random_floats(random_, tokens * cols), norm = random_floats(random_, cols);
    DeviceTensor dx(m, DType::kF32, x), dnorm(m, DType::kF32, norm),
        out(m, a(), static_cast<size_t>(tokens * f));
    cuda::gate_up(m.context, {.hidden = dx.tensor({tokens, cols}),
                              .norm = {dnorm.tensor({cols}), 1e-5f},
                              .weight = &packed,
                              .bias = {},
                              .out = out.tensor({tokens, f})});
    const std::vector<float> result = out.read();
    for (int64_t t = 0; t < tokens; ++t) {
      const std::vector<float> row =
          rounded(a(), ref::rms_norm({x.data() + t * cols, size_t(cols)}, norm, 1e-5f));
      for (int64_t r = 0; r < f; ++r) {
        const Sum g = dot(codes.row(0, r), row.data()), u = dot(codes.row(1, r), row.data());
        const double act = ref::activate(Activation::kSilu, g.value);
        // A few normalized activations may round the other way.
        const double gb = codes_bound(g, cols, 0) + 6 * eps_of(a()) * g.largest,
                     ub = codes_bound(u, cols, 0) + 6 * eps_of(a()) * u.largest;
        const double tolerance = 1.13 * gb * (std::fabs(u.value) + ub) + std::fabs(act) * ub +
                                 (2 * eps_of(a()) + 64 * kEps) * std::fabs(act * u.value) + 1e-7;
        ASSERT_NEAR(result[t * f + r], act * u.value, tolerance) << "token " << t << " row " << r;
      }
    }
  }

  Random random_{20261122};
};

TEST_P(CudaCodes, FewTokens) {
  CudaMachine m(a());
  project(m, 16, 64, {1, 2, 5, 8, 9, 16});
  project(m, 37, 130, {1, 3, 8, 13});
  project(m, 72, 320, {1, 7, 12});
}

TEST_P(CudaCodes, ManySectionsOfK) {
  CudaMachine m(a());
  project(m, 17, 1120, {1, 11});
}

TEST_P(CudaCodes, ManyTokens) {
  CudaMachine m(a());
  project(m, 1, 64, {17});
  project(m, 37, 130, {17, 33});
  project(m, 150, 320, {64});
  project(m, 24, 192, {130});
}

// K in ranges that blocks share: their sums meet in the order of the ranges, whoever comes last.
TEST_P(CudaCodes, SplitK) {
  for (const uint64_t seed : {1, 2, 3}) {
    use_order(seed);
    random_.seed(3);
    CudaMachine m(a());
    m.gpu->pdl = seed != 1;
    project(m, 40, 1120, {20, 40});
    project(m, 130, 1600, {64});
  }
  use_order(1);
}

TEST_P(CudaCodes, GateUp) {
  CudaMachine m(a());
  gate_up(m, 24, 64, 1);
  gate_up(m, 21, 192, 4);
  gate_up(m, 40, 130, 7);
  gate_up(m, 70, 160, 20);
}

// A weight that is expanded to A and multiplied as a dense one, by the library and by the tile kernel.
TEST_P(CudaCodes, Expanded) {
  CudaMachine m(a());
  project(m, 24, 130, {515}, eps_of(a()));
  m.gpu->fast.skinny_codes = m.gpu->fast.codes = m.gpu->fast.cublaslt = false;
  project(m, 37, 192, {3, 18}, eps_of(a()));
}

TEST_P(CudaCodes, DeterministicBitsDoNotDependOnTheBatch) {
  CudaMachine m(a(), true);
  const int64_t cols = 352, rows = 24, tokens = 70;
  const Codes codes(random_, GetParam(), {rows}, cols);
  const LinearWeight packed = codes.pack(m.context);
  check_bits_alone(m, a(), random_, packed, tokens);
}

std::vector<CodesCase> codes_cases() {
  std::vector<CodesCase> all;
  for (const DType a : {DType::kBF16, DType::kF16}) {
    for (const DType w : {DType::kU4, DType::kU8}) {
      all.push_back({w, a, 128, DType::kF16});
      all.push_back({w, a, 64, DType::kBF16, true});
      all.push_back({w, a, 32, DType::kF32, true, true});
      all.push_back({w, a, 0, DType::kF32});
      all.push_back({w, a, 96, DType::kF16, true});
    }
  }
  all.push_back({DType::kU4, DType::kBF16, 128, DType::kF16, true, true});
  all.push_back({DType::kU4, DType::kBF16, 0, DType::kBF16, true});
  return all;
}
INSTANTIATE_TEST_SUITE_P(Forms, CudaCodes, testing::ValuesIn(codes_cases()), codes_name);

// Every value where packed.h says, in the space that it says.
TEST(CudaCodesPack, ValuesAndBytes) {
  ThreadPool pool(3);
  CudaMachine m(DType::kBF16);
  m.context.pool = &pool;
  Random random(7);
  for (CodesCase c : codes_cases()) {
    if (c.activation != DType::kBF16) continue;
    c.ordered = false;
    const int64_t rows = 37, cols = 1090;
    const Codes codes(random, c, {rows, rows}, cols);
    for (const RowOrder order : {RowOrder::kPaired, RowOrder::kConcatenated}) {
      const LinearWeight w = codes.pack(m.context, order);
      Result<Buffer> host = m.gpu->allocate_pinned(w.packed.size());
      ASSERT_TRUE(host.ok());
      m.gpu->copy_out(host.value().data(), w.packed.data(), w.packed.size());
      m.gpu->synchronize();
      cuda::PackedView view = cuda::packed_view(w);
      const auto moved = [&](const void* p) -> const void* {
        return p == nullptr ? nullptr
                            : host.value().data() + (static_cast<const std::byte*>(p) - w.packed.data());
      };
      view.data = moved(view.data);
      view.scales = moved(view.scales);
      view.zeros = moved(view.zeros);
      for (int64_t row = 0; row < view.rows; ++row) {
        const bool paired = order == RowOrder::kPaired;
        const int64_t part = paired ? row % 16 / 8 : row / rows;
        const int64_t part_row = paired ? row / 16 * 8 + row % 8 : row % rows;
        const bool exists = part_row < rows && part < 2;
        const std::vector<double> expected =
            exists ? codes.row(part, part_row) : std::vector<double>(static_cast<size_t>(cols));
        for (int64_t k = 0; k < cols; ++k)
          ASSERT_EQ(cuda::packed_value(view, row, k), static_cast<float>(expected[k]))
              << codes_name({c, 0}) << " row " << row << " column " << k;
      }
    }
  }
  cuda::release_staging(*m.gpu);
}

// What the bounds of these tests are worth: one zero point of a group that is off by one is far outside.
TEST(CudaCodesFault, AWrongZeroPointIsFound) {
  for (const int64_t tokens : {2, 20}) {
    CudaMachine m(DType::kBF16);
    Random random(11);
    const CodesCase c{DType::kU4, DType::kBF16, 64, DType::kF16, true};
    const int64_t rows = 32, cols = 320, wrong_row = 21;
    Codes codes(random, c, {rows}, cols);
    const LinearWeight packed = codes.pack(m.context);
    std::vector<int16_t> zeros(codes.source().parts[0].zero, codes.source().parts[0].zero + rows * 5);
    ++zeros[wrong_row * 5 + 3];
    codes.mutable_source().parts[0].zero = zeros.data();
    const std::vector<float> x = rounded(DType::kBF16, random_floats(random, tokens * cols));
    DeviceTensor dx(m, DType::kBF16, x), out(m, DType::kF32, static_cast<size_t>(tokens * rows));
    cuda::linear(
        m.context,
        {.weight = &packed, .x = dx.tensor({tokens, cols}), .bias = {}, .out = out.tensor({tokens, rows})});
    const std::vector<float> y = out.read();
    int found = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t r = 0; r < rows; ++r) {
        const Sum s = dot(codes.row(0, r), x.data() + t * cols);
        const double error = std::fabs(y[t * rows + r] - s.value), most = codes_bound(s, cols, 0);
        if (r == wrong_row)
          found += error > most;
        else
          ASSERT_LE(error, most) << "token " << t << " row " << r;
      }
    }
    EXPECT_GT(2 * found, tokens);  // it shows less where x of the group sums to nearly nothing
  }
}

// The measure of 4 bits: 4.3 a weight in groups of 128 with zero points.
TEST(CudaCodesPack, BitsOfAWeight) {
  CudaMachine m(DType::kBF16);
  Random random(3);
  const int64_t rows = 64, cols = 1024;
  const auto bits = [&](const CodesCase& c) {
    const LinearWeight w = Codes(random, c, {rows}, cols).pack(m.context);
    return 8.0 * static_cast<double>(w.packed.size()) / (rows * cols);
  };
  EXPECT_LE(bits({DType::kU4, DType::kBF16, 128, DType::kF16, true}), 4.2);
  EXPECT_LE(bits({DType::kU4, DType::kBF16, 128, DType::kBF16}), 4.13);
  EXPECT_LE(bits({DType::kU8, DType::kBF16, 0, DType::kF32}), 8.04);
}

TEST(CudaCodesPack, RefusesZeroPointsThatItCannotSubtract) {
  CudaMachine m(DType::kBF16);
  Random random(5);
  const auto error = [&](DType dtype, int16_t zero, bool points) {
    Codes codes(random, {dtype, DType::kBF16, 32, DType::kF16}, {16}, 64);
    const std::vector<int16_t> zeros(32, zero);
    if (points)
      codes.mutable_source().parts[0].zero = zeros.data();
    else
      codes.mutable_source().zero = zero;
    const Result<LinearWeight> r = cuda::pack_linear(m.context, codes.source());
    m.gpu->synchronize();
    return r.ok() ? std::string("packed") : r.error().message;
  };
  EXPECT_EQ(error(DType::kU4, 127, true), "packed");
  EXPECT_EQ(error(DType::kU8, 256, false), "packed");
  EXPECT_THAT(error(DType::kU4, 128, true), testing::HasSubstr("got 128, CUDA takes 0 to 127"));
  EXPECT_THAT(error(DType::kU8, 257, false), testing::HasSubstr("got 257, CUDA takes 0 to 256"));
  EXPECT_THAT(error(DType::kU4, -1, false), testing::HasSubstr("got -1"));
}

}  // namespace
}  // namespace deepinfer::test
