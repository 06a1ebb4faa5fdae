#include "ops/ops.h"

#include "backend/cpu.h"
#include "backend/cuda.h"
#include "base/check.h"
#include "comm/communicator.h"
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
  DI_CHECK(kv.base != nullptr && kv.spec.kv_heads > 0 && heads >= kv.spec.kv_heads,
           "{}: {} query heads over {} KV heads", operation, heads, kv.spec.kv_heads);
}

void check_groups(const HeadGroups& g, int heads, int kv_heads, bool cpu) {
  if (g.size == 0) {
    DI_CHECK(heads % kv_heads == 0, "attention: {} query heads over {} KV heads", heads, kv_heads);
    return;
  }
  DI_CHECK(g.size > 0 && g.skip >= 0 && g.skip < g.size && (g.skip + heads - 1) / g.size + 1 == kv_heads,
           "attention: {} query heads in groups of {}, without {}, over {} KV heads", heads, g.size, g.skip,
           kv_heads);
  DI_CHECK(cpu || kv_heads == 1 || (g.skip == 0 && g.size * kv_heads == heads),
           "attention: groups of {} for {} heads, uneven on a GPU", g.size, heads);
}

// The communicator when there is anything to talk about.
Communicator* peers(Context& context) {
  return context.comm == nullptr || context.comm->size() == 1 ? nullptr : context.comm;
}

// Those among whom a vocabulary is dealt; null: nobody.
Communicator* peers(Context& context, std::span<const Interval> vocab) {
  Communicator* const comm = vocab.size() <= 1 ? nullptr : peers(context);
  DI_CHECK(vocab.size() <= 1 || (comm != nullptr && std::ssize(vocab) == comm->size()),
           "a vocabulary of {} ranks", vocab.size());
  return comm;
}

std::span<float> values_of(const Tensor& t) {
  DI_CHECK(t.contiguous(), "{}: a sum over ranks wants rows side by side", t.describe());
  return {t.as<float>(), static_cast<size_t>(t.elems())};
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
  Communicator* const comm = peers(context, p.vocab);
  if (comm == nullptr) {
    on_cpu(context) ? cpu::embed(context, p) : cuda::embed(context, p);
    return;
  }
  EmbedParams part = p;
  part.own = p.vocab[comm->rank()];
  DI_CHECK(part.own.count == p.table->rows, "embed: {} tokens of a table of {} rows", part.own.count,
           p.table->rows);
  on_cpu(context) ? cpu::embed(context, part) : cuda::embed(context, part);
  comm->all_reduce(values_of(p.out));
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
  check_groups(p.groups, p.heads, s.kv_heads, on_cpu(context));
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
  DI_CHECK(!p.replace, "project: replacing the residual is for the ranks of a sum");
  const Span span = product_span(context, Phase::kProject, p.x.shape[0], p.weight);
  Communicator* const comm = peers(context);
  if (comm == nullptr) {
    on_cpu(context) ? cpu::project(context, p) : cuda::project(context, p);
    return;
  }
  // The residual, which all ranks have, enters the sum once: with rank 0's part. So does the bias.
  ProjectParams own = p;
  own.replace = comm->rank() != 0;
  if (own.replace) own.bias = {};
  on_cpu(context) ? cpu::project(context, own) : cuda::project(context, own);
  comm->all_reduce(values_of(p.residual));
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

namespace {

std::span<std::byte> bytes(float* values, int64_t n) {
  return std::as_writable_bytes(std::span(values, static_cast<size_t>(n)));
}

// The columns of the logits that other ranks have come to rank 0, row by row into their place.
void gather_logits(Communicator& comm, const HeadParams& p, const Tensor& own) {
  const int64_t rows = own.shape[0];
  if (comm.rank() != 0) {
    for (int64_t s = 0; s < rows; ++s) comm.send(bytes(own.row<float>(s), own.shape[1]), 0);
    return;
  }
  for (int r = 1; r < comm.size(); ++r)
    for (int64_t s = 0; s < rows; ++s)
      comm.receive(bytes(p.logits.row<float>(s) + p.vocab[r].first, p.vocab[r].count), r);
}

// On GPUs all rows at once: what a message costs is time, not bytes.
void gather_on_gpu(Context& context, Communicator& comm, const HeadParams& p, const Tensor& own) {
  const int64_t rows = own.shape[0];
  if (comm.rank() != 0) return comm.send(bytes(own.as<float>(), own.elems()), 0);
  for (int r = 1; r < comm.size(); ++r) {
    Arena& arena = *context.scratch;
    const size_t mark = arena.used();
    const Interval& theirs = p.vocab[static_cast<size_t>(r)];
    float* const room = arena.allocate_n<float>(static_cast<size_t>(rows * theirs.count));
    comm.receive(bytes(room, rows * theirs.count), r);
    cuda::place_columns(context, make_tensor(room, DType::kF32, {rows, theirs.count}, context.device),
                        p.logits, theirs.first);
    arena.reset(mark);
  }
}

void head_of_rank(Context& context, Communicator& comm, const HeadParams& p) {
  const int64_t rows = static_cast<int64_t>(p.batch->logit_token.size());
  const Interval& mine = p.vocab[comm.rank()];
  Arena& arena = *context.scratch;
  const size_t mark = arena.used();
  HeadParams own = p;
  if (comm.rank() == 0) {
    DI_CHECK(p.vocab.back().end() == p.logits.shape[1], "head: ranks have {} of {} logits",
             p.vocab.back().end(), p.logits.shape[1]);
    own.logits.data = p.logits.as<float>() + mine.first;
    own.logits.shape[1] = mine.count;
  } else {
    float* const room = arena.allocate_n<float>(static_cast<size_t>(rows * mine.count));
    own.logits = make_tensor(room, DType::kF32, {rows, mine.count}, context.device);
  }
  if (on_cpu(context)) {
    cpu::head(context, own);
    gather_logits(comm, p, own.logits);
  } else {
    cuda::head(context, own);
    gather_on_gpu(context, comm, p, own.logits);
  }
  arena.reset(mark);
}

}  // namespace

void head(Context& context, const HeadParams& p) {
  check_batch(p.batch, "head");
  check_tensor(p.hidden, "head.hidden", DType::kF32, {p.batch->num_tokens, -1});
  const int64_t rows = static_cast<int64_t>(p.batch->logit_token.size());
  Communicator* const comm = peers(context, p.vocab);
  if (comm == nullptr || comm->rank() == 0) check_tensor(p.logits, "head.logits", DType::kF32, {rows, -1});
  const int64_t own_rows = comm == nullptr ? p.logits.shape[1] : p.vocab[comm->rank()].count;
  check_weight(p.weight, "head.weight", own_rows, p.hidden.shape[1]);
  DI_CHECK(p.weight->order == RowOrder::kConcatenated, "head.weight: its rows are paired");
  check_tensor(p.norm.weight, "head.norm", DType::kF32, {p.hidden.shape[1]});
  for (const int32_t t : p.batch->logit_token)
    DI_CHECK(t >= 0 && t < p.batch->num_tokens, "head: logits of token {} of {}", t, p.batch->num_tokens);
  const Span span = product_span(context, Phase::kHead, rows, p.weight);
  if (comm != nullptr) return head_of_rank(context, *comm, p);
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
