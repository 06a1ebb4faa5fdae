// One configuration of XQA, compiled from csrc/xqa/mha.cu of the flashinfer-python wheel. The unit that
// includes this (made by CMake from xqa_unit.cu.in) defines
//   DI_XQA_UNIT, DI_XQA_DIM, DI_XQA_GROUP, DI_XQA_F16 (0: bf16), DI_XQA_FP8_CACHE
//
// All of it stands in a namespace of the unit, so that configurations can be linked together. Its own
// launchers are not used: they set up the kernel in a static's constructor, on whatever device is current.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "backend/cuda/fast/units.h"
#include "backend/cuda/launch.h"

// The kernel is a __global__ function in its form without assertions only.
#ifndef NDEBUG
#define NDEBUG 1
#endif
#define HEAD_ELEMS DI_XQA_DIM
#define HEAD_GRP_SIZE DI_XQA_GROUP
#define INPUT_FP16 DI_XQA_F16
#define CACHE_ELEM_ENUM (DI_XQA_FP8_CACHE ? 2 : 0)
#define TOKENS_PER_PAGE 16
#define SLIDING_WINDOW 1
#define BEAM_WIDTH 1
#define USE_INPUT_KV 0
#define USE_CUSTOM_BARRIER 1
#define LOW_PREC_OUTPUT 0
#define SPEC_DEC 0

// Named by the headers at global scope.
enum class ArrivalToken : uint64_t {};

namespace DI_XQA_UNIT {

// The headers overload these for vectors, which would hide the scalar ones.
using ::__float2bfloat162_rn;
using ::__float2half2_rn;
using ::exp2f;
using ::expf;
using ::fmaxf;
__device__ inline float __frcp_rn(float x) {
  return ::__frcp_rn(x);
}
__device__ inline int32_t atomicMax(int32_t* address, int32_t value) {
  return ::atomicMax(address, value);
}
// nvcc writes float2(x) as float2{x} for the host compiler, which clang takes for the aggregate's fields.
struct float2 : ::float2 {
  float2() = default;
  __host__ __device__ float2(float a, float b) : ::float2{a, b} {}
  __host__ __device__ float2(const ::float2& v) : ::float2(v) {}
  __host__ __device__ explicit float2(const __nv_fp8x2_e4m3& v) : ::float2(v.operator ::float2()) {}
};

// What the static's constructor would call.
inline cudaError_t not_copied(uint32_t* value) {
  *value = 0;
  return cudaSuccess;
}
inline cudaError_t not_set() {
  return cudaSuccess;
}
#define cudaMemcpyFromSymbol(value, ...) not_copied(value)
#define cudaFuncSetAttribute(...) not_set()
#include <mha.cu>
#undef cudaFuncSetAttribute
#undef cudaMemcpyFromSymbol

namespace unit {

using deepinfer::DType;
using deepinfer::cuda::LaunchConfig;
using deepinfer::cuda::PagedAttention;
using deepinfer::cuda::XqaCall;
using deepinfer::cuda::XqaSetup;

constexpr DType kActivation = DI_XQA_F16 ? DType::kF16 : DType::kBF16;
constexpr DType kCache = DI_XQA_FP8_CACHE ? DType::kF8E4M3 : kActivation;

// The shared memory's layout differs between architectures, so its size is read from the code that will run.
bool prepare(XqaSetup& setup) {
  uint32_t bytes = 0;
  int blocks = 0;
  cudaError_t code = cudaMemcpyFromSymbol(&bytes, smemSize, sizeof(bytes));
  if (code == cudaSuccess)
    code = cudaFuncSetAttribute(kernel_mha, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(bytes));
  if (code == cudaSuccess)
    code =
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel_mha, static_cast<int>(ctaSize), bytes);
  if (code != cudaSuccess || blocks < 1) {
    (void)cudaGetLastError();
    return false;
  }
  setup.smem = bytes;
  setup.blocks_per_sm = blocks;
  setup.empty_score = safeInitRowMax;
  // Of each split: maxima and sums of the rows, then their results.
  setup.scratch_bytes = 2 * sizeof(SMemWarpRowMax) + size_t{nbValidRows} * headElems * sizeof(InputElem);
  return true;
}

void launch(const XqaCall& call) {
  const PagedAttention& a = *call.attention;
  constexpr size_t kHeadBytes = sizeof(GMemCacheHead);
  auto cache = [](const std::byte* p) {
    return const_cast<GMemCacheHead*>(reinterpret_cast<const GMemCacheHead*>(p));
  };
  const KVCacheList<true> pages{cache(a.k), cache(a.v), a.row_blocks, call.kv_len,
                                static_cast<uint32_t>(a.batch->max_blocks)};
  // The kernel multiplies scores with q_scale * kv_scale / sqrt(dim) and values with kv_scale, the scales
  // only for a quantized cache: so K's and V's scales may differ.
  const bool fp8 = kCache == DType::kF8E4M3;
  const float kv_scale = fp8 ? a.v_scale : 1.0f;
  const float q_scale =
      a.scale * std::sqrt(static_cast<float>(a.dim_k)) * (fp8 ? a.k_scale / a.v_scale : 1.0f);
  const uint32_t window =
      a.window > 0 ? static_cast<uint32_t>(a.window) : std::numeric_limits<uint32_t>::max();
  const LaunchConfig config{
      .grid = dim3(static_cast<unsigned>(call.splits), static_cast<unsigned>(a.kv_heads),
                   static_cast<unsigned>(call.rows)),
      .block = dim3(warp_size * ctaShapeInWarps.x, ctaShapeInWarps.y, ctaShapeInWarps.z),
      .smem = call.smem,
      .stream = call.stream,
      .pdl = call.pdl};
  // Strides in heads: of a page, a position, a KV head.
  deepinfer::cuda::launch(config, kernel_mha, static_cast<uint32_t>(a.kv_heads), window, q_scale,
                          static_cast<const float*>(nullptr), static_cast<OutputHead*>(a.out),
                          static_cast<const IOHead*>(a.q), call.sinks, pages,
                          static_cast<uint32_t>(call.rows), kv_scale, static_cast<const float*>(nullptr),
                          static_cast<uint32_t>(a.block_stride / kHeadBytes), 1u,
                          static_cast<uint32_t>(a.block_size), call.semaphores, call.scratch);
}

}  // namespace unit

extern const deepinfer::cuda::XqaUnit kXqaUnit = {DI_XQA_DIM,   DI_XQA_GROUP,  unit::kActivation,
                                                  unit::kCache, unit::prepare, unit::launch};

}  // namespace DI_XQA_UNIT
