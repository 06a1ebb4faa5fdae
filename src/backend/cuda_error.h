// What a failed call of CUDA throws. No CUDA header is needed to include this.
#pragma once

#include <new>
#include <stdexcept>
#include <string>

namespace deepinfer::cuda {

// A failed call, or a kernel's fault that a later call reports. Sticky: the device's context is broken, every
// later call of this process fails.
class CudaError : public std::runtime_error {
 public:
  CudaError(const std::string& message, int code, bool sticky)
      : std::runtime_error(message), code_(code), sticky_(sticky) {}
  int code() const { return code_; }  // cudaError_t
  bool sticky() const { return sticky_; }

 private:
  int code_;
  bool sticky_;
};

// The device has too little memory for the call; nothing else is wrong with it.
class CudaOutOfMemory : public std::bad_alloc {
 public:
  explicit CudaOutOfMemory(const std::string& message) : message_(message) {}
  const char* what() const noexcept override { return message_.what(); }

 private:
  std::runtime_error message_;  // its copies throw nothing
};

}  // namespace deepinfer::cuda
