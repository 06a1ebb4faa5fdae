// What each part of the backend takes from context.scratch, at most. cuda::scratch_bytes() puts them
// together.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/linear.h"
#include "tensor/context.h"

namespace deepinfer::cuda {

// Of qkv, besides what linear() takes while it runs. max_rows may be the vocabulary: a bound that multiplies
// it with all tokens is too large, so take tokens in groups.
size_t qkv_scratch(const Context& context, int64_t tokens, int64_t max_rows);

size_t attention_scratch(const Context& context, int64_t tokens, int64_t max_cols);

}  // namespace deepinfer::cuda
