// The self-check's cases, one function a path.
#pragma once

#include <vector>

#include "backend/cuda/self_check.h"

namespace deepinfer::cuda {

Result<std::vector<Comparison>> check_fa2(Gpu& gpu);
Result<std::vector<Comparison>> check_xqa(Gpu& gpu);
Result<std::vector<Comparison>> check_pdl(Gpu& gpu);
Result<std::vector<Comparison>> check_cublaslt(Gpu& gpu);
Result<std::vector<Comparison>> check_skinny(Gpu& gpu);
Result<std::vector<Comparison>> check_cublaslt_f8(Gpu& gpu);
Result<std::vector<Comparison>> check_f8_tile(Gpu& gpu);
// An error while the skinny kernel is off.
Result<std::vector<Comparison>> check_finish(Gpu& gpu);
Result<std::vector<Comparison>> check_skinny_codes(Gpu& gpu);
Result<std::vector<Comparison>> check_codes(Gpu& gpu);

}  // namespace deepinfer::cuda
