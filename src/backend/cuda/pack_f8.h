// F8 weights into the card's memory (packed.h): codes as they are, scales turned to F32.
#pragma once

#include "deepinfer/result.h"
#include "ops/linear_weight.h"
#include "tensor/context.h"

namespace deepinfer::cuda {

// The part of pack_linear() for kF8E4M3. kUnsupported for what CUDA has no kernel for: groups of other than
// 128 columns, zero points, an order of columns, codes that are not numbers.
Result<LinearWeight> pack_f8(Context& context, const LinearSource& source);

}  // namespace deepinfer::cuda
