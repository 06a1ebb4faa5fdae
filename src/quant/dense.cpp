// F32, F16, BF16: elements one by one, little-endian.
#include <cstring>

#include "quant/formats.h"
#include "tensor/half.h"

namespace deepinfer {

void dequantize_f32(const std::byte* row, int64_t elems, float* out) {
  std::memcpy(out, row, static_cast<size_t>(elems) * sizeof(float));
}

void dequantize_f16(const std::byte* row, int64_t elems, float* out) {
  for (int64_t i = 0; i < elems; ++i) {
    uint16_t bits;
    std::memcpy(&bits, row + i * 2, sizeof bits);
    out[i] = f16_to_float(bits);
  }
}

void dequantize_bf16(const std::byte* row, int64_t elems, float* out) {
  for (int64_t i = 0; i < elems; ++i) {
    uint16_t bits;
    std::memcpy(&bits, row + i * 2, sizeof bits);
    out[i] = bf16_to_float(bits);
  }
}

}  // namespace deepinfer
