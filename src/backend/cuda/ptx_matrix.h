// Tensor cores: mma.sync and ldmatrix. Fragment layouts are those of the PTX ISA (9.7.14, "Warp Level Matrix
// Multiply-Accumulate Instructions"). With g = lane / 4, t = lane % 4:
//   m16n8k16  A [16, 16] row: a[0] (g, 2t..2t+1), a[1] (g+8, ..), a[2] (g, 2t+8..), a[3] (g+8, 2t+8..)
//             B [16, 8]  col: b[0] (2t..2t+1, g), b[1] (2t+8.., g)
//   m16n8k32  the same with 4 elements of 8 bits a register: columns 4t..4t+3 and 4t+16..
//   C, D [16, 8]: d[0..1] (g, 2t..2t+1), d[2..3] (g+8, 2t..2t+1)
#pragma once

#include "backend/cuda/ptx_base.h"

namespace deepinfer::cuda {

#ifdef DEEPINFER_EMULATION
namespace emulated {

struct Mma {
  float* d;           // [4]
  const uint32_t* a;  // [4]
  const uint32_t* b;  // [2]
};

// 8 or 16 bits each, to F32.
using Decode = void (*)(const uint32_t* words, int count, float* values);
// Reads 32 lanes' fragments, adds the product to their d. `k`: 16 or 32.
void multiply(void* const* args, int k, Decode decode);

template <class T>
void decode(const uint32_t* words, int count, float* values) {
  T elements[4 / sizeof(T)];
  for (int i = 0; i < count; ++i) {
    std::memcpy(elements, words + i, 4);
    for (const T& e : elements) *values++ = static_cast<float>(e);
  }
}

template <class T, int kK>
void finish_mma(void* const* args, uint32_t) {
  multiply(args, kK, decode<T>);
}

struct LoadMatrix {
  uint32_t* r;
  const void* row;
};

// `count` matrices of 8 x 8 16-bit elements: lanes 8i to 8i+7 bring the rows of matrix i.
void load_matrices(void* const* args, int count, bool transposed);

template <int kCount, bool kTransposed>
void finish_ldmatrix(void* const* args, uint32_t) {
  load_matrices(args, kCount, kTransposed);
}

template <int kCount, bool kTransposed>
void ldmatrix(uint32_t* r, const void* row, emulation::Site site) {
  if (emulation::lane() < 8 * kCount) emulation::check_shared(row, 16, 16, "ldmatrix", site);
  LoadMatrix args{r, row};
  emulation::warp_collective({"ldmatrix", true, finish_ldmatrix<kCount, kTransposed>}, kFullMask, &args,
                             site);
}

}  // namespace emulated
#endif

// d += A B on the whole warp, F32 accumulation. T: __nv_bfloat16 or __half.
template <class T>
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] DI_SITE) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
#ifdef DEEPINFER_EMULATION
  emulated::Mma args{d, a, b};
  emulation::warp_collective({"mma_m16n8k16", true, emulated::finish_mma<T, 16>}, kFullMask, &args, site);
#else
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// d += A B with e4m3 elements. Only on sm_89 and later: elsewhere the kernel traps, so hosts must not launch
// it.
__device__ inline void mma_m16n8k32_e4m3(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2] DI_SITE) {
#ifdef DEEPINFER_EMULATION
  emulated::Mma args{d, a, b};
  emulation::warp_collective({"mma_m16n8k32_e4m3", true, emulated::finish_mma<__nv_fp8_e4m3, 32>}, kFullMask,
                             &args, site);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

// Matrices of 8 x 8 16-bit elements from shared memory: lane l brings row l % 8 of matrix l / 8 (x2: lanes
// 0 to 15) and gets elements (l / 4, 2 (l % 4)..) of each in r; _trans: of each one's transpose.
#ifdef DEEPINFER_EMULATION
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row DI_SITE) {
  emulated::ldmatrix<4, false>(r, row, site);
}
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row DI_SITE) {
  emulated::ldmatrix<4, true>(r, row, site);
}
__device__ inline void ldmatrix_x2(uint32_t (&r)[2], const void* row DI_SITE) {
  emulated::ldmatrix<2, false>(r, row, site);
}
__device__ inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row DI_SITE) {
  emulated::ldmatrix<2, true>(r, row, site);
}
#else
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
#endif

}  // namespace deepinfer::cuda
