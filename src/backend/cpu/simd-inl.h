// Vectors of 16 floats whatever the registers' width: the compiler splits them. Included by the kernel files
// only, inside an unnamed namespace each (internal linkage: every file has flags of its own).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tensor/dtype.h"

#define DI_INLINE static inline __attribute__((always_inline))
#define DI_UNROLL _Pragma("clang loop unroll(full)")
#define DI_NO_UNROLL _Pragma("clang loop unroll(disable)")

namespace deepinfer::cpu {
namespace {

constexpr int kLanes = 16;
using F32 = float __attribute__((vector_size(64)));
using I32 = int32_t __attribute__((vector_size(64)));
using U16 = uint16_t __attribute__((vector_size(32)));
using I16 = int16_t __attribute__((vector_size(32)));
using I8 = int8_t __attribute__((vector_size(16)));

template <class V>
DI_INLINE V load_as(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
DI_INLINE void store_as(void* p, V v) {
  std::memcpy(p, &v, sizeof(V));
}
DI_INLINE F32 load(const float* p) {
  return load_as<F32>(p);
}
DI_INLINE void store(float* p, F32 v) {
  store_as(p, v);
}
// The first n lanes of 16; the others are zero.
DI_INLINE F32 load_n(const float* p, int64_t n) {
  F32 v{};
  std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
}
DI_INLINE void store_n(float* p, F32 v, int64_t n) {
  std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
}
DI_INLINE F32 splat(float x) {
  return F32{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}
// One instruction where there is one; contracted by the compiler, for it stands in one expression.
DI_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return a * b + c;
}
DI_INLINE F32 max(F32 a, F32 b) {
  return a > b ? a : b;
}
DI_INLINE F32 abs(F32 a) {
  return reinterpret_cast<F32>(reinterpret_cast<I32>(a) & 0x7fffffff);
}

// Reductions across lanes, always as the same tree.
DI_INLINE float sum(F32 v) {
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return v[0] + v[1];
}
DI_INLINE float max(F32 v) {
  v = max(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = max(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = max(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  return v[0] > v[1] ? v[0] : v[1];
}

// e^x within 2 ulp: 2^n * e^r, |r| <= ln(2) / 2. Below -87 it stays at e^-87, above 88 at e^88.
DI_INLINE F32 exp(F32 x) {
  x = x < splat(-87.0f) ? splat(-87.0f) : x;
  x = x > splat(88.0f) ? splat(88.0f) : x;
  const F32 n = __builtin_elementwise_roundeven(x * 1.44269504088896341f);
  F32 r = fma(n, splat(-0.693359375f), x);  // ln(2) in two parts: the first one times n is exact
  r = fma(n, splat(2.12194440e-4f), r);
  F32 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  const I32 exponent = (__builtin_convertvector(n, I32) + 127) << 23;
  return p * reinterpret_cast<F32>(exponent);
}

DI_INLINE F32 f16_to_f32(U16 h) {
#if defined(__AVX512F__)
  return reinterpret_cast<F32>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(h)));
#elif defined(__F16C__)
  struct {
    __m256 low, high;
  } const parts = {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(&h))),
                   _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(&h) + 1))};
  return load_as<F32>(&parts);
#else
  const I32 w = __builtin_convertvector(h, I32);
  const I32 magnitude = w & 0x7fff;
  const I32 sign = (w & 0x8000) << 16;
  // The exponent's offset by a multiplication, which also makes subnormal halves normal.
  const F32 finite = reinterpret_cast<F32>(magnitude << 13) * 0x1p112f;
  const I32 special = (magnitude << 13) | 0x7f800000;
  const I32 bits = magnitude >= 0x7c00 ? special : reinterpret_cast<I32>(finite);
  return reinterpret_cast<F32>(bits | sign);
#endif
}

DI_INLINE F32 bf16_to_f32(U16 h) {
  return reinterpret_cast<F32>(__builtin_convertvector(h, I32) << 16);
}

// To the nearest, ties to even.
DI_INLINE U16 f32_to_f16(F32 x) {
#if defined(__AVX512F__)
  return reinterpret_cast<U16>(_mm512_cvtps_ph(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  struct {
    __m128i low, high;
  } parts;
  __m256 halves[2];
  std::memcpy(halves, &x, sizeof x);
  parts.low = _mm256_cvtps_ph(halves[0], _MM_FROUND_TO_NEAREST_INT);
  parts.high = _mm256_cvtps_ph(halves[1], _MM_FROUND_TO_NEAREST_INT);
  return load_as<U16>(&parts);
#else
  const I32 bits = reinterpret_cast<I32>(x);
  const I32 sign = (bits >> 16) & 0x8000;
  const I32 magnitude = bits & 0x7fffffff;
  // Subnormal halves: adding 0.5 aligns the mantissa so that the addition rounds.
  const F32 small = reinterpret_cast<F32>(magnitude) + 0.5f;
  const I32 subnormal = reinterpret_cast<I32>(small) - 0x3f000000;
  const I32 normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const I32 infinite = I32{} + 0x7c00;
  const I32 nan = infinite | 0x200;
  I32 h = magnitude < 0x38800000 ? subnormal : normal;
  h = magnitude >= 0x477ff000 ? infinite : h;
  h = magnitude > 0x7f800000 ? nan : h;
  return __builtin_convertvector(h | sign, U16);
#endif
}

DI_INLINE U16 f32_to_bf16(F32 x) {
  const I32 bits = reinterpret_cast<I32>(x);
  const I32 rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const I32 nan = bits | 0x400000;
  const I32 kept = (bits & 0x7fffffff) > 0x7f800000 ? nan : rounded;
  return __builtin_convertvector((kept >> 16) & 0xffff, U16);
}

// e4m3 (1 sign, 4 exponent, 3 mantissa bits, bias 7) times 2^-8, exactly: its bits are those of a half with
// a smaller exponent. NaN (0x7f) reads as 480 x 2^-8.
constexpr float kE4M3Unit = 0x1p8f;
DI_INLINE F32 e4m3_to_f32(const uint8_t* p) {
#if defined(__AVX2__) && defined(__F16C__)
  const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  // The shift leaves two copies of the sign, one where the half's largest exponent bit stands.
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16(0xbfff - 0x10000));
  return f16_to_f32(reinterpret_cast<U16>(half));
#else
  const I32 byte = __builtin_convertvector(load_as<I8>(p), I32);
  const I32 magnitude = byte & 0x7f;
  const I32 subnormal = reinterpret_cast<I32>(__builtin_convertvector(magnitude, F32) * 0x1p-17f);
  const I32 normal = (magnitude << 20) + (112 << 23);
  return reinterpret_cast<F32>((magnitude < 8 ? subnormal : normal) | (byte & (1 << 31)));
#endif
}

// To the nearest, ties to even; what is beyond the largest (448) becomes it, NaN stays.
DI_INLINE I8 f32_to_e4m3(F32 x) {
  const I32 bits = reinterpret_cast<I32>(x);
  const I32 magnitude = bits & 0x7fffffff;
  F32 a = reinterpret_cast<F32>(magnitude);
  a = a > splat(448.0f) ? splat(448.0f) : a;
  // Below 2^-6 (subnormal): the addition rounds to multiples of 2^-9, the last bit of 2^14.
  const I32 subnormal = reinterpret_cast<I32>(a + 0x1p14f) - (141 << 23);
  const I32 clamped = reinterpret_cast<I32>(a);
  const I32 normal = (clamped - (120 << 23) + 0x7ffff + ((clamped >> 20) & 1)) >> 20;
  I32 e = clamped < (121 << 23) ? subnormal : normal;
  e = magnitude > 0x7f800000 ? I32{} + 0x7f : e;
  return __builtin_convertvector(e | ((bits >> 24) & 0x80), I8);
}

// How 16 elements of a type become F32 and back. A value is what load16 gives times kUnit.
struct ElementF32 {
  using Type = float;
  static constexpr float kUnit = 1;
  DI_INLINE F32 load16(const Type* p) { return load(p); }
  DI_INLINE void store16(Type* p, F32 v) { store(p, v); }
};
struct ElementF16 {
  using Type = uint16_t;
  static constexpr float kUnit = 1;
  DI_INLINE F32 load16(const Type* p) { return f16_to_f32(load_as<U16>(p)); }
  DI_INLINE void store16(Type* p, F32 v) { store_as(p, f32_to_f16(v)); }
};
struct ElementBF16 {
  using Type = uint16_t;
  static constexpr float kUnit = 1;
  DI_INLINE F32 load16(const Type* p) { return bf16_to_f32(load_as<U16>(p)); }
  DI_INLINE void store16(Type* p, F32 v) { store_as(p, f32_to_bf16(v)); }
};
struct ElementE4M3 {
  using Type = uint8_t;
  static constexpr float kUnit = kE4M3Unit;
  DI_INLINE F32 load16(const Type* p) { return e4m3_to_f32(p); }
  DI_INLINE void store16(Type* p, F32 v) { store_as(p, f32_to_e4m3(v)); }
};
// Multiples of a scale that stands elsewhere.
struct ElementI8 {
  using Type = int8_t;
  static constexpr float kUnit = 1;
  DI_INLINE F32 load16(const Type* p) { return __builtin_convertvector(load_as<I8>(p), F32); }
};

}  // namespace
}  // namespace deepinfer::cpu
