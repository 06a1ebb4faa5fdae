// The skinny kernel for dense weights; skinny.cuh has it.
#include "backend/cuda/parts.h"
#include "backend/cuda/skinny.cuh"

namespace deepinfer::cuda {
namespace {

constexpr skinny::Depths kDepths{2, 2, 1};

}  // namespace

void skinny_product(Gpu& gpu, DType a, const Product& p) {
  if (p.w.layout == Layout::kF8) return skinny_product_f8(gpu, a, p);
  if (has_groups(p.w.layout)) return skinny_product_codes(gpu, a, p);
  if (is_quantized(p.w.layout)) return skinny_product_quantized(gpu, a, p);
  if (a == DType::kBF16) return skinny::choose<__nv_bfloat16, Layout::kBF16, kDepths>(gpu, p);
  return skinny::choose<__half, Layout::kF16, kDepths>(gpu, p);
}

// Three blocks of an SM must hold it, with room for their sums.
bool norm_fits(const Gpu& gpu, int64_t tokens, int64_t cols) {
  const size_t bytes = static_cast<size_t>(tokens * (cols + skinny::kPad)) * 2;
  return tokens <= kFusedNormTokens && bytes <= gpu.facts().shared_per_block / 3 - (6 << 10);
}

}  // namespace deepinfer::cuda
