// Q4_0: fp16 d, 16 bytes q; element i is the low nibble of byte i, element i + 16 the high one; x = d (q -
// 8).
#include <cstring>

#include "quant/formats.h"
#include "tensor/half.h"

namespace deepinfer {

void dequantize_q4_0(const std::byte* row, int64_t elems, float* out) {
  for (int64_t block = 0; block < elems / 32; ++block, row += 18, out += 32) {
    uint16_t d_bits;
    std::memcpy(&d_bits, row, sizeof d_bits);
    const float d = f16_to_float(d_bits);
    for (int i = 0; i < 16; ++i) {
      const int q = std::to_integer<int>(row[2 + i]);
      out[i] = d * static_cast<float>((q & 15) - 8);
      out[i + 16] = d * static_cast<float>((q >> 4) - 8);
    }
  }
}

}  // namespace deepinfer
