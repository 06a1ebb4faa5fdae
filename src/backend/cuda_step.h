// How a step gets to the device: one block of arrays, written by the host into pinned memory and copied in
// one piece to a fixed place, and the kernel that makes a DeviceBatch of it. No CUDA header is needed to
// include this.
//
// Where an array stands in the block depends on the step's shape alone, so a graph that was captured for a
// shape finds it again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/cuda/device_batch.h"

namespace deepinfer::cuda {

class Gpu;

// Rows that pad are counted.
struct StepShape {
  int32_t rows = 0, tokens = 0, logit_rows = 0;
  int32_t scored = 0;  // tokens of prompts whose logprobs are wanted
  bool operator==(const StepShape&) const = default;
};

// tables[at] = block; `at` counts from the start of StepState::tables.
struct BlockDelta {
  int32_t at = 0, block = 0;
};

// The block's arrays, in the host's or in the device's memory.
struct StepArrays {
  int32_t* row_slot = nullptr;      // [rows]
  int32_t* row_start = nullptr;     // [rows + 1]
  int32_t* context_len = nullptr;   // [rows]
  int32_t* token = nullptr;         // [tokens] id, or kTokenFromSlot until begin_step ran
  int32_t* position = nullptr;      // [tokens] -1: padding
  int32_t* logit_token = nullptr;   // [logit_rows]
  int32_t* scored_token = nullptr;  // [scored] whose logits say how likely the target is
  int32_t* target = nullptr;        // [scored]
  int32_t* delta_start = nullptr;   // [rows + 1] row b's deltas are [delta_start[b], delta_start[b + 1])
  BlockDelta* deltas = nullptr;     // last, so that the bytes in use end with the last of them
  size_t bytes = 0;                 // before the deltas
};

// `block` is aligned to 16 bytes; each array is, too.
inline StepArrays step_arrays(std::byte* block, const StepShape& shape) {
  StepArrays a;
  auto place = [&](int32_t count) {
    auto* array = reinterpret_cast<int32_t*>(block + a.bytes);
    a.bytes += (static_cast<size_t>(count) * sizeof(int32_t) + 15) / 16 * 16;
    return array;
  };
  a.row_slot = place(shape.rows);
  a.row_start = place(shape.rows + 1);
  a.context_len = place(shape.rows);
  a.token = place(shape.tokens);
  a.position = place(shape.tokens);
  a.logit_token = place(shape.logit_rows);
  a.scored_token = place(shape.scored);
  a.target = place(shape.scored);
  a.delta_start = place(shape.rows + 1);
  a.deltas = reinterpret_cast<BlockDelta*>(block + a.bytes);
  return a;
}

// Of a block that holds any step up to this shape with `deltas` deltas.
inline size_t step_block_bytes(const StepShape& largest, int32_t deltas) {
  const size_t rows = static_cast<size_t>(largest.rows), tokens = static_cast<size_t>(largest.tokens);
  const size_t ints = 4 * rows + 2 * tokens + static_cast<size_t>(largest.logit_rows) +
                      2 * static_cast<size_t>(largest.scored) + 9 * 4;
  return ints * sizeof(int32_t) + static_cast<size_t>(deltas) * sizeof(BlockDelta);
}

// What stays on the device between steps. Slots are those of the sequences and one more, that of padding.
struct StepState {
  std::byte* block = nullptr;     // where a step's block is copied to
  int32_t* tables = nullptr;      // [groups][slots][max_blocks] KV blocks of a slot's sequence
  int32_t* row_blocks = nullptr;  // [groups][max_rows][max_blocks] the tables of a step's rows
  int32_t* token_row = nullptr;   // [largest step's tokens]
  int32_t* last_token = nullptr;  // [slots]
  int32_t* history = nullptr;     // [blocks][block_size], or null
  int32_t groups = 1, slots = 0, max_rows = 0, max_blocks = 0, block_size = 16;
  int32_t history_group = 0;
};

// The pointers of a step of this shape; its bounds (decode_rows and what follows) are the caller's to set.
inline DeviceBatch device_batch(const StepState& state, const StepShape& shape) {
  const StepArrays a = step_arrays(state.block, shape);
  return {.row_slot = a.row_slot,
          .row_start = a.row_start,
          .context_len = a.context_len,
          .token = a.token,
          .position = a.position,
          .token_row = state.token_row,
          .logit_token = a.logit_token,
          .row_blocks = state.row_blocks,
          .group_stride = static_cast<int64_t>(state.max_rows) * state.max_blocks,
          .max_blocks = state.max_blocks,
          .history = state.history,
          .history_group = state.history_group};
}

// After the block's copy, before any other kernel of the step: takes the deltas into the tables, gathers the
// rows' tables as far as the step reads them, resolves tokens from slots, writes token_row and the history.
// No two rows have one slot but that of padding. Asynchronous; captured, it serves every step of the shape.
void begin_step(Gpu& gpu, const StepState& state, const StepShape& shape);

// Deltas that found no room in the step's block, from a place of their own on the device. Before begin_step.
void apply_deltas(Gpu& gpu, const StepState& state, const BlockDelta* deltas, int32_t count);

}  // namespace deepinfer::cuda
