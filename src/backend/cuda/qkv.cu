// qkv: the product of a layer's q, k and v weights, and what becomes of it (qkv_finish.cuh). A skinny product
// ends with that itself, block by block; any other one is followed by the kernel here. Grid: [heads of q, k
// and v, 2^lanes_shift threads each; tokens].
#include <algorithm>
#include <bit>

#include "backend/cuda.h"
#include "backend/cuda/device_batch.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/qkv.h"
#include "backend/cuda/qkv_finish.cuh"
#include "backend/cuda/scratch.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kProductBytes = int64_t{64} << 20;  // in F32

template <class T>
__global__ void __launch_bounds__(kThreads) qkv_kernel(const QkvFinish a) {
  grid_dependency_wait();
  grid_launch_dependents();
  const int thread = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int head = thread >> a.lanes_shift;
  finish_head<T>(a, head < a.heads + 2 * a.kv_heads ? static_cast<int64_t>(blockIdx.y) : -1, head,
                 thread & ((1 << a.lanes_shift) - 1));
}

bool is_aligned(const void* p, size_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

void check(const Context& context, const QkvParams& p) {
  const KvGroupSpec& s = p.kv.spec;
  const int64_t rows = int64_t{p.heads + s.kv_heads} * s.head_dim_k + int64_t{s.kv_heads} * s.head_dim_v;
  DI_CHECK(p.batch->device != nullptr, "qkv on CUDA: the step is not on the device");
  DI_CHECK(p.weight->rows == rows, "qkv: a weight of {} rows for {} of {} heads", p.weight->rows, rows,
           p.heads);
  DI_CHECK(s.dtype == context.activation || s.dtype == DType::kF8E4M3,
           "KV cache of {} with activations of {}", info(s.dtype).name, info(context.activation).name);
  DI_CHECK(std::has_single_bit(static_cast<unsigned>(p.kv.block_size)),
           "KV block size {}: not a power of two", p.kv.block_size);
  check_tensor(p.q, "qkv: q", context.activation, {p.batch->num_tokens, int64_t{p.heads} * s.head_dim_k});
  DI_CHECK(p.q.contiguous() && is_aligned(p.q.data),
           "qkv on CUDA: q must be contiguous, from a multiple of 16");
  for (const int dim : {s.head_dim_k, s.head_dim_v})
    DI_CHECK(dim > 0 && dim <= 256 && dim % 8 == 0,
             "head dimension {}: qkv on CUDA takes multiples of 8 up to 256", dim);
  DI_CHECK(is_aligned(p.kv.k(0)) && is_aligned(p.kv.v(0), s.dtype == DType::kF8E4M3 ? 8 : 16) &&
               p.kv.block_stride % 16 == 0,
           "qkv on CUDA: a KV cache whose blocks do not begin at multiples of 16");
  for (const Tensor* t : {&p.bias, &p.q_norm.weight, &p.k_norm.weight})
    DI_CHECK(is_aligned(t->data), "qkv on CUDA: a bias or norm that does not begin at a multiple of 16");
  if (p.rope)
    DI_CHECK(p.rope.shape[1] <= s.head_dim_k && p.rope.shape[1] % 2 == 0, "qkv: {} rotary columns of {}",
             p.rope.shape[1], s.head_dim_k);
}

// Whether eight columns are turned alike.
bool rope_by_8(const QkvParams& p) {
  if (!p.rope || !is_aligned(p.rope.data) || p.rope.stride[0] % 4 != 0) return false;
  return p.rope.shape[1] % (p.rope_interleaved ? 8 : 16) == 0;
}

QkvFinish make_finish(Context& context, const QkvParams& p) {
  const KvGroupSpec& s = p.kv.spec;
  const DeviceBatch& batch = *p.batch->device;
  const auto norm = [](const Norm& n) { return HeadNorm{n.weight.as<const float>(), n.eps}; };
  const unsigned chunks = static_cast<unsigned>(std::max(s.head_dim_k, s.head_dim_v)) / 8;
  return {.rows = p.weight->rows,
          .bias = p.bias.as<const float>(),
          .arrived = context.gpu->parts().arrived(),
          .heads = p.heads,
          .kv_heads = s.kv_heads,
          .dim_k = s.head_dim_k,
          .dim_v = s.head_dim_v,
          .lanes_shift = static_cast<int>(std::bit_width(chunks - 1)),
          .q_norm = norm(p.q_norm),
          .k_norm = norm(p.k_norm),
          .rope = p.rope.as<const float>(),
          .rope_stride = p.rope ? p.rope.stride[0] : 0,
          .rotary = p.rope ? static_cast<int>(p.rope.shape[1]) : 0,
          .interleaved = p.rope_interleaved,
          .rope_by_8 = rope_by_8(p),
          .q = p.q.data,
          .k = p.kv.k(0),
          .v = p.kv.v(0),
          .block_stride = p.kv.block_stride,
          .block_shift = std::countr_zero(static_cast<unsigned>(p.kv.block_size)),
          .fp8 = s.dtype == DType::kF8E4M3,
          .k_scale = p.kv.k_scale,
          .v_scale = p.kv.v_scale,
          .position = batch.position,
          .token_row = batch.token_row,
          .row_blocks = batch.row_blocks + p.kv.group * batch.group_stride,
          .max_blocks = batch.max_blocks};
}

int64_t tokens_at_once(int64_t tokens, int64_t rows, int64_t product_bytes) {
  const int64_t fit = product_bytes / (rows * static_cast<int64_t>(sizeof(float)));
  // At most 65,535 blocks stand in a grid's second dimension.
  return std::min(tokens, std::clamp<int64_t>(fit, 1, 65535));
}

}  // namespace

void finish_qkv(Gpu& gpu, DType a, const QkvFinish& finish, int64_t tokens) {
  const int threads = (finish.heads + 2 * finish.kv_heads) << finish.lanes_shift;
  const LaunchConfig config{.grid = dim3((threads + kThreads - 1) / kThreads, static_cast<unsigned>(tokens)),
                            .block = dim3(kThreads),
                            .stream = stream_of(gpu),
                            .pdl = gpu.pdl};
  launch(config, a == DType::kBF16 ? qkv_kernel<__nv_bfloat16> : qkv_kernel<__half>, finish);
}

size_t qkv_scratch(const Context&, int64_t tokens, int64_t max_rows) {
  return static_cast<size_t>(tokens_at_once(tokens, max_rows, kProductBytes) * max_rows) * sizeof(float);
}

void qkv(Context& context, const QkvParams& p) {
  qkv_in_groups(context, p, kProductBytes);
}

void qkv_in_groups(Context& context, const QkvParams& p, int64_t product_bytes) {
  const int64_t tokens = p.batch->num_tokens, rows = p.weight->rows;
  if (tokens == 0) return;
  check(context, p);
  QkvFinish finish = make_finish(context, p);
  Arena& arena = *context.scratch;
  const size_t mark = arena.used();
  const int64_t at_once = tokens_at_once(tokens, rows, product_bytes);
  float* const product = arena.allocate_n<float>(at_once * rows);
  finish.product = product;
  for (int64_t first = 0; first < tokens; first += at_once) {
    const int64_t count = std::min(at_once, tokens - first);
    finish.first_token = static_cast<int>(first);
    linear(context, {.weight = p.weight,
                     .x = slice_rows(p.hidden, first, count),
                     .norm = &p.norm,
                     .out = make_tensor(product, DType::kF32, {count, rows}, context.device),
                     .finish = &finish});
  }
  arena.reset(mark);
}

}  // namespace deepinfer::cuda
