// The sixteen values of a group: where they lie, chosen for the least error.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace deepinfer::quantize {

struct Grid {
  float scale = 1;  // as stored
  int zero = 8;     // value = scale * (code - zero), codes from 0 to 15

  int code(float w) const;
  float value(int code) const { return scale * static_cast<float>(code - zero); }
};

struct GridSpec {
  bool symmetric = true;  // zero is 8
  DType scale_dtype = DType::kF16;
};

struct Range {
  float low = 0, high = 0;  // both 0, or around it
};
Range range_of(const float* w, int64_t n);

// The grid of a range shrunk to `factor` of itself. A range of nothing but zeros has the scale 1.
Grid grid_of(const GridSpec& spec, const Range& range, float factor = 1);

// Of ranges from somewhat over the whole one down to half of it, the one with the least
// sum of importance[i] * (w[i] - its code's value)^2.
Grid best_grid(const GridSpec& spec, const float* w, const float* importance, int64_t n);

}  // namespace deepinfer::quantize
