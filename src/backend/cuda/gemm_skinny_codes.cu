// The skinny kernel for codes with scales by groups; skinny.cuh has it.
#include "backend/cuda/parts.h"
#include "backend/cuda/skinny.cuh"

namespace deepinfer::cuda {
namespace {

constexpr skinny::Depths kDepthsU4{4, 2, 1}, kDepthsU8{3, 2, 1};

template <class A>
void choose_layout(Gpu& gpu, const Product& p) {
  if (p.w.layout == Layout::kU4) return skinny::choose<A, Layout::kU4, kDepthsU4>(gpu, p);
  return skinny::choose<A, Layout::kU8, kDepthsU8>(gpu, p);
}

}  // namespace

void skinny_product_codes(Gpu& gpu, DType a, const Product& p) {
  if (a == DType::kBF16)
    choose_layout<__nv_bfloat16>(gpu, p);
  else
    choose_layout<__half>(gpu, p);
}

}  // namespace deepinfer::cuda
