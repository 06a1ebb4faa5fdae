// From the product of a layer's q, k and v weights to queries and the paged cache, in one kernel: a norm over
// each head, RoPE, rounding, storing. Grid: [heads of q, k and v in fours, tokens]; a warp has one head.
#include <math.h>

#include <algorithm>
#include <bit>

#include "backend/cuda.h"
#include "backend/cuda/device_batch.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/ptx.h"
#include "backend/cuda/qkv.h"
#include "backend/cuda/scratch.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr int kThreads = 128, kWarp = 32;
constexpr int64_t kProductBytes = int64_t{64} << 20;  // in F32

struct HeadNorm {
  const float* weight = nullptr;  // [dim], or null: no norm
  float eps = 0;
};

struct QkvArgs {
  int first_token = 0;  // of the step: the product begins there
  int heads = 0, kv_heads = 0, dim_k = 0, dim_v = 0;
  const float* product = nullptr;  // [tokens, rows]
  int64_t rows = 0;
  HeadNorm q_norm, k_norm;
  const float* rope = nullptr;  // [T, rope_stride]: cos [rotary / 2], sin; or null
  int64_t rope_stride = 0;
  int rotary = 0;
  bool interleaved = false;

  void* q = nullptr;  // [T, heads * dim_k]
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  size_t block_stride = 0;
  int block_shift = 4;
  bool fp8 = false;
  float k_scale = 1, v_scale = 1;

  const int32_t* position = nullptr;
  const int32_t* token_row = nullptr;
  const int32_t* row_blocks = nullptr;
  int32_t max_blocks = 0;
};

// The factor that RMS norm gives to a head's values. Every lane of the warp calls.
__device__ inline float norm_factor(const float* x, const HeadNorm& norm, int dim) {
  if (norm.weight == nullptr) return 1;
  float squares = 0;
  for (int i = threadIdx.x % kWarp; i < dim; i += kWarp) squares = fmaf(x[i], x[i], squares);
  for (int by = kWarp / 2; by > 0; by /= 2) squares += shfl_xor(squares, by);
  return 1.0f / sqrtf(squares / static_cast<float>(dim) + norm.eps);
}

// Normed and turned values of a head to store(i, value).
template <class Store>
__device__ inline void turn(const QkvArgs& a, const float* x, const HeadNorm& norm, int64_t token,
                            Store&& store) {
  const int lane = threadIdx.x % kWarp;
  const float factor = norm_factor(x, norm, a.dim_k);
  const auto value = [&](int i) { return norm.weight == nullptr ? x[i] : x[i] * factor * norm.weight[i]; };
  const int half = a.rotary / 2;
  const float* const cosines = a.rope + token * a.rope_stride;
  for (int i = lane; i < half; i += kWarp) {
    const int first = a.interleaved ? 2 * i : i, second = a.interleaved ? 2 * i + 1 : i + half;
    const float c = cosines[i], s = cosines[half + i];
    const float p = value(first), q = value(second);
    store(first, p * c - q * s);
    store(second, q * c + p * s);
  }
  for (int i = a.rotary + lane; i < a.dim_k; i += kWarp) store(i, value(i));
}

// A head's place in the cache, [dim] of T or fp8.
template <class T>
struct CacheRow {
  std::byte* to;
  bool fp8;
  float scale;

  __device__ void operator()(int i, float value) const {
    if (fp8)
      reinterpret_cast<uint8_t*>(to)[i] = to_e4m3(value / scale);
    else
      reinterpret_cast<T*>(to)[i] = from_float<T>(value);
  }
};

template <class T>
__device__ inline CacheRow<T> cache_row(const QkvArgs& a, bool is_v, int32_t block, int position,
                                        int kv_head) {
  const int inside = (kv_head << a.block_shift) + (position & ((1 << a.block_shift) - 1));
  const size_t bytes = (is_v ? a.dim_v : a.dim_k) * (a.fp8 ? 1 : sizeof(T));
  return {(is_v ? a.v : a.k) + a.block_stride * block + inside * bytes, a.fp8, is_v ? a.v_scale : a.k_scale};
}

template <class T>
__global__ void __launch_bounds__(kThreads) qkv_kernel(const QkvArgs a) {
  grid_dependency_wait();
  grid_launch_dependents();
  const int head = static_cast<int>(blockIdx.x) * (kThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  if (head >= a.heads + 2 * a.kv_heads) return;
  const int64_t token = a.first_token + static_cast<int64_t>(blockIdx.y);
  const float* const x = a.product + blockIdx.y * a.rows;
  if (head < a.heads) {
    T* const to = static_cast<T*>(a.q) + (token * a.heads + head) * a.dim_k;
    turn(a, x + head * a.dim_k, a.q_norm, token, [&](int i, float v) { to[i] = from_float<T>(v); });
    return;
  }
  const int position = a.position[token];
  if (position < 0) return;
  const int32_t block =
      a.row_blocks[int64_t{a.token_row[token]} * a.max_blocks + (position >> a.block_shift)];
  if (block < 0) return;
  const int kv_head = (head - a.heads) % a.kv_heads;
  if (head < a.heads + a.kv_heads) {
    turn(a, x + head * a.dim_k, a.k_norm, token, cache_row<T>(a, false, block, position, kv_head));
    return;
  }
  const CacheRow<T> store = cache_row<T>(a, true, block, position, kv_head);
  const float* const values = x + (a.heads + a.kv_heads) * a.dim_k + kv_head * a.dim_v;
  for (int i = threadIdx.x % kWarp; i < a.dim_v; i += kWarp) store(i, values[i]);
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
  DI_CHECK(p.q.contiguous(), "qkv on CUDA: q must be contiguous");
  if (p.rope)
    DI_CHECK(p.rope.shape[1] <= s.head_dim_k && p.rope.shape[1] % 2 == 0, "qkv: {} rotary columns of {}",
             p.rope.shape[1], s.head_dim_k);
}

QkvArgs make_args(const QkvParams& p) {
  const KvGroupSpec& s = p.kv.spec;
  const DeviceBatch& batch = *p.batch->device;
  const auto norm = [](const Norm& n) { return HeadNorm{n.weight.as<const float>(), n.eps}; };
  return {.heads = p.heads,
          .kv_heads = s.kv_heads,
          .dim_k = s.head_dim_k,
          .dim_v = s.head_dim_v,
          .rows = p.weight->rows,
          .q_norm = norm(p.q_norm),
          .k_norm = norm(p.k_norm),
          .rope = p.rope.as<const float>(),
          .rope_stride = p.rope ? p.rope.stride[0] : 0,
          .rotary = p.rope ? static_cast<int>(p.rope.shape[1]) : 0,
          .interleaved = p.rope_interleaved,
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

void finish(Context& context, const QkvArgs& args, int64_t tokens) {
  const int heads = args.heads + 2 * args.kv_heads;
  constexpr int kHeads = kThreads / kWarp;
  const LaunchConfig config{.grid = dim3((heads + kHeads - 1) / kHeads, static_cast<unsigned>(tokens)),
                            .block = dim3(kThreads),
                            .stream = stream_of(context),
                            .pdl = context.gpu->pdl};
  launch(config, context.activation == DType::kBF16 ? qkv_kernel<__nv_bfloat16> : qkv_kernel<__half>, args);
}

}  // namespace

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
  QkvArgs args = make_args(p);
  Arena& arena = *context.scratch;
  const size_t mark = arena.used();
  const int64_t at_once = tokens_at_once(tokens, rows, product_bytes);
  float* const product = arena.allocate_n<float>(at_once * rows);
  args.product = product;
  for (int64_t first = 0; first < tokens; first += at_once) {
    const int64_t count = std::min(at_once, tokens - first);
    linear(context, {.weight = p.weight,
                     .x = slice_rows(p.hidden, first, count),
                     .norm = &p.norm,
                     .bias = p.bias,
                     .out = make_tensor(product, DType::kF32, {count, rows}, context.device)});
    args.first_token = static_cast<int>(first);
    finish(context, args, count);
  }
  arena.reset(mark);
}

}  // namespace deepinfer::cuda
