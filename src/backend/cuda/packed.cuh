// Single values of packed weights (packed.h), for kernels that read few of them, as the embedding does.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "backend/cuda/packed.h"

namespace deepinfer::cuda {

// The group of a 32-column block: (block + 1/2) over the blocks of a group, in one multiplication. Exact
// while block times that number is below 2^30.
__device__ inline int group_of(const PackedView& w, int block) {
  const auto group = static_cast<int>(static_cast<uint64_t>(2 * block + 1) * w.inverse >> 32);
  return group < w.groups ? group : w.groups - 1;  // padding belongs to the last
}

// A scale as it stands in memory.
__device__ inline float scale_value(ScaleType type, const void* p, int64_t at) {
  if (type == ScaleType::kF32) return static_cast<const float*>(p)[at];
  if (type == ScaleType::kBF16) return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[at]);
  return __half2float(static_cast<const __half*>(p)[at]);
}

// Codes: where the scale and the zero point of a row's column stand.
__device__ inline int64_t group_at(const PackedView& w, int64_t row, int64_t k) {
  return ((row / kTileRows * w.groups + group_of(w, static_cast<int>(k / 32))) * 8 + row % 8) * 2 +
         row % kTileRows / 8;
}

__device__ inline int zero_value(const PackedView& w, int64_t at) {
  if (w.zeros == nullptr) return w.zero;
  if (zero_bytes(w.layout) == 2) return static_cast<const uint16_t*>(w.zeros)[at];
  return static_cast<const uint8_t*>(w.zeros)[at];
}

// Column k of packed row `row` (for concatenated parts that is the checkpoint's row). The value is the
// checkpoint's in F32: exact but for F32 checkpoints and those of another float dtype than the activation's.
__device__ inline float packed_value(const PackedView& w, int64_t row, int64_t k) {
  if (w.layout == Layout::kBF16)
    return __bfloat162float(static_cast<const __nv_bfloat16*>(w.data)[row * w.cols + k]);
  if (w.layout == Layout::kF16) return __half2float(static_cast<const __half*>(w.data)[row * w.cols + k]);
  if (w.layout == Layout::kF8) {
    const uint8_t code = static_cast<const uint8_t*>(w.data)[row * w.cols + k];
    const int64_t group = w.groups == 1 ? 0 : k / kF8Group;
    return __half2float(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)) *
           static_cast<const float*>(w.scales)[group * w.rows + row];
  }
  const int64_t unit = row / kTileRows * (w.cols / kUnitCols) + k / kUnitCols;
  const int g = static_cast<int>(row % 8), half = static_cast<int>(row % kTileRows) / 8;
  const int block = static_cast<int>(k % kUnitCols) / 32, c = static_cast<int>(k % 32);
  const int lane = 4 * g + c / 8, e = c % 8;
  const uint8_t* quants = static_cast<const uint8_t*>(w.data) + unit * quant_unit_bytes(w.layout);
  if (has_groups(w.layout)) {
    const int64_t at = group_at(w, row, k);
    const float scale = scale_value(w.scale, w.scales, at);
    const int zero = zero_value(w, at);
    int code;
    if (w.layout == Layout::kU8) {
      code = quants[block * 512 + lane * 16 + half * 8 + e];
    } else {
      const uint32_t word = *reinterpret_cast<const uint32_t*>(quants + lane * 16 + block * 8 + half * 4);
      code = static_cast<int>(word >> (4 * (e / 2 + e % 2 * 4)) & 15);
    }
    return scale * static_cast<float>(code - zero);
  }
  const __half* scales = reinterpret_cast<const __half*>(static_cast<const uint8_t*>(w.scales) +
                                                         unit * scale_unit_bytes(w.layout)) +
                         g * (w.layout == Layout::kQ4_1 ? 8 : 4) + block * 2 + half;
  const float d = __half2float(scales[0]);
  if (w.layout == Layout::kQ8_0)
    return d * static_cast<float>(static_cast<int>(quants[block * 512 + lane * 16 + half * 8 + e]) - 128);
  const uint32_t word = *reinterpret_cast<const uint32_t*>(quants + lane * 16 + block * 8 + half * 4);
  const int nibble = e / 2 + (e % 2) * 4;
  const int q = static_cast<int>(word >> (4 * nibble) & 15);
  if (w.layout == Layout::kQ4_0) return d * static_cast<float>(q - 8);
  return d * static_cast<float>(q) + __half2float(scales[4]);
}

}  // namespace deepinfer::cuda
