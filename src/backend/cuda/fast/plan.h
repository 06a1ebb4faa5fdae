// What the fast attention paths must know of a step, made on the device from the step's arrays: nothing comes
// from the host but sizes, so a plan can be part of a graph.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/cuda/device_batch.h"

namespace deepinfer::cuda {

// Arrays on the device. R: rows that are not decode rows. A query tile is `tile` consecutive ones of a row's
// (token, head of the group) pairs, tokens first.
struct AttentionPlan {
  uint32_t* kv_len = nullptr;      // [rows] positions that the row's last token attends to; 0: padding
  int32_t* page_start = nullptr;   // [R + 1] where a row's blocks begin, from those of the first of R
  int32_t* tile_row = nullptr;     // [slots] among the R
  int32_t* tile_in_row = nullptr;  // [slots]
  bool* tile_valid = nullptr;      // [slots]
};

struct PlanSizes {
  int32_t rows = 0, tokens = 0, decode_rows = 0;
  int32_t group = 1;  // query heads of a KV head
  int32_t tile = 128;
  bool operator==(const PlanSizes&) const = default;
};

// The row of p tokens before it (prefill rows only, r of them) has its slots from p * group / tile + r on:
// room enough for every row, with at most one slot too many each, and no sum over rows is needed.
inline int32_t plan_slots(const PlanSizes& s) {
  const int64_t pairs = int64_t{s.tokens - s.decode_rows} * s.group;
  return static_cast<int32_t>(pairs / s.tile) + s.rows - s.decode_rows;
}

void make_plan(const PlanSizes& sizes, const DeviceBatch& batch, const AttentionPlan& plan,
               cudaStream_t stream);

}  // namespace deepinfer::cuda
