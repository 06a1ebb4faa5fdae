#include "model/shard.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "base/check.h"
#include "model/shape.h"

namespace deepinfer {
namespace {

constexpr int64_t kVocabRows = 16;  // of embedding and head, that kernels take at a time

// What cuts through a dimension stand on, and why.
struct Unit {
  int64_t size = 1;
  std::string matrix;  // the one that wants it
};

// The least that suits the matrix of every layer, whose columns are the dimension.
Result<Unit> unit_of(const Weights& weights, const ModelConfig& c, const char* matrix, int64_t cols) {
  Unit unit;
  for (int i = 0; i < c.layers; ++i) {
    const std::string name = fmt::format("model.layers.{}.{}.weight", i, matrix);
    DI_ASSIGN(const int64_t one, column_unit(weights, name, c.hidden, cols));
    const int64_t both = std::lcm(unit.size, one);
    if (both != unit.size) unit = {both, name};
  }
  return unit;
}

Error too_many(int ranks, int64_t pieces, const std::string& what, const Unit& unit, int64_t size) {
  const std::string why = unit.matrix.empty() || size == 1
                              ? ""
                              : fmt::format(" in pieces of {} (the blocks of {})", size, unit.matrix);
  return make_error(
      ErrorCode::kConfig,
      "gpu.tensor_parallel_size: got {}, expected at most {}: the model has {}{}, and every rank "
      "needs some",
      ranks, pieces, what, why);
}

int64_t pieces_of(int64_t total, int64_t unit) {
  return (total + unit - 1) / unit;
}

Interval kv_run(const ModelConfig& c, const Interval& heads) {
  const int64_t group = c.heads / c.kv_heads, first = heads.first / group;
  return {first, (heads.end() - 1) / group + 1 - first};
}

Extent head_rows(int heads, const Interval& run, int64_t dim) {
  return {heads * dim, {run.first * dim, run.count * dim}};
}

}  // namespace

Extent Shard::q(const ModelConfig& c) const {
  return head_rows(c.heads, heads, c.head_dim);
}

Extent Shard::kv(const ModelConfig& c) const {
  return head_rows(c.kv_heads, kv_heads, c.head_dim);
}

std::vector<KvGroupSpec> full_attention_groups(const ModelConfig& c, const Shard& shard, int layers,
                                               DType kv_dtype) {
  std::vector<KvGroupSpec> groups = full_attention_groups(c, layers, kv_dtype);
  for (KvGroupSpec& g : groups) g.kv_heads = static_cast<int>(shard.kv_heads.count);
  return groups;
}

size_t decoder_scratch_bytes(const ModelConfig& c, const Shard& s, const Context& context, int64_t tokens,
                             int64_t logit_rows) {
  const int64_t q = s.q(c).run.count, kv = s.kv(c).run.count, ffn = s.ffn.count;
  const int64_t columns = c.hidden + c.head_dim + 2 * q + ffn;
  const int64_t widest = std::max<int64_t>({c.hidden, ffn, q});
  const int64_t rows = std::max<int64_t>({q + 2 * kv, 2 * ffn, c.vocab_size});
  int64_t sent = s.rank == 0 ? 0 : logit_rows * s.vocab_of[s.rank].count;  // to rank 0
  // Which has room for another rank's logits on a GPU; threads write them where they belong.
  if (s.rank == 0 && !context.device.is_cpu())
    for (int r = 1; r < s.ranks; ++r) sent = std::max(sent, logit_rows * s.vocab_of[r].count);
  return static_cast<size_t>(tokens * columns + sent) * sizeof(float) + 8 * 256 +  // what alignment may cost
         ops::scratch_bytes(context, tokens, logit_rows, widest, rows);
}

Interval deal(int64_t total, int64_t unit, int rank, int ranks) {
  const int64_t pieces = pieces_of(total, unit);
  const int64_t first = std::min(pieces * rank / ranks * unit, total);
  return {first, std::min(pieces * (rank + 1) / ranks * unit, total) - first};
}

Result<int> kv_heads_of_ranks(const ModelConfig& c, int ranks) {
  if (ranks > c.heads) return too_many(ranks, c.heads, fmt::format("{} query heads", c.heads), {}, 1);
  int64_t all = 0;
  for (int r = 0; r < ranks; ++r) all += kv_run(c, deal(c.heads, 1, r, ranks)).count;
  return static_cast<int>(all);
}

HeadGroups Shard::head_groups(const ModelConfig& c) const {
  const int group = c.heads / c.kv_heads;
  return {group, static_cast<int>(heads.first % group)};
}

Shard whole_model(const ModelConfig& c) {
  return {
      .heads = {0, c.heads}, .kv_heads = {0, c.kv_heads}, .ffn = {0, c.ffn}, .vocab_of = {{0, c.vocab_size}}};
}

Result<Shard> plan_shard(const ModelConfig& c, const Weights& weights, int rank, int ranks) {
  DI_CHECK(ranks > 0 && rank >= 0 && rank < ranks, "rank {} of {}", rank, ranks);
  if (ranks == 1) return whole_model(c);
  DI_ASSIGN(const Unit o, unit_of(weights, c, "self_attn.o_proj", int64_t{c.heads} * c.head_dim));
  const int64_t heads = std::lcm<int64_t>(o.size, c.head_dim) / c.head_dim;
  if (pieces_of(c.heads, heads) < ranks)
    return too_many(ranks, pieces_of(c.heads, heads), fmt::format("{} query heads", c.heads), o, heads);
  DI_ASSIGN(const Unit down, unit_of(weights, c, "mlp.down_proj", c.ffn));
  if (pieces_of(c.ffn, down.size) < ranks)
    return too_many(ranks, pieces_of(c.ffn, down.size), fmt::format("{} columns of its feed-forward", c.ffn),
                    down, down.size);
  // Whole tiles of the kernels where there are enough of them.
  const int64_t tile = std::lcm<int64_t>(down.size, 32);
  const int64_t ffn = pieces_of(c.ffn, tile) >= 2 * ranks ? tile : down.size;
  const int64_t vocab = pieces_of(c.vocab_size, kVocabRows) >= ranks ? kVocabRows : 1;
  if (c.vocab_size < ranks)
    return too_many(ranks, c.vocab_size, fmt::format("{} tokens", c.vocab_size), {}, 1);
  Shard s{.rank = rank,
          .ranks = ranks,
          .heads = deal(c.heads, heads, rank, ranks),
          .ffn = deal(c.ffn, ffn, rank, ranks)};
  s.kv_heads = kv_run(c, s.heads);
  for (int r = 0; r < ranks; ++r) s.vocab_of.push_back(deal(c.vocab_size, vocab, r, ranks));
  return s;
}

}  // namespace deepinfer
