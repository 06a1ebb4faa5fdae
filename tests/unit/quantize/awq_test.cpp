#include "quantize/awq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "quantize/grid.h"
#include "random_matrix.h"

namespace deepinfer::quantize {
namespace {

double error_of(ThreadPool& pool, const InputStatistics& s, const std::vector<float>& w,
                const std::vector<float>& q, const std::vector<float>& factors) {
  std::vector<float> d(w.size());
  for (size_t i = 0; i < w.size(); ++i) d[i] = w[i] - q[i] / factors[i % s.cols];
  double sum = 0;
  for (const double e : output_errors(pool, s, d, static_cast<int64_t>(w.size()) / s.cols)) sum += e;
  return sum;
}

TEST(Awq, FactorsAndClippingLoseLessThanRoundingToNearest) {
  ThreadPool pool(2);
  const int64_t rows = 24, cols = 192;
  const InputStatistics s = input_statistics(pool, correlated_inputs(500, cols, 61), cols);
  const AwqOptions options{.group = 64};
  const Linear linear{
      .name = "w", .rows = rows, .cols = cols, .weight = random_values(rows * cols, 62), .bias = {}};
  const Linear* const linears[] = {&linear};
  const std::vector<float> factors = search_scales(pool, s, linears, {}, options);
  ASSERT_EQ(std::ssize(factors), cols);
  EXPECT_GT(*std::max_element(factors.begin(), factors.end()),
            1.5f);  // the large inputs are there to be found
  const QuantizedLinear made = quantize_awq(pool, divided(s, factors), options, linear, factors);
  const RoundSpec spec{.dtype = DType::kU4, .group = 64, .symmetric = false};
  const std::vector<float> nearest = dequantize_rows(round_rows(spec, linear.weight.data(), rows, cols));
  const std::vector<float> ones(cols, 1.0f);
  EXPECT_LT(error_of(pool, s, linear.weight, made.dequantize(), factors),
            0.8 * error_of(pool, s, linear.weight, nearest, ones));
}

TEST(Awq, ColumnsThatShareAnInputGetOneFactor) {
  ThreadPool pool(1);
  const int64_t rows = 8, cols = 64;
  const InputStatistics s = input_statistics(pool, correlated_inputs(300, cols, 71), cols);
  const Linear linear{
      .name = "o", .rows = rows, .cols = cols, .weight = random_values(rows * cols, 72), .bias = {}};
  const Linear* const linears[] = {&linear};
  std::vector<int32_t> shared(cols);
  for (int64_t j = 0; j < cols; ++j) shared[j] = static_cast<int32_t>(j % 16);
  const std::vector<float> factors = search_scales(pool, s, linears, shared, {.group = 32});
  for (int64_t j = 16; j < cols; ++j) EXPECT_EQ(factors[j], factors[j - 16]);
}

TEST(Awq, DividedRowsKeepTheirCodes) {
  const int64_t rows = 4, cols = 64;
  const std::vector<float> w = random_values(rows * cols, 81);
  const RoundSpec spec{.dtype = DType::kU4, .group = 32, .symmetric = false};
  QuantizedLinear q{
      .name = "v", .coded = round_rows(spec, w.data(), rows, cols), .order = {}, .bias = {1, 2, 3, 4}};
  const std::vector<float> before = q.dequantize();
  const std::vector<std::byte> codes = q.coded.codes;
  q.divide_rows({1, 2, 0.5f, 3});
  EXPECT_EQ(q.coded.codes, codes);
  EXPECT_EQ(q.bias, (std::vector<float>{1, 1, 6, 4.0f / 3}));
  const std::vector<float> after = q.dequantize();
  for (int64_t j = 0; j < cols; ++j) {
    EXPECT_EQ(after[j], before[j]);
    EXPECT_EQ(after[cols + j], before[cols + j] / 2);
    EXPECT_EQ(after[2 * cols + j], before[2 * cols + j] * 2);
    EXPECT_NEAR(after[3 * cols + j], before[3 * cols + j] / 3, 1e-3 * std::abs(before[3 * cols + j]));
  }
}

TEST(Grid, StaysInsideWhatTheScaleCanHold) {
  for (const bool symmetric : {true, false})
    for (const float size : {0.0f, 1e-9f, 1e-3f, 1e6f}) {
      const std::vector<float> w = {size, -size / 2, 0, size / 3};
      const std::vector<float> importance(4, 1.0f);
      const Grid grid = best_grid({.symmetric = symmetric}, w.data(), importance.data(), 4);
      SCOPED_TRACE(testing::Message() << symmetric << ", " << size);
      EXPECT_GT(grid.scale, 0);
      EXPECT_LE(grid.scale, 65504);
      EXPECT_EQ(grid.value(grid.code(0)), 0);
      if (size > 1e-6f && size < 1e5f)
        for (const float v : w) EXPECT_NEAR(grid.value(grid.code(v)), v, 0.6f * grid.scale);
    }
}

}  // namespace
}  // namespace deepinfer::quantize
