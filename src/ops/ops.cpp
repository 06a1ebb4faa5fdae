#include "ops/ops.h"

#include "backend/cpu.h"
#include "backend/cuda.h"
#include "base/check.h"
#include "profile/profiler.h"

namespace deepinfer::ops {
namespace {

bool on_cpu(const Context& context) {
  return context.device.is_cpu();
}

void check_batch(const StepBatch* batch, const char* operation) {
  DI_CHECK(batch != nullptr, "{}: no batch", operation);
  const StepBatch& b = *batch;
  const size_t rows = static_cast<size_t>(b.num_rows), tokens = static_cast<size_t>(b.num_tokens);
  DI_CHECK(b.num_rows >= 0 && b.num_tokens >= 0 && b.row_slot.size() == rows &&
               b.row_start.size() == rows + 1 && b.context_len.size() == rows && b.token.size() == tokens &&
               b.position.size() == tokens,
           "{}: a batch of {} rows and {} tokens with {} slots, {} starts, {} lengths, {} ids, {} positions",
           operation, b.num_rows, b.num_tokens, b.row_slot.size(), b.row_start.size(), b.context_len.size(),
           b.token.size(), b.position.size());
  DI_CHECK(b.row_start.front() == 0 && b.row_start.back() == b.num_tokens,
           "{}: rows cover tokens {} to {} of {}", operation, b.row_start.front(), b.row_start.back(),
           b.num_tokens);
}

void check_kv(const StepBatch& b, const KvLayer& kv, int heads, const char* operation) {
  DI_CHECK(kv.group >= 0 && static_cast<size_t>(kv.group) < b.block_table.size(),
           "{}: KV group {}, the batch has {} block tables", operation, kv.group, b.block_table.size());
  const BlockTable& table = b.block_table[kv.group];
  DI_CHECK(table.stride >= 0 && table.ids.size() >= static_cast<size_t>(table.stride) * b.num_rows,
           "{}: a block table of {} ids for {} rows of {}", operation, table.ids.size(), b.num_rows,
           table.stride);
  DI_CHECK(kv.base != nullptr && kv.spec.kv_heads > 0 && heads > 0 && heads % kv.spec.kv_heads == 0,
           "{}: {} query heads over {} KV heads", operation, heads, kv.spec.kv_heads);
}

void check_weight(const LinearWeight* w, const char* what, int64_t rows, int64_t cols) {
  DI_CHECK(w != nullptr && *w, "{}: there is none", what);
  DI_CHECK(w->rows == rows && w->cols == cols, "{}: got [{}, {}], expected [{}, {}]", what, w->rows, w->cols,
           rows, cols);
}

void check_optional(const Tensor& t, const char* what, int64_t n) {
  if (t) check_tensor(t, what, DType::kF32, {n});
}

int32_t narrow(int64_t n) {
  return static_cast<int32_t>(n);
}

// Of a product of `tokens` rows.
Span product_span(Context& context, Phase phase, int64_t tokens, const LinearWeight* w) {
  return Span(context.profiler, phase, narrow(tokens), narrow(w->cols), narrow(w->rows));
}

}  // namespace

Result<LinearWeight> pack_linear(Context& context, const LinearSource& source) {
  return on_cpu(context) ? cpu::pack_linear(context, source) : cuda::pack_linear(context, source);
}

Result<Buffer> upload(Context& context, std::span<const float> values) {
  return on_cpu(context) ? cpu::upload(context, values) : cuda::upload(context, values);
}

void embed(Context& context, const EmbedParams& p) {
  check_batch(p.batch, "embed");
  DI_CHECK(p.table != nullptr && *p.table, "embed.table: there is none");
  check_tensor(p.out, "embed.out", DType::kF32, {p.batch->num_tokens, p.table->cols});
  if (p.slots != nullptr) check_tensor(p.slots->last_token, "embed.slots", DType::kI32, {-1});
  const Span span(context.profiler, Phase::kEmbed, p.batch->num_tokens);
  on_cpu(context) ? cpu::embed(context, p) : cuda::embed(context, p);
}

void rope(Context& context, const RopeParams& p) {
  check_batch(p.batch, "rope");
  check_tensor(p.inv_freq, "rope.inv_freq", DType::kF32, {-1});
  check_tensor(p.out, "rope.out", DType::kF32, {p.batch->num_tokens, 2 * p.inv_freq.shape[0]});
  const Span span(context.profiler, Phase::kRope, p.batch->num_tokens);
  on_cpu(context) ? cpu::rope(context, p) : cuda::rope(context, p);
}

void qkv(Context& context, const QkvParams& p) {
  check_batch(p.batch, "qkv");
  check_kv(*p.batch, p.kv, p.heads, "qkv");
  const KvGroupSpec& s = p.kv.spec;
  const int64_t tokens = p.batch->num_tokens, dim = s.head_dim_k;
  const int64_t rows = (p.heads + s.kv_heads) * dim + static_cast<int64_t>(s.kv_heads) * s.head_dim_v;
  check_tensor(p.hidden, "qkv.hidden", DType::kF32, {tokens, -1});
  check_weight(p.weight, "qkv.weight", rows, p.hidden.shape[1]);
  DI_CHECK(p.weight->order == RowOrder::kConcatenated, "qkv.weight: its rows are paired");
  check_tensor(p.norm.weight, "qkv.norm", DType::kF32, {p.hidden.shape[1]});
  check_optional(p.bias, "qkv.bias", rows);
  check_optional(p.q_norm.weight, "qkv.q_norm", dim);
  check_optional(p.k_norm.weight, "qkv.k_norm", dim);
  if (p.rope) {
    check_tensor(p.rope, "qkv.rope", DType::kF32, {tokens, -1});
    DI_CHECK(p.rope.shape[1] <= dim && p.rope.shape[1] % 2 == 0, "qkv.rope: {} angles for heads of {}",
             p.rope.shape[1], dim);
  }
  check_tensor(p.q, "qkv.q", context.activation, {tokens, p.heads * dim});
  const Span span = product_span(context, Phase::kQkv, tokens, p.weight);
  on_cpu(context) ? cpu::qkv(context, p) : cuda::qkv(context, p);
}

void attention(Context& context, const AttentionParams& p) {
  check_batch(p.batch, "attention");
  check_kv(*p.batch, p.kv, p.heads, "attention");
  const KvGroupSpec& s = p.kv.spec;
  check_tensor(p.q, "attention.q", context.activation,
               {p.batch->num_tokens, static_cast<int64_t>(p.heads) * s.head_dim_k});
  check_tensor(p.out, "attention.out", context.activation,
               {p.batch->num_tokens, static_cast<int64_t>(p.heads) * s.head_dim_v});
  const Span span(context.profiler, Phase::kAttention, p.batch->num_tokens, p.batch->num_rows);
  on_cpu(context) ? cpu::attention(context, p) : cuda::attention(context, p);
}

void project(Context& context, const ProjectParams& p) {
  check_tensor(p.x, "project.x", context.activation, {-1, -1});
  check_tensor(p.residual, "project.residual", DType::kF32, {p.x.shape[0], -1});
  check_weight(p.weight, "project.weight", p.residual.shape[1], p.x.shape[1]);
  DI_CHECK(p.weight->order == RowOrder::kConcatenated, "project.weight: its rows are paired");
  check_optional(p.bias, "project.bias", p.weight->rows);
  const Span span = product_span(context, Phase::kProject, p.x.shape[0], p.weight);
  on_cpu(context) ? cpu::project(context, p) : cuda::project(context, p);
}

void gate_up(Context& context, const GateUpParams& p) {
  check_tensor(p.hidden, "gate_up.hidden", DType::kF32, {-1, -1});
  check_tensor(p.out, "gate_up.out", context.activation, {p.hidden.shape[0], -1});
  check_weight(p.weight, "gate_up.weight", 2 * p.out.shape[1], p.hidden.shape[1]);
  DI_CHECK(p.weight->order == RowOrder::kPaired, "gate_up.weight: its rows are not paired");
  check_tensor(p.norm.weight, "gate_up.norm", DType::kF32, {p.hidden.shape[1]});
  check_optional(p.bias, "gate_up.bias", p.weight->rows);
  const Span span = product_span(context, Phase::kGateUp, p.hidden.shape[0], p.weight);
  on_cpu(context) ? cpu::gate_up(context, p) : cuda::gate_up(context, p);
}

void head(Context& context, const HeadParams& p) {
  check_batch(p.batch, "head");
  check_tensor(p.hidden, "head.hidden", DType::kF32, {p.batch->num_tokens, -1});
  const int64_t rows = static_cast<int64_t>(p.batch->logit_token.size());
  check_tensor(p.logits, "head.logits", DType::kF32, {rows, -1});
  check_weight(p.weight, "head.weight", p.logits.shape[1], p.hidden.shape[1]);
  DI_CHECK(p.weight->order == RowOrder::kConcatenated, "head.weight: its rows are paired");
  check_tensor(p.norm.weight, "head.norm", DType::kF32, {p.hidden.shape[1]});
  for (const int32_t t : p.batch->logit_token)
    DI_CHECK(t >= 0 && t < p.batch->num_tokens, "head: logits of token {} of {}", t, p.batch->num_tokens);
  const Span span = product_span(context, Phase::kHead, rows, p.weight);
  on_cpu(context) ? cpu::head(context, p) : cuda::head(context, p);
}

void copy_blocks(Context& context, const KvCache& cache, std::span<const BlockCopy> copies) {
  const Span span(context.profiler, Phase::kCopyBlocks, narrow(static_cast<int64_t>(copies.size())));
  on_cpu(context) ? cpu::copy_blocks(context, cache, copies) : cuda::copy_blocks(context, cache, copies);
}

size_t scratch_bytes(const Context& context, int64_t tokens, int64_t logit_rows, int64_t max_cols,
                     int64_t max_rows) {
  return on_cpu(context) ? cpu::scratch_bytes(context, tokens, logit_rows, max_cols, max_rows)
                         : cuda::scratch_bytes(context, tokens, logit_rows, max_cols, max_rows);
}

}  // namespace deepinfer::ops
