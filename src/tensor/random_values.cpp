#include "tensor/random_values.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace deepinfer {

static_assert(std::endian::native == std::endian::little, "four values are written as one number");

int random_exponent(int64_t terms) {
  const double deviation = -std::log2(static_cast<double>(std::max<int64_t>(terms, 1))) / 2;
  return std::clamp(static_cast<int>(std::lround(deviation)), kLeastRandomExponent, 0);
}

void write_random(const RandomValues& values, int64_t begin, int64_t end, std::byte* out) {
  const auto one = [&] {
    const uint16_t bits = random_bf16(values, begin++);
    std::memcpy(out, &bits, 2);
    out += 2;
  };
  while (begin < end && (values.first + begin) % 4 != 0) one();
  for (; end - begin >= 4; begin += 4, out += 8) {
    const auto group = static_cast<uint64_t>(values.first + begin) / 4;
    const uint64_t four = random_four(values.seed, values.exponent, group);
    std::memcpy(out, &four, 8);
  }
  while (begin < end) one();
}

}  // namespace deepinfer
