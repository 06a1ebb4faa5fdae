// Rows of logits with targets, and what a double-precision loop says about them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fixture.h"
#include "ops/ops.h"

namespace deepinfer::test {

struct Scores {
  std::vector<float> logprob;
  std::vector<int32_t> rank;
  std::vector<int32_t> top_token;  // [rows, top]
  std::vector<float> top_logprob;
};

struct ScoreCase {
  int64_t rows = 0, vocab = 0;
  int32_t top = 0;
  std::vector<float> logits;
  std::vector<int32_t> target;
};

inline ScoreCase random_scores(Random& random, int64_t rows, int64_t vocab, int32_t top) {
  ScoreCase c{rows, vocab, top, random_floats(random, rows * vocab, 3.0f), {}};
  for (int64_t i = 0; i < rows; ++i) {
    float* x = c.logits.data() + i * vocab;
    constexpr float kInf = std::numeric_limits<float>::infinity();
    if (i % 4 == 1)
      for (int64_t j = 0; j < vocab; ++j) x[j] = std::round(x[j]);  // many equal ones
    if (i % 5 == 2)
      for (int64_t j = random() % vocab; j < vocab; j += 3) x[j] = j % 2 ? -kInf : std::nanf("");
    if (i % 7 == 3) x[random() % vocab] = 80;
    c.target.push_back(static_cast<int32_t>(random() % vocab));
  }
  return c;
}

inline void expect_scores(const ScoreCase& c, const Scores& got) {
  for (int64_t i = 0; i < c.rows; ++i) {
    SCOPED_TRACE(testing::Message() << "row " << i << " of vocabulary " << c.vocab);
    std::vector<double> x(c.logits.begin() + i * c.vocab, c.logits.begin() + (i + 1) * c.vocab);
    for (double& v : x)
      if (std::isnan(v)) v = -INFINITY;
    const double max = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (const double v : x) sum += std::isinf(max) ? 0 : std::exp(v - max);
    // An ulp of a number as large as the logits, and the sum of V terms rounded to F32 each.
    const double bound = 2e-6 * (1 + std::fabs(max) + std::log(static_cast<double>(c.vocab) + 1));
    const auto near = [&](double v, float logprob) {
      if (std::isinf(v)) return logprob == -INFINITY;
      return std::fabs(v - max - std::log(sum) - logprob) <= bound;
    };
    const double target = x[c.target[i]];
    EXPECT_TRUE(near(target, got.logprob[i])) << got.logprob[i];
    EXPECT_EQ(got.rank[i], std::count_if(x.begin(), x.end(), [&](double v) { return v >= target; }));
    std::vector<int32_t> ids(c.vocab);
    for (int32_t j = 0; j < c.vocab; ++j) ids[j] = j;
    std::sort(ids.begin(), ids.end(),
              [&](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
    for (int32_t k = 0; k < c.top; ++k) {
      const bool there = k < c.vocab && !std::isinf(x[ids[k]]);
      const int64_t at = i * c.top + k;
      EXPECT_EQ(got.top_token[at], there ? ids[k] : -1) << "place " << k;
      EXPECT_TRUE(near(there ? x[ids[k]] : -INFINITY, got.top_logprob[at])) << "place " << k;
    }
  }
}

}  // namespace deepinfer::test
