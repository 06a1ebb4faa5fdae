// Rows of the embedding table. Grid: a block of threads for each token.
#include "backend/cuda.h"
#include "backend/cuda/device_batch.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/packed.cuh"
#include "backend/cuda/parts.h"
#include "backend/cuda/ptx.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr int kThreads = 256;

struct EmbedArgs {
  PackedView table;
  int64_t rows = 0, cols = 0;  // without padding
  int64_t first = 0;           // token of the table's first row
  const int32_t* token = nullptr;
  float* out = nullptr;  // [T, cols]
  int64_t stride = 0;
};

template <class T>
__device__ inline void read_dense(const T* from, int64_t cols, float* to) {
  // A packed row starts at a multiple of 128 bytes.
  for (int64_t i = 2 * static_cast<int64_t>(threadIdx.x); i < cols; i += 2 * kThreads) {
    const float2 pair = unpack2<T>(*reinterpret_cast<const uint32_t*>(from + i));
    to[i] = pair.x;
    if (i + 1 < cols) to[i + 1] = pair.y;
  }
}

__global__ void __launch_bounds__(kThreads) embed_kernel(const EmbedArgs a) {
  grid_dependency_wait();
  grid_launch_dependents();
  const int64_t token = blockIdx.x;
  const int64_t id = a.token[token] - a.first;
  float* const to = a.out + token * a.stride;
  if (id < 0 || id >= a.rows) {
    for (int64_t i = threadIdx.x; i < a.cols; i += kThreads) to[i] = 0;
  } else if (a.table.layout == Layout::kBF16) {
    read_dense(static_cast<const __nv_bfloat16*>(a.table.data) + id * a.table.cols, a.cols, to);
  } else if (a.table.layout == Layout::kF16) {
    read_dense(static_cast<const __half*>(a.table.data) + id * a.table.cols, a.cols, to);
  } else {
    for (int64_t i = threadIdx.x; i < a.cols; i += kThreads) to[i] = packed_value(a.table, id, i);
  }
}

}  // namespace

void embed(Context& context, const EmbedParams& p) {
  const int64_t tokens = p.batch->num_tokens;
  if (tokens == 0) return;
  DI_CHECK(p.batch->device != nullptr, "embed on CUDA: the step is not on the device");
  DI_CHECK(p.table->order == RowOrder::kConcatenated && p.table->column_order.size() == 0,
           "embed: the table's rows are paired, or its columns in another order");
  check_tensor(p.out, "embed: out", DType::kF32, {tokens, p.table->cols});
  launch({.grid = dim3(static_cast<unsigned>(tokens)),
          .block = dim3(kThreads),
          .stream = stream_of(context),
          .pdl = context.gpu->pdl},
         embed_kernel,
         EmbedArgs{.table = packed_view(*p.table),
                   .rows = p.table->rows,
                   .cols = p.table->cols,
                   .first = p.own.first,
                   .token = p.batch->device->token,
                   .out = p.out.as<float>(),
                   .stride = p.out.stride[0]});
}

}  // namespace deepinfer::cuda
