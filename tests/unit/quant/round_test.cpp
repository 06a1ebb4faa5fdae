// Rounding to nearest against its definition: the nearest of all codes.
#include "quant/round.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "quant/codes.h"
#include "tensor/half.h"

namespace deepinfer {
namespace {

constexpr unsigned kSeed = 7;

std::vector<float> normal(int64_t n, float sigma = 1) {
  std::mt19937 random(kSeed);
  std::normal_distribution<float> values(0, sigma);
  std::vector<float> x(n);
  for (float& v : x) v = values(random);
  return x;
}

TEST(Half, EveryCodeOfE4m3RoundsToItselfAndMidpointsToEven) {
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;
    EXPECT_EQ(float_to_e4m3(e4m3_to_float(static_cast<uint8_t>(code))), code);
    if ((code & 0x7f) == 0x7e) continue;
    const float a = e4m3_to_float(static_cast<uint8_t>(code));
    const float b = e4m3_to_float(static_cast<uint8_t>(code + 1));
    const float middle = (a + b) / 2;
    EXPECT_EQ(float_to_e4m3(middle), code % 2 == 0 ? code : code + 1) << code;
    EXPECT_EQ(float_to_e4m3(std::nextafter(middle, a)), code) << code;
    EXPECT_EQ(float_to_e4m3(std::nextafter(middle, b)), code + 1) << code;
  }
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(float_to_e4m3(1e30f), 0x7e);
  EXPECT_EQ(float_to_e4m3(-infinity), 0xfe);
  EXPECT_EQ(float_to_e4m3(std::nanf("")) & 0x7f, 0x7f);
}

template <class To, class From>
void check_halves(To to, From from, uint16_t infinity) {
  for (uint32_t sign : {0u, 0x8000u}) {
    for (uint32_t code = 0; code < infinity; ++code) {
      const auto bits = static_cast<uint16_t>(sign | code);
      ASSERT_EQ(to(from(bits)), bits);
      if (code + 1 == infinity) continue;
      const float a = from(bits), b = from(static_cast<uint16_t>(bits + 1)), middle = a + (b - a) / 2;
      ASSERT_EQ(to(middle), code % 2 == 0 ? bits : bits + 1) << bits;
      ASSERT_EQ(to(std::nextafter(middle, a)), bits) << bits;
      ASSERT_EQ(to(std::nextafter(middle, b)), bits + 1) << bits;
    }
    EXPECT_EQ(to(from(static_cast<uint16_t>(sign | infinity))), sign | infinity);
  }
  EXPECT_TRUE(std::isnan(from(to(std::nanf("")))));
  EXPECT_EQ(to(std::numeric_limits<float>::max()), infinity);
}

TEST(Half, F16AndBf16RoundToNearestEven) {
  check_halves(float_to_f16, f16_to_float, 0x7c00);
  check_halves(float_to_bf16, bf16_to_float, 0x7f80);
}

struct Case {
  RoundSpec spec;
  int64_t cols;
};

class Rounding : public ::testing::TestWithParam<Case> {};

// No other code of the row's scale and zero point is nearer, and the scale is the one of the definition.
TEST_P(Rounding, IsTheNearestCode) {
  const auto& [spec, cols] = GetParam();
  const int64_t rows = 5;
  std::vector<float> x = normal(rows * cols, 0.02f);
  for (int64_t j = 0; j < cols; ++j) x[cols + j] = std::abs(x[cols + j]);  // one side of zero only
  for (int64_t j = 0; j < cols; ++j) x[2 * cols + j] = 0;
  ThreadPool pool(3);
  const CodedRows coded = round_rows(spec, x.data(), rows, cols, &pool);
  const LinearSource source = coded.source();
  ASSERT_TRUE(check_codes(source)) << check_codes(source).error().message;
  std::vector<float> back(cols);
  for (int64_t r = 0; r < rows; ++r) {
    dequantize_codes(source, source.parts[0], r, back.data());
    for (int64_t j = 0; j < cols; ++j) {
      const int64_t g = j / source.group;
      const double scale = scale_at(source, source.parts[0], r, g);
      const int zero = coded.zeros.empty() ? source.zero : coded.zeros[r * source.groups() + g];
      double best = 1e30;
      for (int code = 0; code < (spec.dtype == DType::kU4 ? 16 : 256); ++code) {
        const double value = spec.dtype == DType::kF8E4M3 ? e4m3_to_float(static_cast<uint8_t>(code)) : code;
        if (!std::isnan(value)) best = std::min(best, std::abs(scale * (value - zero) - x[r * cols + j]));
      }
      ASSERT_LE(std::abs(back[j] - x[r * cols + j]), best * 1.0001 + 1e-9) << r << " " << j;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Rounding,
                         ::testing::Values(Case{{DType::kU4, 128}, 256}, Case{{DType::kU4, 32}, 96},
                                           Case{{DType::kU4, 64}, 96}, Case{{DType::kU4, 128, false}, 256},
                                           Case{{DType::kU4, 0, false, DType::kBF16}, 130},
                                           Case{{DType::kU8, 0, true}, 66},
                                           Case{{DType::kU8, 32, false, DType::kF32}, 64},
                                           Case{{DType::kF8E4M3, 0, true, DType::kF32}, 98},
                                           Case{{DType::kF8E4M3, 128, true, DType::kF32}, 160}));

TEST(RoundRow, ScalesFollowTheDefinition) {
  const float x[4] = {-1, 0.25f, 3.75f, 1};
  std::byte codes[4];
  float scale = 0;
  int16_t zero = 0;
  round_row({DType::kU4, 0, true, DType::kF32}, x, 4, codes, &scale, nullptr);
  EXPECT_EQ(scale, 0.5f);  // 3.75 / 7.5; codes 6, 8 (a tie to even), 15, 10
  EXPECT_EQ(codes[0], std::byte{0x86});
  EXPECT_EQ(codes[1], std::byte{0xaf});
  round_row({DType::kU4, 0, false, DType::kF32}, x, 4, codes, &scale, &zero);
  EXPECT_FLOAT_EQ(scale, 4.75f / 15);
  EXPECT_EQ(zero, 3);
  round_row({DType::kF8E4M3, 0, true, DType::kF32}, x, 4, codes, &scale, nullptr);
  EXPECT_EQ(scale, 3.75f / 448);
  EXPECT_EQ(codes[2], std::byte{0x7e});
}

TEST(RoundRow, ExtremesStayFinite) {
  const float big = std::numeric_limits<float>::max();
  const std::vector<float> x = {big, -big, 0, 1, 1e-44f, 0, -1e-44f, 0};
  for (const DType dtype : {DType::kU4, DType::kU8, DType::kF8E4M3}) {
    const CodedRows coded = round_rows({dtype, 4, true, DType::kF16}, x.data(), 1, 8);
    for (int g = 0; g < 2; ++g) {
      const float scale = load_scale(DType::kF16, coded.scales.data(), g);
      EXPECT_TRUE(std::isfinite(scale) && scale > 0) << scale;
    }
  }
  EXPECT_TRUE(all_finite(x.data(), 8));
  const float bad[] = {0, std::numeric_limits<float>::infinity(), std::nanf("")};
  EXPECT_FALSE(all_finite(bad, 2));
  EXPECT_FALSE(all_finite(bad + 2, 1));
}

}  // namespace
}  // namespace deepinfer
