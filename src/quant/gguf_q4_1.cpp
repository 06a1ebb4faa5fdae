// Q4_1: fp16 d, fp16 m, 16 bytes q; nibbles as in Q4_0; x = d q + m, rounded after each step (no fused
// multiply-add: this folder is compiled without contraction).
#include <cstring>

#include "quant/formats.h"
#include "tensor/half.h"

namespace deepinfer {

void dequantize_q4_1(const std::byte* row, int64_t elems, float* out) {
  for (int64_t block = 0; block < elems / 32; ++block, row += 20, out += 32) {
    uint16_t bits[2];
    std::memcpy(bits, row, sizeof bits);
    const float d = f16_to_float(bits[0]);
    const float m = f16_to_float(bits[1]);
    for (int i = 0; i < 16; ++i) {
      const int q = std::to_integer<int>(row[4 + i]);
      out[i] = d * static_cast<float>(q & 15) + m;
      out[i + 16] = d * static_cast<float>(q >> 4) + m;
    }
  }
}

}  // namespace deepinfer
