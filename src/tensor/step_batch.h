// One step as plain data. Rows are sorted: decode rows (one token) first, then prefill chunks.
//
// The host need not know the last tokens nor how many were accepted: an input token is an id or "the last
// token of the row's slot", and lengths are upper bounds while plans are in flight (overlap, speculation,
// pipeline stages).
#pragma once

#include <cstdint>
#include <span>

namespace deepinfer {

inline constexpr int32_t kTokenFromSlot = -1;  // the token that the slot's row sampled last

struct BlockTable {              // of one KV group
  std::span<const int32_t> ids;  // [B, stride] block ids of each row, in order of position; -1 where freed
  int32_t stride = 0;
};

namespace cuda {
struct DeviceBatch;  // backend/cuda/device_batch.h
}

struct StepBatch {
  int32_t num_rows = 0;               // B
  int32_t num_tokens = 0;             // T
  std::span<const int32_t> row_slot;  // [B] where the row's state lives on the device
  std::span<const int32_t>
      row_start;  // [B + 1] the row's tokens are [row_start[b], row_start[b + 1]) of [0, T)
  std::span<const int32_t> context_len;     // [B] tokens of the row that are in the cache before this step
  std::span<const int32_t> token;           // [T] id or kTokenFromSlot
  std::span<const int32_t> position;        // [T] absolute position in its sequence
  std::span<const BlockTable> block_table;  // [KV groups]
  std::span<const int32_t>
      logit_token;  // [S] tokens (indices into [0, T)) whose logits are wanted, ascending
  // CUDA: the same on the device. What is captured into a graph runs again for other contents, so only sizes
  // above may decide what is launched. Rows that pad a graph have position -1: they write nothing to the
  // cache.
  const cuda::DeviceBatch* device = nullptr;
};

}  // namespace deepinfer
