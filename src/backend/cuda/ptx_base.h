// What the ptx_*.h headers share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#ifdef DEEPINFER_EMULATION
#include "emulation/emulator.h"
// Barriers of the emulation know where they were called from: threads must agree on it.
#define DI_SITE_ONLY ::deepinfer::emulation::Site site = ::deepinfer::emulation::Site::here()
#define DI_SITE , DI_SITE_ONLY
#else
#define DI_SITE_ONLY
#define DI_SITE
#endif

namespace deepinfer::cuda {

inline constexpr uint32_t kFullMask = 0xffffffffu;

// 16 bytes that move as one.
struct alignas(16) Bits128 {
  uint32_t x[4];
};

template <class To, class From>
__device__ inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

#ifndef DEEPINFER_EMULATION
__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
#endif

}  // namespace deepinfer::cuda
