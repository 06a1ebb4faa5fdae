// The table of RoPE's angles. Grid: a block of threads for each token; a thread for each angle.
#include <math.h>

#include <algorithm>

#include "backend/cuda.h"
#include "backend/cuda/device_batch.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/ptx.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

struct RopeArgs {
  const int32_t* position = nullptr;
  const float* inv_freq = nullptr;  // [half]
  int half = 0;
  float scale = 1;
  float* out = nullptr;  // [T, 2 * half]
  int64_t stride = 0;
};

// The product is rounded to F32 before cos and sin, as on the CPU.
__global__ void rope_kernel(const RopeArgs a) {
  grid_dependency_wait();
  grid_launch_dependents();
  float* const out = a.out + blockIdx.x * a.stride;
  const auto position = static_cast<float>(a.position[blockIdx.x]);
  for (int i = threadIdx.x; i < a.half; i += blockDim.x) {
    const float angle = position * a.inv_freq[i];
    out[i] = cosf(angle) * a.scale;
    out[a.half + i] = sinf(angle) * a.scale;
  }
}

}  // namespace

void rope(Context& context, const RopeParams& p) {
  const int64_t tokens = p.batch->num_tokens, half = p.inv_freq.shape[0];
  if (tokens == 0) return;
  DI_CHECK(p.batch->device != nullptr, "rope on CUDA: the step is not on the device");
  check_tensor(p.out, "rope: out", DType::kF32, {tokens, 2 * half});
  launch({.grid = dim3(static_cast<unsigned>(tokens)),
          .block = dim3(static_cast<unsigned>(std::min<int64_t>((half + 31) / 32 * 32, 128))),
          .stream = stream_of(context),
          .pdl = context.gpu->pdl},
         rope_kernel,
         RopeArgs{.position = p.batch->device->position,
                  .inv_freq = p.inv_freq.as<float>(),
                  .half = static_cast<int>(half),
                  .scale = p.scale,
                  .out = p.out.as<float>(),
                  .stride = p.out.stride[0]});
}

}  // namespace deepinfer::cuda
