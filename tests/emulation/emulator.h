// CUDA's execution model on the host: what the device functions of src/backend/cuda/ptx*.h and launch.h stand
// on when the kernels are compiled as C++ (DEEPINFER_EMULATION).
//
// A block's threads are fibers of one OS thread; they change places only at barriers, at collectives of a
// warp and at atomics, in an order drawn from the seed. Shared memory is heap memory of exact size, filled
// with kPoison. A kernel that breaks the model's rules (barriers that diverge, threads that wait for ever,
// a pointer that is not shared memory ...) ends with Failure, thrown by whatever call waited for it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

#include "emulation/emulated_gpu.h"

#undef __shared__
#define __shared__ static_assert(false, "shared memory is declared by DI_SHARED or DI_DYNAMIC_SHARED");
#undef __launch_bounds__
#define __launch_bounds__(...)

namespace deepinfer::emulation {

// Memory that nothing was written to: NaN as float, bf16 and half, a huge index as an integer.
inline constexpr uint16_t kPoison = 0x7FF7;
void fill_poison(void* data, size_t bytes);

// Where a wrapper was called from; threads of one barrier must agree on it.
struct Site {
  const char* file;
  int line;
  static Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  bool operator==(const Site& other) const { return line == other.line && !std::strcmp(file, other.file); }
};

struct KernelLaunch {
  const void* function = nullptr;
  dim3 grid, block;
  size_t smem = 0;
  bool pdl = false;
  std::function<void()> body;
};

// In runtime.cpp: to the stream's end, or into the graph that it captures.
cudaError_t enqueue_kernel(KernelLaunch kernel, cudaStream_t stream);

// Of the running thread; only a kernel may ask.
struct Coordinates {
  uint3 thread_index, block_index;
  dim3 block_dim, grid_dim;
};
extern const Coordinates* running;

int lane();
void sync_block(Site site);
// The number of threads of the block that came with `vote`.
int sync_block_count(bool vote, Site site);

// Every lane of `mask` brings `args`; the last one calls finish(args of each lane, lanes that came), which
// reads and writes what they point to; then all go on. A lane that has exited is not waited for, unless
// `whole_warp`: then all 32 must be alive and in the mask.
struct Collective {
  const char* name;
  bool whole_warp;
  void (*finish)(void* const* args, uint32_t arrived);
};
void warp_collective(const Collective& collective, uint32_t mask, void* args, Site site);

// The running threads of the warp that have not exited.
uint32_t live_lanes();

void* dynamic_shared();
void* static_shared_bytes(const void* declaration, size_t bytes);
template <class T>
T& static_shared(const void* declaration) {
  static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= 16);
  return *static_cast<T*>(static_shared_bytes(declaration, sizeof(T)));
}
// Failure unless all bytes lie in the running block's shared memory and the address is a multiple of `align`.
void check_shared(const void* data, size_t bytes, size_t align, const char* what, Site site);

// cp.async: poison at once, the copy itself in wait_async(), which leaves the last `pending` groups.
void copy_async(void* shared, const void* source, bool copy, Site site);
void commit_async();
void wait_async(int pending);

// Poison at once, the value itself in fence() of the same thread or when the grid has ended.
void store_late(void* to, const void* value, size_t bytes);
void fence();

void grid_dependency_wait();
// Another thread may run now.
void pause();
[[noreturn]] void fail_in_kernel(const std::string& what, Site site);
long long clock();

}  // namespace deepinfer::emulation

#define threadIdx (::deepinfer::emulation::running->thread_index)
#define blockIdx (::deepinfer::emulation::running->block_index)
#define blockDim (::deepinfer::emulation::running->block_dim)
#define gridDim (::deepinfer::emulation::running->grid_dim)
