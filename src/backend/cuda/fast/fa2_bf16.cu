#include "backend/cuda/fast/fa2_prefill.cuh"

namespace deepinfer::cuda {

extern const Fa2Unit kFa2Bf16 = {DType::kBF16, fa2_ready<nv_bfloat16>, fa2_launch<nv_bfloat16>};

}  // namespace deepinfer::cuda
