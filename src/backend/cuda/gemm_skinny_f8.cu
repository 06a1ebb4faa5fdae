// The skinny kernel for F8 weights; skinny.cuh has it.
#include "backend/cuda/parts.h"
#include "backend/cuda/skinny.cuh"

namespace deepinfer::cuda {
namespace {

constexpr skinny::Depths kDepths{4, 2, 1};

}  // namespace

void skinny_product_f8(Gpu& gpu, DType a, const Product& p) {
  if (a == DType::kBF16) return skinny::choose<__nv_bfloat16, Layout::kF8, kDepths>(gpu, p);
  return skinny::choose<__half, Layout::kF8, kDepths>(gpu, p);
}

}  // namespace deepinfer::cuda
