// Barriers, shuffles, votes, dependent launches, the clock.
#pragma once

#include "backend/cuda/ptx_base.h"

namespace deepinfer::cuda {

#ifdef DEEPINFER_EMULATION
namespace emulated {

template <class T>
struct Shuffle {
  T value, result;
  int source;  // lane of the warp
};

// A lane that did not come gives an undefined value.
template <class T>
void finish_shuffle(void* const* args, uint32_t arrived) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(arrived >> lane & 1)) continue;
    auto* mine = static_cast<Shuffle<T>*>(args[lane]);
    if (arrived >> mine->source & 1)
      mine->result = static_cast<Shuffle<T>*>(args[mine->source])->value;
    else
      emulation::fill_poison(&mine->result, sizeof(T));
  }
}

template <class T>
T shuffle(uint32_t mask, T value, int source, const char* name, emulation::Site site) {
  Shuffle<T> args{value, value, source};
  emulation::warp_collective({name, false, finish_shuffle<T>}, mask, &args, site);
  return args.result;
}

struct Vote {
  bool value;
  uint32_t result;
};

inline void finish_vote(void* const* args, uint32_t arrived) {
  uint32_t votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (arrived >> lane & 1 && static_cast<Vote*>(args[lane])->value) votes |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (arrived >> lane & 1) static_cast<Vote*>(args[lane])->result = votes;
}

inline uint32_t vote(uint32_t mask, bool value, const char* name, emulation::Site site) {
  Vote args{value, 0};
  emulation::warp_collective({name, false, finish_vote}, mask, &args, site);
  return args.result;
}

inline void finish_nothing(void* const*, uint32_t) {}

// The lane that is `source` in this lane's part of `width` lanes.
inline int in_part(int source, int width) {
  return (emulation::lane() & ~(width - 1)) | (source & (width - 1));
}

}  // namespace emulated
#else
namespace device {

// A shuffle of any type of 1 to 16 bytes, by 32-bit words.
template <class T, class Word>
__device__ inline T shuffle_words(T value, Word word) {
  static_assert(sizeof(T) <= 16);
  constexpr int kWords = (sizeof(T) + 3) / 4;
  uint32_t words[kWords] = {};
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = word(words[i]);
  memcpy(&value, words, sizeof(T));
  return value;
}

}  // namespace device
#endif

// All threads of the block, none of which has exited. Orders memory within the block.
__device__ inline void sync_threads(DI_SITE_ONLY) {
#ifdef DEEPINFER_EMULATION
  emulation::sync_block(site);
#else
  __syncthreads();
#endif
}

// sync_threads(), and the number of threads whose `vote` is true.
__device__ inline int sync_threads_count(bool vote DI_SITE) {
#ifdef DEEPINFER_EMULATION
  return emulation::sync_block_count(vote, site);
#else
  return __syncthreads_count(vote);
#endif
}

__device__ inline bool sync_threads_or(bool vote DI_SITE) {
#ifdef DEEPINFER_EMULATION
  return emulation::sync_block_count(vote, site) > 0;
#else
  return __syncthreads_or(vote) != 0;
#endif
}

__device__ inline bool sync_threads_and(bool vote DI_SITE) {
#ifdef DEEPINFER_EMULATION
  return emulation::sync_block_count(!vote, site) == 0;
#else
  return __syncthreads_and(vote) != 0;
#endif
}

// The warp's functions: every lane of `mask` that has not exited calls, with the same mask.
__device__ inline void sync_warp(uint32_t mask = kFullMask DI_SITE) {
#ifdef DEEPINFER_EMULATION
  emulation::warp_collective({"sync_warp", false, emulated::finish_nothing}, mask, nullptr, site);
#else
  __syncwarp(mask);
#endif
}

// `width`: a power of two to 32; each part of that many lanes is a warp of its own.
template <class T>
__device__ inline T shfl(T value, int source, uint32_t mask = kFullMask, int width = 32 DI_SITE) {
#ifdef DEEPINFER_EMULATION
  return emulated::shuffle(mask, value, emulated::in_part(source, width), "shfl", site);
#else
  return device::shuffle_words(value, [=](uint32_t w) { return __shfl_sync(mask, w, source, width); });
#endif
}

template <class T>
__device__ inline T shfl_xor(T value, int bits, uint32_t mask = kFullMask, int width = 32 DI_SITE) {
#ifdef DEEPINFER_EMULATION
  const int lane = emulation::lane(), end = (lane | (width - 1)) + 1, source = lane ^ bits;
  return emulated::shuffle(mask, value, source < end ? source : lane, "shfl_xor", site);
#else
  return device::shuffle_words(value, [=](uint32_t w) { return __shfl_xor_sync(mask, w, bits, width); });
#endif
}

// The value of the lane `by` below; the lowest `by` lanes of a part keep theirs.
template <class T>
__device__ inline T shfl_up(T value, unsigned by, uint32_t mask = kFullMask, int width = 32 DI_SITE) {
#ifdef DEEPINFER_EMULATION
  const int lane = emulation::lane(), start = lane & ~(width - 1), source = lane - static_cast<int>(by);
  return emulated::shuffle(mask, value, source >= start ? source : lane, "shfl_up", site);
#else
  return device::shuffle_words(value, [=](uint32_t w) { return __shfl_up_sync(mask, w, by, width); });
#endif
}

template <class T>
__device__ inline T shfl_down(T value, unsigned by, uint32_t mask = kFullMask, int width = 32 DI_SITE) {
#ifdef DEEPINFER_EMULATION
  const int lane = emulation::lane(), end = (lane | (width - 1)) + 1, source = lane + static_cast<int>(by);
  return emulated::shuffle(mask, value, source < end ? source : lane, "shfl_down", site);
#else
  return device::shuffle_words(value, [=](uint32_t w) { return __shfl_down_sync(mask, w, by, width); });
#endif
}

// Bit i: lane i came with true.
__device__ inline uint32_t ballot(bool vote, uint32_t mask = kFullMask DI_SITE) {
#ifdef DEEPINFER_EMULATION
  return emulated::vote(mask, vote, "ballot", site);
#else
  return __ballot_sync(mask, vote);
#endif
}

__device__ inline bool any(bool vote, uint32_t mask = kFullMask DI_SITE) {
#ifdef DEEPINFER_EMULATION
  return emulated::vote(mask, vote, "any", site) != 0;
#else
  return __any_sync(mask, vote) != 0;
#endif
}

__device__ inline bool all(bool vote, uint32_t mask = kFullMask DI_SITE) {
#ifdef DEEPINFER_EMULATION
  return emulated::vote(mask, !vote, "all", site) == 0;
#else
  return __all_sync(mask, vote) != 0;
#endif
}

// In a kernel launched with pdl: what the kernels before it wrote may be read from here on, and what they
// read may be written. In others it does nothing.
__device__ inline void grid_dependency_wait() {
#ifdef DEEPINFER_EMULATION
  emulation::grid_dependency_wait();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// The next kernel, if launched with pdl, may start once every block has called this or ended.
__device__ inline void grid_launch_dependents() {
#if !defined(DEEPINFER_EMULATION) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

__device__ inline long long clock() {
#ifdef DEEPINFER_EMULATION
  return emulation::clock();
#else
  return clock64();
#endif
}

}  // namespace deepinfer::cuda
