// y = W x for packed weights of every type (layout.h).
#pragma once

#include "backend/cpu/kernels.h"
#include "backend/cpu/matmul-float-inl.h"
#include "backend/cpu/matmul-int-inl.h"

namespace deepinfer::cpu {
namespace {

static void matmul(const MatmulArgs& a, const Columns& x, int64_t first, int64_t last) {
  switch (a.layout) {
    case Layout::kQ4_0:
      return int_matmul<TileS4<1>>(a, x, first, last);
    case Layout::kQ4_0Wide:
      return int_matmul<TileS4<kWide>>(a, x, first, last);
    case Layout::kQ4_1:
      return int_matmul<TileQ4_1>(a, x, first, last);
    case Layout::kU4:
      return int_matmul<TileU4<1>>(a, x, first, last);
    case Layout::kU4Wide:
      return int_matmul<TileU4<kWide>>(a, x, first, last);
    case Layout::kQ8_0:
      return int_matmul<TileS8<1>>(a, x, first, last);
    case Layout::kQ8_0Wide:
      return int_matmul<TileS8<kWide>>(a, x, first, last);
    case Layout::kU8:
      return int_matmul<TileU8<1>>(a, x, first, last);
    case Layout::kU8Wide:
      return int_matmul<TileU8<kWide>>(a, x, first, last);
    case Layout::kF32:
      return float_matmul<ElementF32>(a, x, first, last);
    case Layout::kF16:
      return float_matmul<ElementF16>(a, x, first, last);
    case Layout::kBF16:
      return float_matmul<ElementBF16>(a, x, first, last);
    case Layout::kF8:
      return float_matmul<ElementF8>(a, x, first, last);
    case Layout::kF8Groups:
      return float_matmul<ElementF8Groups>(a, x, first, last);
  }
}

}  // namespace
}  // namespace deepinfer::cpu
