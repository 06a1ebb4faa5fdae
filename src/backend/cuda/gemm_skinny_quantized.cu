// The skinny kernel for weights of integers; skinny.cuh has it.
#include "backend/cuda/parts.h"
#include "backend/cuda/skinny.cuh"

namespace deepinfer::cuda {
namespace {

constexpr skinny::Depths kDepthsQ4{4, 2, 1}, kDepthsQ8{3, 2, 1};

template <class A>
void choose_layout(Gpu& gpu, const Product& p) {
  if (p.w.layout == Layout::kQ4_0) return skinny::choose<A, Layout::kQ4_0, kDepthsQ4>(gpu, p);
  if (p.w.layout == Layout::kQ4_1) return skinny::choose<A, Layout::kQ4_1, kDepthsQ4>(gpu, p);
  return skinny::choose<A, Layout::kQ8_0, kDepthsQ8>(gpu, p);
}

}  // namespace

void skinny_product_quantized(Gpu& gpu, DType a, const Product& p) {
  if (a == DType::kBF16)
    choose_layout<__nv_bfloat16>(gpu, p);
  else
    choose_layout<__half>(gpu, p);
}

}  // namespace deepinfer::cuda
