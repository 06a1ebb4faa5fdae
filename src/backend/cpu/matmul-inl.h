// y = W x for packed weights of every type (layout.h).
#pragma once

#include "backend/cpu/kernels.h"
#include "backend/cpu/matmul-float-inl.h"
#include "backend/cpu/matmul-int-inl.h"

namespace deepinfer::cpu {
namespace {

static void matmul(const MatmulArgs& a, const Columns& x, int64_t first, int64_t last) {
  switch (a.dtype) {
    case DType::kQ4_0:
      return int_matmul<TileQ4_0>(a, x, first, last);
    case DType::kQ4_1:
      return int_matmul<TileQ4_1>(a, x, first, last);
    case DType::kQ8_0:
      return int_matmul<TileQ8_0>(a, x, first, last);
    case DType::kF32:
      return float_matmul<ElementF32>(a, x, first, last);
    case DType::kF16:
      return float_matmul<ElementF16>(a, x, first, last);
    case DType::kBF16:
      return float_matmul<ElementBF16>(a, x, first, last);
    default:
      return;  // pack_linear accepts no other
  }
}

}  // namespace
}  // namespace deepinfer::cpu
