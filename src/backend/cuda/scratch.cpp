#include "backend/cuda/scratch.h"

#include <algorithm>

#include "backend/cuda.h"

namespace deepinfer::cuda {

// The largest of what one operation takes: each gives its scratch back. The sampler's memory is its own.
size_t scratch_bytes(const Context& context, int64_t tokens, int64_t logit_rows, int64_t max_cols,
                     int64_t max_rows) {
  const int64_t most = std::max({tokens, logit_rows, int64_t{1}});
  const size_t products = linear_scratch(context, most, max_cols, max_rows);
  return std::max(products + qkv_scratch(context, most, max_rows),
                  attention_scratch(context, most, max_cols)) +
         4096;
}

}  // namespace deepinfer::cuda
