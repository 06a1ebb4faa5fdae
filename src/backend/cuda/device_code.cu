#include <cuda_runtime.h>

#include "backend/cuda/device_code.h"
#include "backend/cuda/launch.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

// Every unit of plain kernels is made for the same cards: what holds for this one holds for all.
__global__ void probe_kernel() {}

}  // namespace

std::string_view built_architectures() {
  return DI_CUDA_ARCHITECTURES;
}

int code_architecture() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe_kernel));
  if (status == cudaSuccess) return attributes.ptxVersion;
  (void)cudaGetLastError();
  return 0;
}

Result<void> check_device_code() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe_kernel));
  if (status == cudaSuccess) return {};
  cudaGetLastError();
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return make_error(ErrorCode::kMemory,
                    "device cuda:{}: compute capability {}.{}, but this build has code for {} ({}). Cards "
                    "from 8.0 on work with "
                    "a driver as new as the build's CUDA: update the driver, or build with "
                    "DEEPINFER_CUDA_ARCHITECTURES set for "
                    "this card, or use device cpu",
                    device, major, minor, DI_CUDA_ARCHITECTURES, cudaGetErrorString(status));
}

void allow_shared(const void* function, size_t bytes) {
  cudaFuncAttributes attributes;
  DI_CUDA_CHECK(cudaFuncGetAttributes(&attributes, function));
  if (attributes.maxDynamicSharedSizeBytes >= static_cast<int>(bytes)) return;
  DI_CUDA_CHECK(
      cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

}  // namespace deepinfer::cuda
