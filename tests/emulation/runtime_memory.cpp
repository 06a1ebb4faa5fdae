// Memory calls of the CUDA runtime: allocation, copies, fills. Copies between device and pinned memory read
// and write when they run, not when they are called.
#include <cstdlib>
#include <cstring>
#include <string>

#include "emulation/runtime.h"

namespace em = deepinfer::emulation;

namespace deepinfer::emulation {
namespace {

std::string hex(const void* p) {
  char text[32];
  std::snprintf(text, sizeof text, "%p", p);
  return text;
}

// One end of a copy: must be what the copy's kind says, now and when it runs.
struct End {
  const void* p;
  size_t bytes;
  bool device;
  uint64_t id = 0;  // of the allocation

  void check(const char* what) {
    const Allocation* a = machine().find(p);
    if (device && !machine().on_device(p, bytes))
      throw_failure(std::string(what) + ": " + std::to_string(bytes) + " bytes from " + hex(p) +
                    " on are not one allocation of the device's memory" +
                    (id ? ": it was freed while the copy was in flight" : ""));
    if (!device && a && a->kind != MemoryKind::kPinned)
      throw_failure(std::string(what) + ": " + hex(p) + " is device memory, expected host memory");
    const uint64_t now = a ? a->id : 0;
    if (id && now != id)
      throw_failure(std::string(what) + ": the memory at " + hex(p) +
                    " was freed while the copy was in flight");
    id = now;
  }
};

bool is_device(const void* p) {
  const Allocation* a = machine().find(p);
  return a && a->kind != MemoryKind::kPinned;
}

bool is_pageable(const End& end) {
  return !end.device && machine().find(end.p) == nullptr;
}

// Fills in which end is where; false: the kind is none.
bool ends_of_kind(cudaMemcpyKind kind, End& to, End& from) {
  switch (kind) {
    case cudaMemcpyHostToHost:
      return true;
    case cudaMemcpyHostToDevice:
      to.device = true;
      return true;
    case cudaMemcpyDeviceToHost:
      from.device = true;
      return true;
    case cudaMemcpyDeviceToDevice:
      to.device = from.device = true;
      return true;
    case cudaMemcpyDefault:
      to.device = is_device(to.p);
      from.device = is_device(from.p);
      return true;
  }
  return false;
}

cudaError_t copy(void* to_p, const void* from_p, size_t bytes, cudaMemcpyKind kind, cudaStream_t handle,
                 bool wait) {
  Machine& m = machine();
  Stream* stream = m.stream(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  End to{to_p, bytes, false}, from{from_p, bytes, false};
  if (!ends_of_kind(kind, to, from)) return cudaErrorInvalidMemcpyDirection;
  if (bytes == 0) return cudaSuccess;
  to.check("copy to");
  from.check("copy from");
  // Memory that is not pinned is staged in the call itself; results are there when it returns.
  std::shared_ptr<void> staged;
  if (is_pageable(from) && !stream->capture) {
    staged.reset(std::malloc(bytes), std::free);
    std::memcpy(staged.get(), from_p, bytes);
    from = {staged.get(), bytes, false};
  }
  m.submit(*stream, {.other = [to, from, staged, to_p, bytes]() mutable {
    to.check("copy to");
    if (!staged) from.check("copy from");
    std::memmove(to_p, from.p, bytes);
    ++machine().counts.copies;
  }});
  if (!stream->capture && (wait || is_pageable(to))) m.wait(stream->last);
  return cudaSuccess;
}

cudaError_t fill(void* p, int value, size_t bytes, cudaStream_t handle, bool wait) {
  Machine& m = machine();
  Stream* stream = m.stream(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (bytes == 0) return cudaSuccess;
  End to{p, bytes, true};
  to.check("fill of");
  m.submit(*stream, {.other = [to, p, value, bytes]() mutable {
    to.check("fill of");
    std::memset(p, value, bytes);
  }});
  if (wait) m.wait(stream->last);
  return cudaSuccess;
}

cudaError_t allocate(void** p, size_t bytes, MemoryKind kind) {
  if (!p) return cudaErrorInvalidValue;
  if (const cudaError_t error = machine().unsafe_in_capture()) return error;
  return machine().allocate(p, bytes, kind);
}

cudaError_t release(void* p, MemoryKind kind) {
  if (const cudaError_t error = machine().unsafe_in_capture()) return error;
  return machine().free(p, kind);
}

// For calls on the legacy stream that wait.
cudaError_t blocking_call(const std::function<cudaError_t()>& body) {
  return runtime_call([&] {
    if (machine().legacy_blocked_by_capture()) return cudaErrorStreamCaptureImplicit;
    if (const cudaError_t error = machine().unsafe_in_capture()) return error;
    return body();
  });
}

}  // namespace
}  // namespace deepinfer::emulation

extern "C" {

cudaError_t cudaMalloc(void** p, size_t bytes) {
  return em::runtime_call([&] { return em::allocate(p, bytes, em::MemoryKind::kDevice); });
}

cudaError_t cudaFree(void* p) {
  return em::runtime_call([&] { return em::release(p, em::MemoryKind::kDevice); });
}

cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned int) {
  return em::runtime_call([&] { return em::allocate(p, bytes, em::MemoryKind::kPinned); });
}

cudaError_t cudaMallocHost(void** p, size_t bytes) {
  return em::runtime_call([&] { return em::allocate(p, bytes, em::MemoryKind::kPinned); });
}

cudaError_t cudaFreeHost(void* p) {
  return em::runtime_call([&] { return em::release(p, em::MemoryKind::kPinned); });
}

// Pinned memory is the device's too, at the same address.
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned int) {
  return em::runtime_call([&] {
    const em::Allocation* a = em::machine().find(host);
    if (!a || a->kind != em::MemoryKind::kPinned) return cudaErrorInvalidValue;
    *device = host;
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  return em::runtime_call([&] {
    const em::Allocation* a = em::machine().find(p);
    *attributes = {};
    attributes->device = a ? a->device : -1;
    const bool pinned = a && a->kind == em::MemoryKind::kPinned;
    attributes->type = !a ? cudaMemoryTypeUnregistered : pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->devicePointer = a ? const_cast<void*>(p) : nullptr;
    attributes->hostPointer = !a || pinned ? const_cast<void*>(p) : nullptr;
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return em::runtime_call([&] { return em::copy(to, from, bytes, kind, stream, false); });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return em::blocking_call([&] { return em::copy(to, from, bytes, kind, nullptr, true); });
}

cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  return em::runtime_call([&] { return em::fill(p, value, bytes, stream, false); });
}

// Like the real one, it need not have run when the call returns.
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  return em::blocking_call([&] { return em::fill(p, value, bytes, nullptr, false); });
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return em::runtime_call([&] {
    *free = em::machine().free_bytes(em::current_device());
    *total = em::machine().total_bytes(em::current_device());
    return cudaSuccess;
  });
}

}  // extern "C"
