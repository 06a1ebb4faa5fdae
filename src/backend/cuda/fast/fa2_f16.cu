#include "backend/cuda/fast/fa2_prefill.cuh"

namespace deepinfer::cuda {

extern const Fa2Unit kFa2F16 = {DType::kF16, fa2_ready<half>, fa2_launch<half>};

}  // namespace deepinfer::cuda
