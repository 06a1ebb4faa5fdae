// The first kernel of a step: a block of threads for each row. A row's deltas are its own, so that no block
// of threads needs what another one writes.
#include <cuda_runtime.h>

#include "backend/cuda/launch.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/ptx.h"
#include "backend/cuda_step.h"
#include "tensor/step_batch.h"

namespace deepinfer::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void begin_step_kernel(StepState s, StepArrays a) {
  const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int32_t slot = a.row_slot[row];
  const int32_t first = a.row_start[row], last = a.row_start[row + 1];
  const bool padding = slot == s.slots - 1;

  for (int32_t i = a.delta_start[row] + thread; i < a.delta_start[row + 1]; i += kThreads)
    s.tables[a.deltas[i].at] = a.deltas[i].block;
  sync_threads();

  const int32_t length = padding ? 0 : a.context_len[row] + last - first;
  const int32_t blocks = (length + s.block_size - 1) / s.block_size;
  for (int32_t g = 0; g < s.groups; ++g) {
    const int32_t* from = s.tables + (static_cast<int64_t>(g) * s.slots + slot) * s.max_blocks;
    int32_t* to = s.row_blocks + (static_cast<int64_t>(g) * s.max_rows + row) * s.max_blocks;
    for (int32_t i = thread; i < blocks; i += kThreads) to[i] = from[i];
  }

  const int32_t* table = s.tables + (static_cast<int64_t>(s.history_group) * s.slots + slot) * s.max_blocks;
  for (int32_t t = first + thread; t < last; t += kThreads) {
    int32_t id = a.token[t];
    if (id == kTokenFromSlot) {
      id = s.last_token[slot];
      a.token[t] = id;
    }
    s.token_row[t] = row;
    const int32_t position = a.position[t];
    if (s.history == nullptr || position < 0) continue;
    const int32_t block = table[position / s.block_size];
    if (block >= 0) s.history[static_cast<int64_t>(block) * s.block_size + position % s.block_size] = id;
  }
}

__global__ void apply_deltas_kernel(int32_t* tables, const BlockDelta* deltas, int32_t count) {
  const int32_t i = static_cast<int32_t>(blockIdx.x) * kThreads + static_cast<int32_t>(threadIdx.x);
  if (i < count) tables[deltas[i].at] = deltas[i].block;
}

}  // namespace

void begin_step(Gpu& gpu, const StepState& state, const StepShape& shape) {
  if (shape.rows == 0) return;
  ++gpu.parts().steps;
  launch({.grid = dim3(static_cast<unsigned>(shape.rows)), .block = dim3(kThreads), .stream = stream_of(gpu)},
         begin_step_kernel, state, step_arrays(state.block, shape));
}

void apply_deltas(Gpu& gpu, const StepState& state, const BlockDelta* deltas, int32_t count) {
  if (count == 0) return;
  launch({.grid = dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)),
          .block = dim3(kThreads),
          .stream = stream_of(gpu)},
         apply_deltas_kernel, state.tables, deltas, count);
}

}  // namespace deepinfer::cuda
