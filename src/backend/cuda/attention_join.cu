// The results of a token's stretches of keys become one, in the order of positions. Grid: [tokens, heads].
#include "backend/cuda/attention_tile.cuh"
#include "backend/cuda/launch.h"

namespace deepinfer::cuda {
namespace {

template <class T>
__global__ void join_kernel(const AttendArgs args) {
  grid_dependency_wait();
  grid_launch_dependents();
  const int head = blockIdx.y, token = args.first_row + static_cast<int>(blockIdx.x);
  const int col = 2 * static_cast<int>(threadIdx.x);
  if (col >= args.dim_v) return;
  const int position = args.position[token];
  const int first = first_key(position, args.window), end = position + 1;
  float top = kNoScore, sum = 0;
  float2 o = {0, 0};
#pragma unroll 4
  for (int i = 0; i < args.splits; ++i) {
    if (!args.all_parts) {
      const Stretch stretch = stretch_of(args, first, end, i);
      if (stretch.begin >= stretch.end) break;
    }
    const int64_t index = part_index(args, token, head, i);
    const float2 part = *reinterpret_cast<const float2*>(args.part_sum + 2 * index);
    const float2 value = *reinterpret_cast<const float2*>(args.parts + index * args.dim_v + col);
    if (part.x == kNoScore) continue;
    if (top == kNoScore) {
      top = part.x, sum = part.y, o = value;
      continue;
    }
    const Joined j = join(top, part.x);
    o.x = fmaf(o.x, j.before, value.x * j.after);
    o.y = fmaf(o.y, j.before, value.y * j.after);
    sum = fmaf(sum, j.before, part.y * j.after);
    top = j.top;
  }
  const bool empty = position < 0 || !(sum > 0);
  const float scale = empty ? 0.0f : args.out_scale / sum;
  T* const to = static_cast<T*>(args.out) + (int64_t{token} * args.heads + head) * args.dim_v + col;
  *reinterpret_cast<uint32_t*>(to) = empty ? 0u : pack2<T>(o.x * scale, o.y * scale);
}

}  // namespace

void launch_join(DType activation, const AttendArgs& args, int64_t tokens, cudaStream_t stream, bool pdl) {
  const LaunchConfig config{.grid = dim3(static_cast<unsigned>(tokens), args.heads),
                            .block = dim3((args.dim_v / 2 + kWarp - 1) / kWarp * kWarp),
                            .stream = stream,
                            .pdl = pdl};
  launch(config, activation == DType::kBF16 ? join_kernel<__nv_bfloat16> : join_kernel<__half>, args);
}

}  // namespace deepinfer::cuda
