// A step as the kernels see it: the arrays of StepBatch in the device's memory, at addresses that stay the
// same from step to step, so that a captured graph finds them.
#pragma once

#include <cstdint>

namespace deepinfer::cuda {

// B rows, T tokens, S rows of logits, as in StepBatch. A row that pads a graph has slot num_slots, one token
// of position -1 and no context: kernels write finite values for it and touch no cache.
struct DeviceBatch {
  const int32_t* row_slot = nullptr;     // [B]
  const int32_t* row_start = nullptr;    // [B + 1]
  const int32_t* context_len = nullptr;  // [B] tokens in the cache before this step
  const int32_t* token = nullptr;        // [T] ids; "from the slot" is resolved
  const int32_t* position = nullptr;     // [T], -1: padding
  const int32_t* token_row = nullptr;    // [T] the row that a token belongs to
  const int32_t* logit_token = nullptr;  // [S] ascending
  const int32_t* row_blocks = nullptr;   // [groups][B of the largest step][max_blocks] KV blocks by position
  int64_t group_stride = 0;              // elements from one group's row_blocks to the next
  int32_t max_blocks = 0;                // elements from one row to the next
  // Token ids by KV block of `history_group`, [blocks][block_size]: written where a token is computed. What
  // penalties count. Null: no sampler needs it.
  int32_t* history = nullptr;
  int32_t history_group = 0;
  // Sizes that the host knows. In a capture they are bounds for every step that the graph will serve.
  int32_t decode_rows = 0;  // the first rows, of one token each
  int32_t max_query = 0;    // most tokens of a row
  int32_t max_context = 0;  // most tokens that a row attends to, its own included
};

}  // namespace deepinfer::cuda
