// Checks calls of the CUDA runtime.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/cuda_error.h"

namespace deepinfer::cuda {

// After these the context is broken: only a new process helps.
bool is_sticky(cudaError_t code);

// Throws CudaOutOfMemory for want of memory, else CudaError. `what`: the call, or the kernel's name.
[[noreturn]] void throw_cuda_error(cudaError_t code, const char* what, const char* file, int line);

}  // namespace deepinfer::cuda

// DI_CUDA_CHECK(cudaMemcpyAsync(...)): throws when the call fails. A failed launch's error is taken off the
// runtime, so that the next check does not find it again.
#define DI_CUDA_CHECK(call)                                                         \
  do {                                                                              \
    const cudaError_t di_cuda_code = (call);                                        \
    if (di_cuda_code != cudaSuccess) [[unlikely]]                                   \
      ::deepinfer::cuda::throw_cuda_error(di_cuda_code, #call, __FILE__, __LINE__); \
  } while (false)
