// Integer codes as exact elements of A, for mma: words of packed.h's layouts into pairs of columns.
#pragma once

#include "backend/cuda/packed.cuh"
#include "backend/cuda/ptx.h"

namespace deepinfer::cuda {

// 128 in BF16 and 1,024 in F16, twice: a small integer added to them stands in their lowest bits.
template <class A>
inline constexpr uint32_t kMagic = std::is_same_v<A, __nv_bfloat16> ? 0x43004300u : 0x64006400u;

// 8 nibbles of a word as 4 pairs, minus offset - magic.
template <class A>
__device__ inline void minus_offset(uint32_t word, uint32_t offset, uint32_t (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = sub2<A>(and_or(word >> (4 * i), 0x000f000fu, kMagic<A>), offset);
}

// Minus the zero point in byte kByte of `zeros`, at most 127.
template <class A, int kByte>
__device__ inline void nibbles_minus(uint32_t word, uint32_t zeros, uint32_t (&pairs)[4]) {
  minus_offset<A>(word, byte_perm(zeros, kMagic<A> >> 8 & 0xff, 0x4040 + kByte * 0x0101), pairs);
}

// 8 bytes as 4 pairs, minus offset - 2^23: 2^23 + q has q in its lowest bits.
template <class A>
__device__ inline void bytes_minus(uint32_t low, uint32_t high, float offset, uint32_t (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t word = i < 2 ? low : high;
    const float e = bit_cast<float>(byte_perm(word, 0x4b000000u, i % 2 == 0 ? 0x7440u : 0x7442u));
    const float f = bit_cast<float>(byte_perm(word, 0x4b000000u, i % 2 == 0 ? 0x7441u : 0x7443u));
    pairs[i] = pack2<A>(e - offset, f - offset);
  }
}

// A lane's bytes of a block: 8 of row g, 8 of row g + 8; zeros has 16 bits of each row.
template <class A>
__device__ inline void codes_of_bytes(const Bits128& quants, uint32_t zeros, uint32_t (&a)[4],
                                      uint32_t (&b)[4]) {
  bytes_minus<A>(quants.x[0], quants.x[1], bit_cast<float>(byte_perm(zeros, 0x4b000000u, 0x7410u)), a);
  bytes_minus<A>(quants.x[2], quants.x[3], bit_cast<float>(byte_perm(zeros, 0x4b000000u, 0x7432u)), b);
}

// The scales of rows g and g + 8, from two words of F32 or one of two 16-bit values.
__device__ inline float2 scale_pair(ScaleType type, const uint32_t (&words)[2]) {
  if (type == ScaleType::kF32) return {bit_cast<float>(words[0]), bit_cast<float>(words[1])};
  if (type == ScaleType::kBF16) return unpack2<__nv_bfloat16>(words[0]);
  return unpack2<__half>(words[0]);
}

}  // namespace deepinfer::cuda
