// Columns of a wide matrix: what ranks have each their part of. Grid: (columns / block, rows).
#include <algorithm>

#include "backend/cuda.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/ptx.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr unsigned kThreads = 256, kMostRows = 65535;

__global__ void __launch_bounds__(kThreads)
    place_columns_kernel(const float* from, int64_t cols, float* to, int64_t stride) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < cols) to[blockIdx.y * stride + i] = from[blockIdx.y * cols + i];
}

}  // namespace

void place_columns(Context& context, const Tensor& from, const Tensor& to, int64_t first) {
  const int64_t rows = from.shape[0], cols = from.shape[1];
  check_tensor(from, "place_columns: from", DType::kF32, {rows, cols});
  check_tensor(to, "place_columns: to", DType::kF32, {rows, -1});
  DI_CHECK(from.contiguous() && first >= 0 && first + cols <= to.shape[1],
           "place_columns: {} from {} on of {}", cols, first, to.shape[1]);
  if (cols == 0) return;
  for (int64_t row = 0; row < rows; row += kMostRows)
    launch({.grid = dim3(static_cast<unsigned>((cols + kThreads - 1) / kThreads),
                         static_cast<unsigned>(std::min<int64_t>(rows - row, kMostRows))),
            .block = dim3(kThreads),
            .stream = stream_of(context)},
           place_columns_kernel, from.as<float>() + row * cols, cols,
           to.as<float>() + row * to.stride[0] + first, to.stride[0]);
}

}  // namespace deepinfer::cuda
