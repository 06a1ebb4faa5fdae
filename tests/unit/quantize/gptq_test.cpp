#include "quantize/gptq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quantize/grid.h"
#include "random_matrix.h"

namespace deepinfer::quantize {
namespace {

// The inverse by Gauss and Jordan, in double precision.
std::vector<double> inverse(std::vector<double> m, int64_t n) {
  std::vector<double> out(n * n);
  for (int64_t i = 0; i < n; ++i) out[i * n + i] = 1;
  for (int64_t p = 0; p < n; ++p) {
    const double pivot = m[p * n + p];
    for (int64_t j = 0; j < n; ++j) {
      m[p * n + j] /= pivot;
      out[p * n + j] /= pivot;
    }
    for (int64_t i = 0; i < n; ++i) {
      if (i == p) continue;
      const double f = m[i * n + p];
      for (int64_t j = 0; j < n; ++j) {
        m[i * n + j] -= f * m[p * n + j];
        out[i * n + j] -= f * out[p * n + j];
      }
    }
  }
  return out;
}

// The paper's algorithm with nothing made fast: round a column, hand its error to all later ones by the
// inverse, then take the column out of the inverse.
std::vector<float> naive_gptq(const InputStatistics& s, const GptqOptions& o,
                              const std::vector<float>& weight, const std::vector<int32_t>& order) {
  const int64_t n = s.cols, rows = static_cast<int64_t>(weight.size()) / n;
  std::vector<double> h(n * n);
  double mean = 0;
  for (int64_t i = 0; i < n; ++i) mean += s.gram[i * n + i] / static_cast<double>(n);
  std::vector<float> importance(n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) h[i * n + j] = s.gram[order[i] * n + order[j]];
    importance[i] = static_cast<float>(h[i * n + i]);
    h[i * n + i] += o.damping * mean;
  }
  std::vector<double> w(weight.size()), hinv = inverse(h, n);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < n; ++j) w[r * n + j] = weight[r * n + order[j]];
  std::vector<Grid> grids(rows);
  std::vector<float> out(weight.size());
  for (int64_t p = 0; p < n; ++p) {
    for (int64_t r = 0; r < rows; ++r) {
      if (p % o.group == 0) {
        const int64_t size = std::min(o.group, n - p);
        const std::vector<float> now(w.begin() + r * n + p, w.begin() + r * n + p + size);
        grids[r] = best_grid({.symmetric = true, .scale_dtype = o.scale_dtype}, now.data(),
                             importance.data() + p, size);
      }
      const float value = grids[r].value(grids[r].code(static_cast<float>(w[r * n + p])));
      out[r * n + order[p]] = value;
      const double error = (w[r * n + p] - value) / hinv[p * n + p];
      for (int64_t j = p + 1; j < n; ++j) w[r * n + j] -= error * hinv[p * n + j];
    }
    for (int64_t i = p + 1; i < n; ++i)
      for (int64_t j = p + 1; j < n; ++j)
        hinv[i * n + j] -= hinv[i * n + p] * hinv[p * n + j] / hinv[p * n + p];
  }
  return out;
}

double total_error(ThreadPool& pool, const InputStatistics& s, const std::vector<float>& w,
                   const std::vector<float>& q) {
  std::vector<float> d(w.size());
  for (size_t i = 0; i < w.size(); ++i) d[i] = w[i] - q[i];
  double sum = 0;
  for (const double e : output_errors(pool, s, d, static_cast<int64_t>(w.size()) / s.cols)) sum += e;
  return sum;
}

struct Case {
  int64_t rows, cols, group;
  bool act_order;
};

class GptqTest : public testing::TestWithParam<Case> {};

TEST_P(GptqTest, MatchesTheNaiveAlgorithm) {
  const auto [rows, cols, group, act_order] = GetParam();
  ThreadPool pool(2);
  const InputStatistics s = input_statistics(pool, correlated_inputs(3 * cols, cols, 21), cols);
  const GptqOptions options{.group = group, .act_order = act_order};
  const std::vector<float> weight = random_values(rows * cols, 22, 0.05f);
  const Result<GptqInput> input = prepare_gptq(pool, s, options);
  ASSERT_TRUE(input) << input.error().message;
  EXPECT_EQ(input->damping, 0.01f);
  std::vector<int32_t> order(cols);
  std::iota(order.begin(), order.end(), 0);
  if (act_order)
    std::sort(order.begin(), order.end(),
              [&](int32_t a, int32_t b) { return s.gram[a * cols + a] > s.gram[b * cols + b]; });
  const std::vector<float> want = naive_gptq(s, options, weight, order);
  const QuantizedLinear made = quantize_gptq(
      pool, *input, options, {.name = "w", .rows = rows, .cols = cols, .weight = weight, .bias = {}});
  EXPECT_EQ(made.order, act_order ? order : std::vector<int32_t>());
  const std::vector<float> got = made.dequantize();
  // A value that lies between two codes may fall to either side, and what follows in its row differs then.
  int64_t equal = 0;
  for (size_t i = 0; i < got.size(); ++i) equal += got[i] == want[i];
  EXPECT_GT(static_cast<double>(equal), 0.95 * static_cast<double>(got.size()));
  EXPECT_NEAR(total_error(pool, s, weight, got) / total_error(pool, s, weight, want), 1, 0.01);
}

TEST_P(GptqTest, LosesLessThanRoundingToNearest) {
  const auto [rows, cols, group, act_order] = GetParam();
  ThreadPool pool(1);
  const InputStatistics s = input_statistics(pool, correlated_inputs(3 * cols, cols, 31), cols);
  const GptqOptions options{.group = group, .act_order = act_order};
  const std::vector<float> weight = random_values(rows * cols, 32, 0.05f);
  const Result<GptqInput> input = prepare_gptq(pool, s, options);
  ASSERT_TRUE(input) << input.error().message;
  const QuantizedLinear made = quantize_gptq(
      pool, *input, options, {.name = "w", .rows = rows, .cols = cols, .weight = weight, .bias = {}});
  const RoundSpec spec{.dtype = DType::kU4, .group = group, .symmetric = true};
  const std::vector<float> nearest = dequantize_rows(round_rows(spec, weight.data(), rows, cols));
  EXPECT_LT(total_error(pool, s, weight, made.dequantize()), 0.6 * total_error(pool, s, weight, nearest));
}

INSTANTIATE_TEST_SUITE_P(Shapes, GptqTest,
                         testing::Values(Case{4, 32, 32, false}, Case{9, 96, 32, false},
                                         Case{16, 320, 64, false}, Case{16, 320, 64, true},
                                         Case{5, 256, 128, true}, Case{8, 288, 288, false}));

TEST(Gptq, AnInputThatIsAlwaysZeroIsRoundedAsItIs) {
  ThreadPool pool(1);
  const int64_t rows = 3, cols = 64, tokens = 200;
  std::vector<float> x = correlated_inputs(tokens, cols, 41);
  for (int64_t t = 0; t < tokens; ++t) x[t * cols + 5] = 0;
  const InputStatistics s = input_statistics(pool, x, cols);
  const std::vector<float> weight = random_values(rows * cols, 42);
  const Result<GptqInput> input = prepare_gptq(pool, s, {.group = 64});
  ASSERT_TRUE(input) << input.error().message;
  const QuantizedLinear made = quantize_gptq(
      pool, *input, {.group = 64}, {.name = "w", .rows = rows, .cols = cols, .weight = weight, .bias = {}});
  const std::vector<float> got = made.dequantize();
  for (int64_t r = 0; r < rows; ++r) {
    const float step = load_scale(DType::kF16, made.coded.scales.data(), r);
    EXPECT_LE(std::abs(got[r * cols + 5] - std::clamp(weight[r * cols + 5], -8 * step, 7 * step)),
              0.51f * step);
  }
}

TEST(Gptq, RefusesInputsThatAreNotFinite) {
  ThreadPool pool(1);
  std::vector<float> x = correlated_inputs(64, 32, 51);
  x[100] = INFINITY;
  const auto input = prepare_gptq(pool, input_statistics(pool, x, 32), {.group = 32});
  ASSERT_FALSE(input);
  EXPECT_NE(input.error().message.find("not finite"), std::string::npos) << input.error().message;
}

}  // namespace
}  // namespace deepinfer::quantize
