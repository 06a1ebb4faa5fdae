// Microseconds of the device's clock between two points of a stream.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/cuda/error.h"

namespace deepinfer::cuda {

class Timer {
 public:
  Timer() {
    DI_CUDA_CHECK(cudaEventCreate(&start_));
    if (const cudaError_t code = cudaEventCreate(&end_); code != cudaSuccess) {
      (void)cudaEventDestroy(start_);
      DI_CUDA_CHECK(code);
    }
  }
  Timer(const Timer&) = delete;
  ~Timer() {
    (void)cudaEventDestroy(start_);
    (void)cudaEventDestroy(end_);
  }
  void start(cudaStream_t s) { DI_CUDA_CHECK(cudaEventRecord(start_, s)); }
  // Waits for what is in the stream.
  float stop_us(cudaStream_t s) {
    DI_CUDA_CHECK(cudaEventRecord(end_, s));
    DI_CUDA_CHECK(cudaEventSynchronize(end_));
    float ms = 0;
    DI_CUDA_CHECK(cudaEventElapsedTime(&ms, start_, end_));
    return ms * 1000;
  }

 private:
  cudaEvent_t start_ = nullptr, end_ = nullptr;
};

}  // namespace deepinfer::cuda
