// Weights without a checkpoint: numbers computed from a seed and from their place in the tensor, so that a
// device makes them where they are needed, with the host's bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace deepinfer {

// BF16 values of mean 0 and deviation 0.88 * 2^exponent: either sign, magnitudes of four octaves from
// 2^(exponent - 3) to below 2^(exponent + 1).
struct RandomValues {
  uint64_t seed = 0;
  int exponent = 0;   // kLeastRandomExponent to 0
  int64_t first = 0;  // element 0 is the tensor's element `first`
};

// Below it some values would be no normal numbers in F16.
inline constexpr int kLeastRandomExponent = -11;

// Four of a tensor's values, 4 * group and those after it, the first in the low bits.
constexpr uint64_t random_four(uint64_t seed, int exponent, uint64_t group) {
  uint64_t z = seed + (group + 1) * 0x9e3779b97f4a7c15;  // splitmix64, whose numbers need no state
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  z ^= z >> 31;
  // Of each 16 bits the sign, the lower two of the exponent and the mantissa are drawn. No sum carries over.
  return (z & 0x81ff81ff81ff81ff) + static_cast<uint64_t>(124 + exponent) * 0x0080008000800080;
}

constexpr uint16_t random_bf16(const RandomValues& r, int64_t index) {
  const auto at = static_cast<uint64_t>(r.first + index);
  return static_cast<uint16_t>(random_four(r.seed, r.exponent, at / 4) >> (at % 4 * 16));
}

// The same number in F16, exactly.
constexpr uint16_t random_f16(const RandomValues& r, int64_t index) {
  const uint32_t bits = random_bf16(r, index);
  return static_cast<uint16_t>((bits & 0x8000) | ((bits & 0x7fff) - ((127 - 15) << 7)) << 3);
}

// The exponent that keeps the sums of `terms` products of them with numbers near 1 near 1.
int random_exponent(int64_t terms);

// Elements [begin, end) in BF16 to `out`, which needs no alignment.
void write_random(const RandomValues& values, int64_t begin, int64_t end, std::byte* out);

}  // namespace deepinfer
