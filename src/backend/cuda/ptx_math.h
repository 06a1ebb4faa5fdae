// Conversions between the small float types, arithmetic on pairs of them, bit counts, fast functions.
#pragma once

#include "backend/cuda/ptx_base.h"

namespace deepinfer::cuda {

template <class T>
__device__ inline T minimum(T a, T b) {
  return b < a ? b : a;
}
template <class T>
__device__ inline T maximum(T a, T b) {
  return a < b ? b : a;
}

__device__ inline int popc(uint32_t x) {
#ifdef DEEPINFER_EMULATION
  return __builtin_popcount(x);
#else
  return __popc(x);
#endif
}

// Zeros before the highest one; 32 for 0.
__device__ inline int clz(uint32_t x) {
#ifdef DEEPINFER_EMULATION
  return x ? __builtin_clz(x) : 32;
#else
  return __clz(static_cast<int>(x));
#endif
}

// 1 + the place of the lowest one; 0 for 0.
__device__ inline int ffs(uint32_t x) {
#ifdef DEEPINFER_EMULATION
  return __builtin_ffs(static_cast<int>(x));
#else
  return __ffs(static_cast<int>(x));
#endif
}

// The high 32 bits of the product.
__device__ inline uint32_t umulhi(uint32_t a, uint32_t b) {
#ifdef DEEPINFER_EMULATION
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
#else
  return __umulhi(a, b);
#endif
}

// Rounded, and never fused with an addition.
__device__ inline float multiply(float a, float b) {
#ifdef DEEPINFER_EMULATION
  return a * b;
#else
  return __fmul_rn(a, b);
#endif
}

// Relative error about 2^-22; 2^x. exp_fast() loses accuracy as |x| grows (2 + |1.16 x| ulp).
__device__ inline float exp2_fast(float x) {
#ifdef DEEPINFER_EMULATION
  return std::exp2(x);
#else
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

__device__ inline float exp_fast(float x) {
#ifdef DEEPINFER_EMULATION
  return std::exp(x);
#else
  return __expf(x);
#endif
}

__device__ inline float log_fast(float x) {
#ifdef DEEPINFER_EMULATION
  return std::log(x);
#else
  return __logf(x);
#endif
}

__device__ inline float rsqrt(float x) {
#ifdef DEEPINFER_EMULATION
  return 1.0f / std::sqrt(x);
#else
  return rsqrtf(x);
#endif
}

// a / b for |b| below 2^126, 2 ulp.
__device__ inline float divide_fast(float a, float b) {
#ifdef DEEPINFER_EMULATION
  return a / b;
#else
  return __fdividef(a, b);
#endif
}

// Between F32 and one of __nv_bfloat16, __half, float; to the nearest, ties to even.
__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ inline float to_float(__half x) {
  return __half2float(x);
}

template <class T>
__device__ inline T from_float(float x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(x);
  else if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(x);
  else
    return static_cast<T>(x);
}

// Two elements of __nv_bfloat16 or __half in 32 bits, the first in the low half, and F32.
template <class T>
__device__ inline uint32_t pack2(float low, float high) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return bit_cast<uint32_t>(__floats2bfloat162_rn(low, high));
  else
    return bit_cast<uint32_t>(__floats2half2_rn(low, high));
}

template <class T>
__device__ inline float2 unpack2(uint32_t bits) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __bfloat1622float2(bit_cast<__nv_bfloat162>(bits));
  else
    return __half22float2(bit_cast<__half2>(bits));
}

// Arithmetic on such pairs, rounded once to T.
template <class T>
__device__ inline uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
#ifdef DEEPINFER_EMULATION
  // Rounded to F32 first: seldom one unit in the last place from the device's.
  const float2 x = unpack2<T>(a), y = unpack2<T>(b), z = unpack2<T>(c);
  const auto round = [](float p, float q, float r) { return from_float<T>(std::fma(p, q, r)); };
  const T parts[2] = {round(x.x, y.x, z.x), round(x.y, y.y, z.y)};
  return bit_cast<uint32_t>(parts);
#else
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return bit_cast<uint32_t>(
        __hfma2(bit_cast<__nv_bfloat162>(a), bit_cast<__nv_bfloat162>(b), bit_cast<__nv_bfloat162>(c)));
  else
    return bit_cast<uint32_t>(__hfma2(bit_cast<__half2>(a), bit_cast<__half2>(b), bit_cast<__half2>(c)));
#endif
}

template <class T>
__device__ inline uint32_t mul2(uint32_t a, uint32_t b) {
#ifdef DEEPINFER_EMULATION
  const float2 x = unpack2<T>(a), y = unpack2<T>(b);
  return pack2<T>(x.x * y.x, x.y * y.y);
#else
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return bit_cast<uint32_t>(__hmul2(bit_cast<__nv_bfloat162>(a), bit_cast<__nv_bfloat162>(b)));
  else
    return bit_cast<uint32_t>(__hmul2(bit_cast<__half2>(a), bit_cast<__half2>(b)));
#endif
}

template <class T>
__device__ inline uint32_t add2(uint32_t a, uint32_t b) {
#ifdef DEEPINFER_EMULATION
  const float2 x = unpack2<T>(a), y = unpack2<T>(b);
  return pack2<T>(x.x + y.x, x.y + y.y);
#else
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return bit_cast<uint32_t>(__hadd2(bit_cast<__nv_bfloat162>(a), bit_cast<__nv_bfloat162>(b)));
  else
    return bit_cast<uint32_t>(__hadd2(bit_cast<__half2>(a), bit_cast<__half2>(b)));
#endif
}

template <class T>
__device__ inline uint32_t sub2(uint32_t a, uint32_t b) {
#ifdef DEEPINFER_EMULATION
  const float2 x = unpack2<T>(a), y = unpack2<T>(b);
  return pack2<T>(x.x - y.x, x.y - y.y);
#else
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return bit_cast<uint32_t>(__hsub2(bit_cast<__nv_bfloat162>(a), bit_cast<__nv_bfloat162>(b)));
  else
    return bit_cast<uint32_t>(__hsub2(bit_cast<__half2>(a), bit_cast<__half2>(b)));
#endif
}

// FP8 e4m3 (finite: NaN is 0x7f). Larger values become +-448.
__device__ inline uint8_t to_e4m3(float x) {
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}

// The first in the low byte.
__device__ inline uint16_t to_e4m3x2(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

// Exact. To two __half or, through them, two __nv_bfloat16.
template <class T>
__device__ inline uint32_t from_e4m3x2(uint16_t bits) {
  const __half2_raw raw = __nv_cvt_fp8x2_to_halfraw2(bits, __NV_E4M3);
  const uint32_t halves = static_cast<uint32_t>(raw.x) | static_cast<uint32_t>(raw.y) << 16;
  if constexpr (std::is_same_v<T, __half>) return halves;
  const float2 f = unpack2<__half>(halves);
  return pack2<__nv_bfloat16>(f.x, f.y);
}

__device__ inline float2 float2_from_e4m3x2(uint16_t bits) {
  return unpack2<__half>(from_e4m3x2<__half>(bits));
}

__device__ inline float from_e4m3(uint8_t bits) {
  return float2_from_e4m3x2(bits).x;
}

// Bytes of a and b chosen by the nibbles of `selector`, as PRMT does (a holds bytes 0-3, b 4-7; bit 3 of a
// nibble spreads the byte's sign).
__device__ inline uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
#ifdef DEEPINFER_EMULATION
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (nibble & 7))) & 255;
    if (nibble & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
#else
  return __byte_perm(a, b, selector);
#endif
}

// (a & b) | c in one instruction.
__device__ inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
#ifdef DEEPINFER_EMULATION
  return (a & b) | c;
#else
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#endif
}

// Four e4m3 of a word as pairs of __nv_bfloat16 or __half, the first in the low half. Exact; not-a-numbers
// become 480 where the card has no instruction for it, so weights must have none.
template <class T>
__device__ inline uint2 from_e4m3x4(uint32_t word) {
#if !defined(DEEPINFER_EMULATION) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  if constexpr (std::is_same_v<T, __half>) {
    return {from_e4m3x2<T>(static_cast<uint16_t>(word)), from_e4m3x2<T>(static_cast<uint16_t>(word >> 16))};
  }
#endif
  // Sign, exponent and mantissa moved to where T has them stand for the value times 2^(7 - T's bias), for
  // subnormals too; one exact product mends that. BF16 has no shorter way on any card.
  constexpr bool kBF = std::is_same_v<T, __nv_bfloat16>;
  constexpr uint32_t kMagnitude = kBF ? 0x07f007f0u : 0x3f803f80u;
  constexpr uint32_t kPower = kBF ? 0x7b807b80u : 0x5c005c00u;  // 2^120, 2^8
  const uint32_t low = byte_perm(word, 0, 0x1404), high = byte_perm(word, 0, 0x3424);
  constexpr int kShift = kBF ? 4 : 1;
  return {mul2<T>(and_or(low, 0x80008000u, low >> kShift & kMagnitude), kPower),
          mul2<T>(and_or(high, 0x80008000u, high >> kShift & kMagnitude), kPower)};
}

}  // namespace deepinfer::cuda
