// qkv with a bound on the product that stands in scratch between its kernels.
#pragma once

#include <cstdint>

#include "ops/params.h"
#include "tensor/context.h"

namespace deepinfer::cuda {

// A product of more than `product_bytes` is taken in groups of tokens; the results are the same.
void qkv_in_groups(Context& context, const QkvParams& p, int64_t product_bytes);

}  // namespace deepinfer::cuda
