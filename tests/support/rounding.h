// The yardstick of devices that round what passes inside a layer: the reference in F32, and the reference
// with noise of the size of that rounding. What the noise does to the logits is what rounding may do to them:
// nobody has to guess how layers amplify or average it.
//
// A float of p significant bits (the leading one counted) that is rounded to nearest is off by a uniform part
// of its last place; over significands as they occur (their logarithm uniform) that is a relative error of
// 2^-p sqrt(1/3) sqrt(3 / (8 ln 2)) rms. An error of that size in each input of a product has the second
// moment of the same relative error in each weight: sum_j w_ij x_j e_ij and sum_j w_ij x_j e_j have the same
// variance. So noise goes into weights, and the CPU's F32 kernels do the rest. Rounded q, k and v are a
// relative error of the row of the weight (and bias) that makes them.
#pragma once

#include <cstdint>

#include "model/checkpoint.h"

namespace deepinfer::test {

// Relative root mean square of one rounding to nearest. kF32: 0. Of BF16, F16 and F8E4M3.
double rounding_rms(DType dtype);

// Of activations quantized to 8 bits in groups of 32 (the CPU, for quantized weights): steps of largest/127.
// `crest`: the root mean square, over groups, of largest over root mean square; 2.1 for normal values.
double int8_rms(double crest = 2.1);

// Relative root mean squares.
struct Rounding {
  double inputs = 0;  // of products: after a norm, attention's result, the feed-forward's activation
  double q = 0, k = 0;
  double v = 0;  // attention's probabilities too: both average over the context in the same way

  // A device whose activations and cache have these types.
  static Rounding of(DType activation, DType kv);
};

// All weights as F32 in memory; matrices that are not quantized are rounded to `dense` before (a device keeps
// them so), unless that is kF32. Without a tokenizer.
Result<Checkpoint> to_float(const Checkpoint& checkpoint, DType dense);

// A checkpoint made by to_float(), with noise.
Result<Checkpoint> with_noise(const Checkpoint& checkpoint, const Rounding& rounding, uint64_t seed);

}  // namespace deepinfer::test
