// Single values of packed weights (packed.h), for kernels that read few of them, as the embedding does.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backend/cuda/packed.h"

namespace deepinfer::cuda {

// Column k of packed row `row` (for concatenated parts that is the checkpoint's row). The value is the
// checkpoint's in F32: exact but for F32 checkpoints and those of another float dtype than the activation's.
__device__ inline float packed_value(const PackedView& w, int64_t row, int64_t k) {
  if (w.layout == Layout::kBF16)
    return __bfloat162float(static_cast<const __nv_bfloat16*>(w.data)[row * w.cols + k]);
  if (w.layout == Layout::kF16) return __half2float(static_cast<const __half*>(w.data)[row * w.cols + k]);
  const int64_t unit = row / kTileRows * (w.cols / kUnitCols) + k / kUnitCols;
  const int g = static_cast<int>(row % 8), half = static_cast<int>(row % kTileRows) / 8;
  const int block = static_cast<int>(k % kUnitCols) / 32, c = static_cast<int>(k % 32);
  const int lane = 4 * g + c / 8, e = c % 8;
  const uint8_t* quants = static_cast<const uint8_t*>(w.data) + unit * quant_unit_bytes(w.layout);
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
