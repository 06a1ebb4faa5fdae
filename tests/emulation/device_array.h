// Memory of the emulated device in tests.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "backend/cuda/error.h"

namespace deepinfer::emulation {

// Frees its memory at the end of its scope. Copies wait.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) { DI_CUDA_CHECK(cudaMalloc(&data_, count * sizeof(T))); }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    DI_CUDA_CHECK(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceArray() { (void)cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return static_cast<T*>(data_); }
  size_t size() const { return count_; }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    DI_CUDA_CHECK(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  void* data_ = nullptr;
  size_t count_;
};

}  // namespace deepinfer::emulation
