#include "quantize/grid.h"

#include <algorithm>
#include <cmath>

#include "quant/round.h"

namespace deepinfer::quantize {
namespace {

constexpr float kMost = 15;  // codes of 4 bits
constexpr float kLargestF16 = 65504, kSmallestF16 = 0x1p-24f;

// A scale that its dtype can hold, and that is not 0.
float stored(DType dtype, float scale) {
  if (!(scale > 0)) return 1;
  if (dtype == DType::kF16) scale = std::clamp(scale, kSmallestF16, kLargestF16);
  float bits = 0;
  store_scale(dtype, scale, &bits, 0);
  return load_scale(dtype, &bits, 0);
}

// In eight sums, which vectors can hold.
template <class Term>
float sum_of(int64_t n, const Term& term) {
  constexpr int64_t kLanes = 8;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += term(i + lane);
  float total = 0;
  for (; i < n; ++i) total += term(i);
  for (const float sum : sums) total += sum;
  return total;
}

}  // namespace

int Grid::code(float w) const {
  const float at = std::nearbyint(w / scale) + static_cast<float>(zero);
  return static_cast<int>(std::clamp(at, 0.0f, kMost));
}

Range range_of(const float* w, int64_t n) {
  Range r;
  for (int64_t i = 0; i < n; ++i) {
    r.low = std::min(r.low, w[i]);
    r.high = std::max(r.high, w[i]);
  }
  return r;
}

Grid grid_of(const GridSpec& spec, const Range& range, float factor) {
  if (spec.symmetric)
    return {stored(spec.scale_dtype, factor * std::max(-range.low, range.high) / (kMost / 2)), 8};
  Grid grid{stored(spec.scale_dtype, factor * (range.high - range.low) / kMost), 0};
  grid.zero = static_cast<int>(std::clamp(std::nearbyint(-factor * range.low / grid.scale), 0.0f, kMost));
  return grid;
}

Grid best_grid(const GridSpec& spec, const float* w, const float* importance, int64_t n) {
  constexpr int kSteps = 40;
  constexpr float kFirst = 1.08f, kStep = 0.015f;
  const Range range = range_of(w, n);
  Grid best = grid_of(spec, range);
  float least = -1;
  for (int step = 0; step < kSteps; ++step) {
    const Grid grid = grid_of(spec, range, kFirst - kStep * static_cast<float>(step));
    const float inverse = 1 / grid.scale, low = static_cast<float>(-grid.zero), high = kMost + low;
    const float error = sum_of(n, [&](int64_t i) {
      const float code = std::min(high, std::max(low, std::nearbyint(w[i] * inverse)));
      const float difference = w[i] - code * grid.scale;
      return importance[i] * difference * difference;
    });
    if (least < 0 || error < least) {
      least = error;
      best = grid;
    }
  }
  return best;
}

}  // namespace deepinfer::quantize
