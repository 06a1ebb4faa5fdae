#include "backend/cpu.h"
#include "backend/cuda.h"
#include "ops/ops.h"

namespace deepinfer::ops {

void sample(Context& context, const SampleParams& p) {
  const int64_t rows = static_cast<int64_t>(p.rows.size());
  check_tensor(p.logits, "sample.logits", DType::kF32, {rows, -1});
  check_tensor(p.token, "sample.token", DType::kI32, {rows});
  context.device.is_cpu() ? cpu::sample(context, p) : cuda::sample(context, p);
}

}  // namespace deepinfer::ops
