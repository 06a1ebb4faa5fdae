#include "backend/cpu.h"
#include "backend/cpu/kv.h"
#include "backend/cpu/linear.h"
#include "base/check.h"

namespace deepinfer::cpu {
namespace {

// Where a token's k and v go.
struct CacheSlot {
  int32_t block;
  int32_t position;  // inside the block
};

void find_slots(const QkvParams& p, CacheSlot* slots) {
  const StepBatch& batch = *p.batch;
  const BlockTable& table = batch.block_table[p.kv.group];
  for (int32_t row = 0; row < batch.num_rows; ++row) {
    for (int32_t t = batch.row_start[row]; t < batch.row_start[row + 1]; ++t) {
      const int32_t position = batch.position[t];
      const int64_t entry = position / kKvBlock;
      DI_CHECK(position >= 0 && entry < table.stride,
               "row {}: position {} is outside of its block table ({})", row, position, table.stride);
      const int32_t block = table.ids[static_cast<size_t>(row) * table.stride + entry];
      DI_CHECK(block >= 0, "row {}: position {} has no block", row, position);
      slots[t] = {block, position % kKvBlock};
    }
  }
}

// From the projections of one token to q and the cache.
struct TokenFinish {
  const QkvParams& p;
  const Kernels& k;
  const CacheSlot* slots;

  void turn(float* x, const Norm& norm, int dim, int64_t token) const {
    if (norm.weight) k.norm(x, norm.weight.as<float>(), norm.eps, dim, x);
    if (p.rope) k.rotate(x, p.rope.row<float>(token), static_cast<int>(p.rope.shape[1]), p.rope_interleaved);
  }

  // x: the token's projections [q, k, v]. Heads are counted through q, k and v.
  void head(float* x, int64_t token, int head) const {
    const KvGroupSpec& s = p.kv.spec;
    const int dim = s.head_dim_k;
    if (head < p.heads) {
      float* const from = x + static_cast<int64_t>(head) * dim;
      turn(from, p.q_norm, dim, token);
      std::copy_n(from, dim, p.q.row<float>(token) + static_cast<int64_t>(head) * dim);
      return;
    }
    x += static_cast<int64_t>(p.heads) * dim;
    const CacheSlot slot = slots[token];
    const int kv_head = (head - p.heads) % s.kv_heads;
    if (head < p.heads + s.kv_heads) {
      float* const from = x + static_cast<int64_t>(kv_head) * dim;
      turn(from, p.k_norm, dim, token);
      k.store_k(from, {.head = p.kv.k(slot.block) + kv_head * k_head_bytes(p.kv),
                       .position = slot.position,
                       .dim = dim,
                       .dtype = s.dtype,
                       .scale = k_scale(p.kv)});
      return;
    }
    x += static_cast<int64_t>(s.kv_heads) * dim + static_cast<int64_t>(kv_head) * s.head_dim_v;
    k.store_v(x, {.head = p.kv.v(slot.block) + kv_head * v_head_bytes(p.kv),
                  .position = slot.position,
                  .dim = s.head_dim_v,
                  .dtype = s.dtype,
                  .scale = v_scale(p.kv)});
  }
};

}  // namespace

void qkv(Context& context, const QkvParams& p) {
  check_kv(p.kv);
  const int64_t tokens = p.batch->num_tokens;
  if (tokens == 0) return;
  Arena& arena = *context.scratch;
  const size_t mark = arena.used();
  CacheSlot* const slots = arena.allocate_n<CacheSlot>(tokens);
  find_slots(p, slots);
  const int64_t rows = p.weight->rows;
  float* const out = arena.allocate_n<float>(columns_at_once(*p.weight, tokens) * rows);

  const TokenFinish finish{p, kernels(), slots};
  const int heads = p.heads + 2 * p.kv.spec.kv_heads;
  const int threads = context.pool->size();
  const auto after = [&](int t, int64_t first, int64_t count) {
    const Share mine = share(count * heads, t, threads);
    for (int64_t i = mine.first; i < mine.last; ++i)
      finish.head(out + i / heads * rows, first + i / heads, static_cast<int>(i % heads));
  };
  const std::function<void(int, int64_t, int64_t)> after_call = std::ref(after);
  linear(context, {.weight = p.weight,
                   .x = p.hidden.as<float>(),
                   .x_stride = p.hidden.stride[0],
                   .count = tokens,
                   .norm = &p.norm,
                   .epilogue = Epilogue::kStore,
                   .bias = p.bias.as<float>(),
                   .out = out,
                   .out_stride = rows,
                   .after = &after_call});
  arena.reset(mark);
}

}  // namespace deepinfer::cpu
