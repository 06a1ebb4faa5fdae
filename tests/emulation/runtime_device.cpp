// Devices, versions, properties and error texts of the CUDA runtime.
#include <cstring>

#include "emulation/runtime.h"

namespace em = deepinfer::emulation;

namespace {

struct ErrorText {
  cudaError_t code;
  const char *name, *text;
};

#define DI_ERROR(name, text) {name, #name, text}
constexpr ErrorText kErrors[] = {
    DI_ERROR(cudaSuccess, "no error"),
    DI_ERROR(cudaErrorInvalidValue, "invalid argument"),
    DI_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    DI_ERROR(cudaErrorInitializationError, "initialization error"),
    DI_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    DI_ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    DI_ERROR(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    DI_ERROR(cudaErrorDevicesUnavailable, "CUDA-capable device(s) is/are busy or unavailable"),
    DI_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    DI_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    DI_ERROR(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device"),
    DI_ERROR(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"),
    DI_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    DI_ERROR(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    DI_ERROR(cudaErrorSymbolNotFound, "named symbol not found"),
    DI_ERROR(cudaErrorNotReady, "device not ready"),
    DI_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    DI_ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    DI_ERROR(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    DI_ERROR(cudaErrorAssert, "device-side assert triggered"),
    DI_ERROR(cudaErrorMisalignedAddress, "misaligned address"),
    DI_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    DI_ERROR(cudaErrorNotSupported, "operation not supported"),
    DI_ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    DI_ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    DI_ERROR(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences"),
    DI_ERROR(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    DI_ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    DI_ERROR(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    DI_ERROR(cudaErrorStreamCaptureImplicit,
             "operation would make the legacy stream depend on a capturing one"),
    DI_ERROR(cudaErrorCapturedEvent,
             "operation not permitted on an event last recorded in a capturing stream"),
    DI_ERROR(cudaErrorStreamCaptureWrongThread,
             "attempt to terminate a thread-local capture from another thread"),
};
#undef DI_ERROR

const ErrorText* find_error(cudaError_t code) {
  for (const ErrorText& e : kErrors)
    if (e.code == code) return &e;
  return nullptr;
}

cudaError_t attribute(int* value, cudaDeviceAttr what) {
  const em::MachineConfig& c = em::machine().config;
  switch (what) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = c.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = c.minor;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = c.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 << 10;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(c.shared_per_block);
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(c.shared_per_block + 1024);
      return cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      return cudaSuccess;
    case cudaDevAttrMaxRegistersPerBlock:
      *value = 65536;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = 32;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = 32 << 20;
      return cudaSuccess;
    case cudaDevAttrClockRate:
      *value = 1000000;
      return cudaSuccess;
    case cudaDevAttrUnifiedAddressing:
      *value = 1;
      return cudaSuccess;
    case cudaDevAttrCanMapHostMemory:
      *value = 1;
      return cudaSuccess;
    case cudaDevAttrIntegrated:
      *value = 0;
      return cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

bool is_device(int device) {
  return device >= 0 && device < em::machine().config.device_count;
}

}  // namespace

extern "C" {

const char* cudaGetErrorName(cudaError_t code) {
  const ErrorText* e = find_error(code);
  return e ? e->name : "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t code) {
  const ErrorText* e = find_error(code);
  return e ? e->text : "unrecognized error code";
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  return em::runtime_call([&] {
    *count = em::machine().config.device_count;
    return cudaSuccess;
  });
}

// A broken context is that device's own: from it another one can be gone to.
cudaError_t cudaSetDevice(int device) {
  const std::lock_guard lock(em::machine_mutex());
  const bool there = is_device(device);
  if (there) em::current_device() = device;
  return em::runtime_call([&] { return there ? cudaSuccess : cudaErrorInvalidDevice; });
}

cudaError_t cudaGetDevice(int* device) {
  return em::runtime_call([&] {
    *device = em::current_device();
    return cudaSuccess;
  });
}

cudaError_t cudaSetDeviceFlags(unsigned int) {
  return em::runtime_call([] { return cudaSuccess; });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int device) {
  return em::runtime_call(
      [&] { return is_device(device) ? attribute(value, what) : cudaErrorInvalidDevice; });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  return em::runtime_call([&] {
    if (!is_device(device)) return cudaErrorInvalidDevice;
    const em::MachineConfig& c = em::machine().config;
    *p = {};
    std::strncpy(p->name, c.name.c_str(), sizeof p->name - 1);
    p->totalGlobalMem = em::machine().total_bytes(device);
    p->major = c.major;
    p->minor = c.minor;
    p->multiProcessorCount = c.multiprocessors;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = c.shared_per_block;
    p->sharedMemPerMultiprocessor = c.shared_per_block + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->l2CacheSize = 32 << 20;
    p->memoryBusWidth = 512;
    p->unifiedAddressing = 1;
    p->canMapHostMemory = 1;
    p->pciBusID = device + 1;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return em::runtime_call([&] {
    if (!is_device(device) || !is_device(peer)) return cudaErrorInvalidDevice;
    *can = device != peer && em::machine().config.peer_access ? 1 : 0;
    return cudaSuccess;
  });
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

// 0 where there is no driver, as the real one.
cudaError_t cudaDriverGetVersion(int* version) {
  const std::lock_guard lock(em::machine_mutex());
  *version = em::machine().config.driver_version;
  return cudaSuccess;
}

cudaError_t cudaDeviceReset() {
  const std::lock_guard lock(em::machine_mutex());
  em::reset_machine(em::machine().config);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute what, int value) {
  return em::runtime_call([&] {
    if (!function) return cudaErrorInvalidDeviceFunction;
    if (what != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    em::Machine& m = em::machine();
    if (value < 0 || static_cast<size_t>(value) > m.config.shared_per_block) return cudaErrorInvalidValue;
    m.shared_limits[{em::current_device(), function}] = static_cast<size_t>(value);
    return cudaSuccess;
  });
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  return em::runtime_call([&] {
    if (!function) return cudaErrorInvalidDeviceFunction;
    const em::MachineConfig& c = em::machine().config;
    // What a build for all cards of 8.0 and later answers.
    if (c.major < 8) return cudaErrorNoKernelImageForDevice;
    *attributes = {};
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->binaryVersion = 10 * c.major + c.minor;
    attributes->ptxVersion = em::machine().code_architecture();
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(em::machine().shared_limit(function));
    return cudaSuccess;
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads,
                                                          size_t smem) {
  return em::runtime_call([&] {
    if (threads < 1 || threads > 1024) return cudaErrorInvalidValue;
    const size_t by_shared = (em::machine().config.shared_per_block + 1024) / (smem + 1024);
    *blocks = static_cast<int>(std::min<size_t>(by_shared, static_cast<size_t>(2048 / threads)));
    return cudaSuccess;
  });
}

}  // extern "C"
