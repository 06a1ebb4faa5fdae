// fp16, bf16 and e4m3 as bits, exact, without hardware support.
#pragma once

#include <bit>
#include <cstdint>

namespace deepinfer {

inline float bf16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// IEEE binary16: 1 sign, 5 exponent, 10 mantissa bits. NaN payloads are kept.
inline float f16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 31;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  // Zero or subnormal: mantissa x 2^-24, exact in F32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

// E4M3 of the OCP 8-bit floating point specification: 1 sign, 4 exponent, 3 mantissa bits, no infinity;
// largest value 448, NaN is 0x7f and 0xff.
inline float e4m3_to_float(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24;
  const uint32_t magnitude = bits & 0x7f;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  // Exponent and mantissa where F32 has them, 2^120 too small: subnormals come out right too.
  const float scaled = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

// The other way: to the nearest, ties to even. NaN stays NaN; F16 overflows to infinity.
inline uint16_t float_to_bf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t float_to_f16(float x) {
  const auto all = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint16_t>(all >> 16 & 0x8000);
  const uint32_t bits = all & 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520: half a step above the largest
  if (bits < 0x38800000) {                       // subnormal: steps of 2^-24
    const float steps = std::bit_cast<float>(bits) * 0x1p24f + 0x1p23f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(steps) & 0x7fffff));
  }
  return static_cast<uint16_t>(sign | ((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13));
}

// Saturates at 448, infinity too. Without branches: a loop of it becomes vector code.
inline uint8_t float_to_e4m3(float x) {
  const auto all = std::bit_cast<uint32_t>(x);
  const uint32_t sign = all >> 24 & 0x80, bits = all & 0x7fffffff;
  const uint32_t capped = bits < 0x43e00000u ? bits : 0x43e00000u;
  const float steps = std::bit_cast<float>(capped) * 0x1p9f + 0x1p23f;  // below 2^-6: steps of 2^-9
  const uint32_t small = std::bit_cast<uint32_t>(steps) & 0x7fffff;
  const uint32_t normal = (capped + 0x7ffff + (capped >> 20 & 1) - (120u << 23)) >> 20;
  const uint32_t finite = capped < 0x3c800000u ? small : normal;
  return static_cast<uint8_t>(sign | (bits > 0x7f800000u ? 0x7f : finite));
}

}  // namespace deepinfer
