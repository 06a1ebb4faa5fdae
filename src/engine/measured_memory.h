// What a GPU's memory went to while the runner was made: measured, not computed. The KV cache gets the rest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "deepinfer/result.h"

namespace deepinfer {

struct MeasuredMemory {
  size_t total = 0;   // of the card
  size_t free = 0;    // now: everything below is taken, but for `later_graphs` and the cache
  size_t others = 0;  // taken before this process loaded anything: other processes, and the driver's own

  size_t weights = 0;
  size_t fixed = 0;         // buffers whose size follows from the settings: scratch, logits, block tables
  size_t step = 0;          // what the largest step took besides: code of kernels, workspaces of libraries
  size_t graphs = 0;        // captured already
  size_t later_graphs = 0;  // what the others will take when they are captured
  size_t mapped = 0;        // of the KV cache, for the largest step: counts as the cache's

  // Of a KV block: its bytes in the cache and in the tokens' history. The cache is mapped in units of
  // `granularity`.
  size_t block_bytes = 0;
  size_t granularity = 1;
  int block_size = 16;
  int64_t max_blocks = 0;  // addresses are reserved for so many
  int max_num_seqs = 0, max_num_batched_tokens = 0;
  int max_model_len = 0;  // wanted
};

struct CachePlan {
  int64_t num_blocks = 0;
  int max_model_len = 0;  // at most what was wanted
};

// Given to the runner by who loads the model (memory_plan.h): how much becomes KV cache, or why it is not
// enough.
using PlanCache = std::function<Result<CachePlan>(const MeasuredMemory& measured)>;

}  // namespace deepinfer
