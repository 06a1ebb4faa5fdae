// One kernel, a block of 128 threads for each 128 decode rows and for each other row.
#include "backend/cuda/fast/plan.h"
#include "backend/cuda/launch.h"

namespace deepinfer::cuda {
namespace {

constexpr int kThreads = 128;

struct PlanParams {
  PlanSizes sizes;
  int32_t slots, decode_blocks, max_blocks;
  const int32_t* row_start;  // [rows + 1]
  const int32_t* position;   // [tokens]
  AttentionPlan plan;
};

__device__ int32_t first_slot(const PlanSizes& s, int32_t token, int32_t r) {
  const int64_t pairs = static_cast<int64_t>(token - s.decode_rows) * s.group;
  return static_cast<int32_t>(pairs / s.tile) + r;
}

__global__ void plan_kernel(const PlanParams p) {
  const PlanSizes& s = p.sizes;
  const int block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (block < p.decode_blocks) {
    const int row = block * kThreads + thread;
    if (row < s.decode_rows) p.plan.kv_len[row] = static_cast<uint32_t>(p.position[row] + 1);
    return;
  }
  const int r = block - p.decode_blocks, row = s.decode_rows + r;
  const bool last = row + 1 == s.rows;
  const int begin = p.row_start[row], end = p.row_start[row + 1];
  if (thread == 0) {
    p.plan.kv_len[row] = end > begin ? static_cast<uint32_t>(p.position[end - 1] + 1) : 0;
    p.plan.page_start[r] = r * p.max_blocks;
    if (last) p.plan.page_start[r + 1] = (r + 1) * p.max_blocks;
  }
  const int first = first_slot(s, begin, r);
  const int past = last ? p.slots : first_slot(s, end, r + 1);
  const int count = static_cast<int>((static_cast<int64_t>(end - begin) * s.group + s.tile - 1) / s.tile);
  for (int i = thread; first + i < past; i += kThreads) {
    const bool valid = i < count;
    p.plan.tile_row[first + i] = r;
    // Later tokens attend to more: the longest tiles start first.
    p.plan.tile_in_row[first + i] = valid ? count - 1 - i : 0;
    p.plan.tile_valid[first + i] = valid;
  }
}

}  // namespace

void make_plan(const PlanSizes& sizes, const DeviceBatch& batch, const AttentionPlan& plan,
               cudaStream_t stream) {
  PlanParams p{.sizes = sizes,
               .slots = plan_slots(sizes),
               .decode_blocks = (sizes.decode_rows + kThreads - 1) / kThreads,
               .max_blocks = batch.max_blocks,
               .row_start = batch.row_start,
               .position = batch.position,
               .plan = plan};
  const int blocks = p.decode_blocks + sizes.rows - sizes.decode_rows;
  if (blocks == 0) return;
  launch({.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads), .stream = stream},
         plan_kernel, p);
}

}  // namespace deepinfer::cuda
