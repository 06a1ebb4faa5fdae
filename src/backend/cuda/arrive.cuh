// Work that the blocks of a launch share, ended by the one that comes last: each stores its share with
// store_for_others(), then arrives at a counter. Integers only, in any order; nobody waits.
#pragma once

#include "backend/cuda/ptx.h"

namespace deepinfer::cuda {

// Adds `share` to the counter. True for the block that brings it to `whole`: what the others stored can then
// be read, and the counter is zero again, for the next launch. Every thread of the block calls, with the same
// arguments, and gets the same answer. kThreads: of the block; 32 takes barriers of a warp.
template <int kThreads>
__device__ inline bool arrive_last(int32_t* counter, int32_t share, int32_t whole) {
  threadfence();
  if constexpr (kThreads == 32)
    sync_warp();
  else
    sync_threads();
  bool last = false;
  if (threadIdx.x == 0) {
    // The fences of the other threads stand in front of the barrier; this one takes all of it along.
    threadfence();
    last = atomic_add(counter, share) + share == whole;
    if (last) *counter = 0;
    threadfence();
  }
  if constexpr (kThreads == 32) {
    last = any(last);
    sync_warp();
    return last;
  } else {
    return sync_threads_or(last);
  }
}

}  // namespace deepinfer::cuda
