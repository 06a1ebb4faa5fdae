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

// kEarly: in front of grid_dependency_wait().
template <bool kEarly>
__device__ inline uint2 weight_64(const void* p) {
  return kEarly ? load_64_early(p) : ldg(static_cast<const uint2*>(p));
}
template <bool kEarly>
__device__ inline uint32_t weight_32(const void* p) {
  return kEarly ? load_32_early(p) : ldg(static_cast<const uint32_t*>(p));
}
template <bool kEarly>
__device__ inline uint32_t weight_16(const void* p) {
  return kEarly ? load_16_early(p) : ldg(static_cast<const uint16_t*>(p));
}

// Scales and zero points of rows g and g + 8 in a group, as they stand in memory.
template <Layout kLayout>
struct GroupWords {
  uint32_t scales[2];  // F32, or both in the first word
  uint32_t zeros;      // bytes of U4, 16 bits of U8

  template <bool kEarly>
  __device__ void load(const PackedView& w, int tile, int group, int lane) {
    constexpr bool kBytes = kLayout == Layout::kU8;
    const int64_t pair = (int64_t{tile} * w.groups + group) * 8 + lane / 4;
    const unsigned char* s = static_cast<const unsigned char*>(w.scales);
    if (w.scale == ScaleType::kF32) {
      const uint2 both = weight_64<kEarly>(s + pair * 8);
      scales[0] = both.x;
      scales[1] = both.y;
    } else {
      scales[0] = weight_32<kEarly>(s + pair * 4);
      scales[1] = 0;
    }
    const unsigned char* z = static_cast<const unsigned char*>(w.zeros);
    if (z == nullptr)
      zeros = static_cast<uint32_t>(w.zero) * (kBytes ? 0x10001u : 0x101u);
    else
      zeros = kBytes ? weight_32<kEarly>(z + pair * 4) : weight_16<kEarly>(z + pair * 2);
  }

  __device__ float2 scale(ScaleType type) const {
    if (type == ScaleType::kF32) return {bit_cast<float>(scales[0]), bit_cast<float>(scales[1])};
    if (type == ScaleType::kBF16) return unpack2<__nv_bfloat16>(scales[0]);
    return unpack2<__half>(scales[0]);
  }
};

// A lane's 32-column block of rows g and g + 8 as mma's fragments, zero points subtracted. `quants`: of the
// unit (U4) or of the block (U8).
template <class A, Layout kLayout>
__device__ inline void code_fragments(const Bits128& quants, int block, const GroupWords<kLayout>& group,
                                      uint32_t (&a)[4], uint32_t (&b)[4]) {
  if constexpr (kLayout == Layout::kU8) {
    codes_of_bytes<A>(quants, group.zeros, a, b);
  } else {
    nibbles_minus<A, 0>(quants.x[2 * block], group.zeros, a);
    nibbles_minus<A, 1>(quants.x[2 * block + 1], group.zeros, b);
  }
}

}  // namespace deepinfer::cuda
