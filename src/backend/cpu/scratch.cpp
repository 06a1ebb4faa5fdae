#include <algorithm>

#include "backend/cpu.h"
#include "backend/cpu/linear.h"
#include "backend/cpu/sample.h"

namespace deepinfer::cpu {

// The largest of what one operation takes at a time: each gives its scratch back.
size_t scratch_bytes(const Context& context, int64_t tokens, int64_t logit_rows, int64_t max_cols,
                     int64_t max_rows) {
  constexpr int kMaxHeadDim = 512;
  const int threads = context.pool->size();
  const int64_t count = std::max({tokens, logit_rows, int64_t{1}});
  const size_t slots = static_cast<size_t>(count) * 16;
  const size_t qkv_out = static_cast<size_t>(std::min<int64_t>(count, 256)) * max_rows * sizeof(float);
  const size_t attend =
      (attend_scratch(kMaxHeadDim, kMaxHeadDim) + 16) * sizeof(float) * threads + kPartBytes;
  size_t linear = linear_scratch_bytes(threads, count, max_cols);
  linear = std::max(linear, linear_scratch_bytes(threads, 1, max_cols));
  linear = std::max(linear, linear_scratch_bytes(threads, 2, max_cols));
  return slots + std::max({qkv_out + linear, attend, sample_scratch_bytes(threads, max_rows)}) + 4096;
}

}  // namespace deepinfer::cpu
