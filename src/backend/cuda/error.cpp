#include "backend/cuda/error.h"

#include <fmt/format.h>

#include <string_view>

namespace deepinfer::cuda {

bool is_sticky(cudaError_t code) {
  switch (code) {
    case cudaErrorECCUncorrectable:
    case cudaErrorContained:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsClientTerminated:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

void throw_cuda_error(cudaError_t code, const char* what, const char* file, int line) {
  (void)cudaGetLastError();
  std::string_view name(file);
  name = name.substr(name.rfind('/') + 1);
  const std::string message = fmt::format("CUDA: {} failed: {} ({}) at {}:{}", what, cudaGetErrorString(code),
                                          cudaGetErrorName(code), name, line);
  if (code == cudaErrorMemoryAllocation) throw CudaOutOfMemory(message);
  throw CudaError(message, static_cast<int>(code), is_sticky(code));
}

}  // namespace deepinfer::cuda
