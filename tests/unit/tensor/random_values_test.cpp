#include "tensor/random_values.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "tensor/half.h"

namespace deepinfer {
namespace {

std::vector<uint16_t> written(const RandomValues& r, int64_t begin, int64_t end) {
  std::vector<uint16_t> out(static_cast<size_t>(end - begin) + 1, 0xabcd);
  write_random(r, begin, end, reinterpret_cast<std::byte*>(out.data()));
  EXPECT_EQ(out.back(), 0xabcd) << "wrote behind its end";
  out.pop_back();
  return out;
}

TEST(RandomValues, WrittenIsWhatEachPlaceSays) {
  for (const int64_t first : {0, 1, 2, 3, 1 << 20}) {
    for (int64_t begin = 0; begin < 6; ++begin) {
      for (int64_t end = begin; end < begin + 14; ++end) {
        const RandomValues r{.seed = 5, .exponent = -6, .first = first};
        const std::vector<uint16_t> got = written(r, begin, end);
        for (int64_t i = begin; i < end; ++i)
          ASSERT_EQ(got[static_cast<size_t>(i - begin)], random_bf16(r, i))
              << first << " " << begin << " " << i;
      }
    }
  }
}

TEST(RandomValues, FirstShifts) {
  const RandomValues whole{.seed = 9, .exponent = -3}, later{.seed = 9, .exponent = -3, .first = 1003};
  for (int64_t i = 0; i < 20; ++i) EXPECT_EQ(random_bf16(later, i), random_bf16(whole, 1003 + i));
}

// Saved checkpoints and their figures stay comparable.
TEST(RandomValues, TheBitsAreFixed) {
  const std::vector<uint16_t> got = written({.seed = 1, .exponent = -6}, 0, 8);
  // splitmix64's first two numbers from the seed 1
  const uint64_t numbers[] = {0x910a2dec89025cc1, 0xbeeb8da1658eec67};
  for (size_t i = 0; i < got.size(); ++i) {
    const auto drawn = static_cast<uint16_t>(numbers[i / 4] >> (16 * (i % 4)));
    EXPECT_EQ(got[i], (drawn & 0x81ff) + ((124 - 6) << 7)) << i;
  }
}

TEST(RandomValues, MeanDeviationAndRange) {
  for (const int exponent : {kLeastRandomExponent, -6, 0}) {
    double sum = 0, squares = 0;
    constexpr int kCount = 1 << 18;
    const double most = std::ldexp(1.0, exponent + 1), least = std::ldexp(1.0, exponent - 3);
    for (const uint16_t bits : written({.seed = 3, .exponent = exponent}, 0, kCount)) {
      const double value = bf16_to_float(bits);
      ASSERT_LT(std::fabs(value), most);
      ASSERT_GE(std::fabs(value), least);
      sum += value;
      squares += value * value;
    }
    const double deviation = std::sqrt(squares / kCount);
    EXPECT_NEAR(deviation / std::ldexp(1.0, exponent), 0.88, 0.01);
    EXPECT_LT(std::fabs(sum / kCount), 4 * deviation / std::sqrt(kCount));
  }
}

TEST(RandomValues, F16IsTheSameNumber) {
  for (const int exponent : {kLeastRandomExponent, -6, 0}) {
    const RandomValues r{.seed = 4, .exponent = exponent};
    for (int64_t i = 0; i < 1000; ++i)
      ASSERT_EQ(f16_to_float(random_f16(r, i)), bf16_to_float(random_bf16(r, i))) << exponent << " " << i;
  }
}

TEST(RandomValues, ExponentKeepsSumsNearOne) {
  EXPECT_EQ(random_exponent(4096), -6);
  EXPECT_EQ(random_exponent(14336), -7);
  EXPECT_EQ(random_exponent(1), 0);
  EXPECT_EQ(random_exponent(int64_t{1} << 40), kLeastRandomExponent);
}

}  // namespace
}  // namespace deepinfer
