// Half and bfloat16 to F32, exactly, one at a time.
#pragma once

#include <bit>
#include <cstdint>

namespace deepinfer::cpu {

inline float bf16_to_float(uint16_t h) {
  return std::bit_cast<float>(static_cast<uint32_t>(h) << 16);
}

inline float f16_to_float(uint16_t h) {
  const uint32_t magnitude = h & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  // The exponent's offset by a multiplication, which also makes subnormal halves normal.
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f);
  const uint32_t bits = magnitude >= 0x7c00u ? (magnitude << 13) | 0x7f800000u : finite;
  return std::bit_cast<float>(bits | sign);
}

}  // namespace deepinfer::cpu
