// How far from one a ratio may be that compares a device with noise of the same law.
#pragma once

#include <cstdint>

namespace deepinfer::test {

// A mean square over a device's values, over the same mean square of `seeds` seeds of noise. Each is, in a
// good approximation, a chi-square over its degrees of freedom, where the device's has n ("directions"): so
// the ratio follows Fisher's distribution with n and seeds * n degrees. n = 2 / (relative variance of the
// square between seeds).
struct NoiseBound {
  double directions = 0;
  int seeds = 0;

  // The root of such a ratio: with a right device, one of `count` independent ones is above most() once in a
  // thousand times, and below least() once in a thousand times.
  double most(double count) const;
  double least(double count) const;
};

}  // namespace deepinfer::test
