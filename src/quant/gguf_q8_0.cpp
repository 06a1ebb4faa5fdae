// Q8_0: fp16 d, 32 signed bytes q; x = d q.
#include <cstring>

#include "quant/formats.h"
#include "tensor/half.h"

namespace deepinfer {

void dequantize_q8_0(const std::byte* row, int64_t elems, float* out) {
  for (int64_t block = 0; block < elems / 32; ++block, row += 34, out += 32) {
    uint16_t d_bits;
    int8_t q[32];
    std::memcpy(&d_bits, row, sizeof d_bits);
    std::memcpy(q, row + 2, sizeof q);
    const float d = f16_to_float(d_bits);
    for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(q[i]);
  }
}

}  // namespace deepinfer
