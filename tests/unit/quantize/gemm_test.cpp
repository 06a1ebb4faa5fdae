#include "quantize/gemm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "quantize/cholesky.h"
#include "quantize/statistics.h"
#include "random_matrix.h"

namespace deepinfer::quantize {
namespace {

struct Shape {
  int64_t m, n, k;
};

float at(const MatrixView& v, int64_t i, int64_t j) {
  return v.data[i * v.row_stride + j * v.col_stride];
}

void expect_product(const Product& p, const std::vector<float>& before, const std::vector<float>& c) {
  for (int64_t i = 0; i < p.a.rows; ++i)
    for (int64_t j = 0; j < p.b.cols; ++j) {
      double sum = 0, size = 1e-6;
      for (int64_t k = 0; k < p.a.cols; ++k) {
        sum += static_cast<double>(at(p.a, i, k)) * at(p.b, k, j);
        size += std::abs(static_cast<double>(at(p.a, i, k)) * at(p.b, k, j));
      }
      const double want = (p.add ? before[i * p.c_stride + j] : 0.0) + (p.negate ? -sum : sum);
      ASSERT_NEAR(c[i * p.c_stride + j], want, 3e-6 * size + 1e-6) << i << ", " << j;
    }
}

TEST(Gemm, MatchesLoopsOverOddShapesAndStrides) {
  uint32_t seed = 1;
  for (const Shape s :
       {Shape{1, 1, 1}, Shape{5, 3, 2}, Shape{13, 33, 70}, Shape{97, 100, 300}, Shape{300, 580, 17}})
    for (const bool transposed : {false, true})
      for (const bool negate : {false, true}) {
        SCOPED_TRACE(testing::Message() << s.m << " x " << s.n << " x " << s.k << " seed " << seed);
        const std::vector<float> a = random_values(s.m * s.k, seed++), b = random_values(s.k * s.n, seed++);
        const std::vector<float> before = random_values(s.m * (s.n + 3), seed++);
        std::vector<float> c = before;
        const Product p{
            .a = transposed ? row_major(a.data(), s.k, s.m).transposed() : row_major(a.data(), s.m, s.k),
            .b = transposed ? row_major(b.data(), s.n, s.k).transposed() : row_major(b.data(), s.k, s.n),
            .c = c.data(),
            .c_stride = s.n + 3,
            .add = negate,
            .negate = negate};
        multiply(p);
        expect_product(p, before, c);
        for (int64_t i = 0; i < s.m; ++i)
          for (int64_t j = s.n; j < s.n + 3; ++j) ASSERT_EQ(c[i * (s.n + 3) + j], before[i * (s.n + 3) + j]);
      }
}

TEST(Gemm, IsTheSameForAnyNumberOfThreads) {
  const int64_t m = 601, n = 1200, k = 90;
  const std::vector<float> a = random_values(m * k, 7), b = random_values(k * n, 8);
  std::vector<float> one(m * n), three(m * n);
  multiply({.a = row_major(a.data(), m, k), .b = row_major(b.data(), k, n), .c = one.data(), .c_stride = n});
  ThreadPool pool(3);
  multiply(
      pool,
      {.a = row_major(a.data(), m, k), .b = row_major(b.data(), k, n), .c = three.data(), .c_stride = n});
  EXPECT_EQ(one, three);
}

TEST(Cholesky, GivesTheUpperFactorOfTheInverse) {
  ThreadPool pool(2);
  for (const int64_t n : {1, 7, 96, 97, 250}) {
    SCOPED_TRACE(n);
    InputStatistics s = input_statistics(pool, correlated_inputs(2 * n + 20, n, 11), n);
    for (int64_t i = 0; i < n; ++i) s.gram[i * n + i] += 0.1f;
    const std::vector<float> u = inverse_cholesky(pool, s.gram, n);
    ASSERT_EQ(std::ssize(u), n * n);
    // u^T u h = 1, looked at as u h u^T = 1.
    std::vector<double> uh(n * n);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        for (int64_t k = i; k < n; ++k)
          uh[i * n + j] += static_cast<double>(u[i * n + k]) * s.gram[k * n + j];
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) {
        if (j < i) ASSERT_EQ(u[i * n + j], 0.0f);
        double sum = 0;
        for (int64_t k = j; k < n; ++k) sum += uh[i * n + k] * u[j * n + k];
        ASSERT_NEAR(sum, i == j ? 1 : 0, 2e-3) << i << ", " << j;
      }
  }
}

TEST(Cholesky, SaysWhenThereIsNone) {
  ThreadPool pool(1);
  EXPECT_TRUE(inverse_cholesky(pool, {1, 2, 2, 1}, 2).empty());
  EXPECT_TRUE(inverse_cholesky(pool, {std::nanf(""), 0, 0, 1}, 2).empty());
}

TEST(Statistics, AreThoseOfTheInputs) {
  ThreadPool pool(2);
  const int64_t tokens = 40, cols = 9, rows = 3;
  const std::vector<float> x = correlated_inputs(tokens, cols, 3), w = random_values(rows * cols, 4);
  const InputStatistics s = input_statistics(pool, x, cols);
  const std::vector<double> errors = output_errors(pool, s, w, rows);
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      double y = 0;
      for (int64_t j = 0; j < cols; ++j) y += static_cast<double>(x[t * cols + j]) * w[r * cols + j];
      sum += y * y;
    }
    EXPECT_NEAR(errors[r], 2 * sum / tokens, 1e-4 * sum);
  }
  double mean = 0;
  for (int64_t t = 0; t < tokens; ++t) mean += std::abs(x[t * cols + 2]) / tokens;
  EXPECT_NEAR(s.mean_abs[2], mean, 1e-5);
}

}  // namespace
}  // namespace deepinfer::quantize
