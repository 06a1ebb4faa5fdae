// Random numbers for tests, the same for the same seed.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace deepinfer::quantize {

inline std::vector<float> random_values(int64_t n, uint32_t seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(random);
  return v;
}

// Inputs [tokens, cols] whose columns depend on each other and differ in size by two orders of magnitude.
inline std::vector<float> correlated_inputs(int64_t tokens, int64_t cols, uint32_t seed) {
  std::vector<float> x = random_values(tokens * cols, seed);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 1; j < cols; ++j) x[t * cols + j] = 0.6f * x[t * cols + j - 1] + 0.8f * x[t * cols + j];
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < cols; ++j)
      x[t * cols + j] *= j % 7 == 0 ? 10.0f : 1.0f / static_cast<float>(1 + j % 5);
  return x;
}

}  // namespace deepinfer::quantize
