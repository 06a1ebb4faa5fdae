// The one factorization that GPTQ needs.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"

namespace deepinfer::quantize {

// h [n, n] is symmetric and positive definite, its upper half is read. Returns U [n, n], upper triangular
// with zeros below, so that U^T U is the inverse of h; empty when h is not positive definite.
std::vector<float> inverse_cholesky(ThreadPool& pool, std::vector<float> h, int64_t n);

}  // namespace deepinfer::quantize
