// What one rank of several holds of a model (tensor parallelism): runs of its query heads, of its
// feed-forward's columns and of its vocabulary. Norms, and biases of what is summed, are not cut.
#pragma once

#include <cstdint>
#include <vector>

#include "deepinfer/result.h"
#include "model/linear_source.h"
#include "model/model_config.h"
#include "model/weights.h"
#include "ops/ops.h"

namespace deepinfer {

struct Shard {
  int rank = 0, ranks = 1;
  Interval heads;                  // query heads
  Interval kv_heads;               // those that they read: one at a border stands on both of its ranks
  Interval ffn;                    // columns of the feed-forward
  std::vector<Interval> vocab_of;  // [ranks] rows of embedding and head

  Extent vocab(const ModelConfig& config) const { return {config.vocab_size, vocab_of[rank]}; }
  // Rows of q; of k and v.
  Extent q(const ModelConfig& config) const;
  Extent kv(const ModelConfig& config) const;
  HeadGroups head_groups(const ModelConfig& config) const;
};

// The cache of a model whose layers all look back on everything.
std::vector<KvGroupSpec> full_attention_groups(const ModelConfig& config, const Shard& shard, int layers,
                                               DType kv_dtype);

// Scratch bytes of a step of a model of attention and gated feed-forward, its operations included.
size_t decoder_scratch_bytes(const ModelConfig& config, const Shard& shard, const Context& context,
                             int64_t tokens, int64_t logit_rows);

// All of it: one rank.
Shard whole_model(const ModelConfig& config);

// A rank's share. Borders stand where the weights can be cut: on heads, blocks and groups of their columns. A
// share may be larger than another's by one such piece. kConfig: more ranks than pieces.
Result<Shard> plan_shard(const ModelConfig& config, const Weights& weights, int rank, int ranks);

// KV heads on all ranks together, where heads are dealt one by one. kConfig: more ranks than heads.
Result<int> kv_heads_of_ranks(const ModelConfig& config, int ranks);

// The share of rank `rank` when `total` elements are dealt in pieces of `unit` (the last may be short).
Interval deal(int64_t total, int64_t unit, int rank, int ranks);

}  // namespace deepinfer
