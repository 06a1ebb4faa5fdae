// Products of more tokens than the skinny kernel's with weights of codes: gemm_codes.cu.
#pragma once

#include <cstddef>

#include "backend/cuda/product.h"

namespace deepinfer::cuda {

// Above this, a weight that is expanded to A once and multiplied by the library costs less.
inline constexpr int64_t kMostCodesTokens = 512;

// Whether codes_product() can compute it. p: no fused norm, p.first_row 0.
bool codes_fit(const Gpu& gpu, const Product& p);
// scratch: codes_scratch() bytes, 16-byte aligned.
void codes_product(Gpu& gpu, DType a, const Product& p, void* scratch);
size_t codes_scratch(const Gpu& gpu);

}  // namespace deepinfer::cuda
