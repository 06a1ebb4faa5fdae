// A step's kernels in a build without CUDA.
#include "backend/cuda.h"
#include "backend/cuda_step.h"

namespace deepinfer::cuda {

void begin_step(Gpu&, const StepState&, const StepShape&) {
  throw CudaUnavailable("begin_step: this build has no CUDA: use device cpu");
}
void apply_deltas(Gpu&, const StepState&, const BlockDelta*, int32_t) {
  throw CudaUnavailable("apply_deltas: this build has no CUDA: use device cpu");
}

}  // namespace deepinfer::cuda
