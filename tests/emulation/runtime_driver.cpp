// The driver's virtual memory calls, found through cudaGetDriverEntryPointByVersion. Reserved addresses are
// mapped without access; memory is a file in memory, so that it can move from one address to another.
#include <cuda.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <set>
#include <string_view>

#include "emulation/runtime.h"

namespace deepinfer::emulation {
namespace {

constexpr size_t kGranularity = 2 << 20;

struct Physical {
  int file = -1;
  size_t bytes = 0;
  int device = 0;
  int uses = 1;  // the handle, and every mapping
};

struct Reservation {
  size_t bytes;
};

struct Mapping {
  size_t bytes;
  Physical* memory;
};

struct Virtual {
  std::map<CUdeviceptr, Reservation> reservations;
  std::map<CUdeviceptr, Mapping> mappings;
};

Virtual& state() {
  static Virtual v;
  return v;
}

void* pointer(CUdeviceptr p) {
  return reinterpret_cast<void*>(p);
}

Physical* physical(CUmemGenericAllocationHandle handle) {
  return reinterpret_cast<Physical*>(handle);
}

void unuse(Physical* memory) {
  if (--memory->uses) return;
  close(memory->file);
  machine().give_bytes(memory->device, memory->bytes);
  delete memory;
}

CUresult granularity(size_t* bytes, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
  *bytes = kGranularity;
  return CUDA_SUCCESS;
}

CUresult reserve(CUdeviceptr* p, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
  const std::lock_guard lock(machine_mutex());
  if (bytes == 0 || bytes % kGranularity) return CUDA_ERROR_INVALID_VALUE;
  // Room to align.
  char* raw = static_cast<char*>(
      mmap(nullptr, bytes + kGranularity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (raw == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  const size_t skip = (kGranularity - reinterpret_cast<uintptr_t>(raw) % kGranularity) % kGranularity;
  if (skip) munmap(raw, skip);
  munmap(raw + skip + bytes, kGranularity - skip);
  *p = reinterpret_cast<CUdeviceptr>(raw + skip);
  state().reservations[*p] = {bytes};
  return CUDA_SUCCESS;
}

CUresult free_reserved(CUdeviceptr p, size_t bytes) {
  const std::lock_guard lock(machine_mutex());
  const auto found = state().reservations.find(p);
  if (found == state().reservations.end() || found->second.bytes != bytes) return CUDA_ERROR_INVALID_VALUE;
  const auto mapped = state().mappings.lower_bound(p);
  if (mapped != state().mappings.end() && mapped->first < p + bytes) return CUDA_ERROR_INVALID_VALUE;
  munmap(pointer(p), bytes);
  state().reservations.erase(found);
  return CUDA_SUCCESS;
}

CUresult create(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* prop,
                unsigned long long) {
  const std::lock_guard lock(machine_mutex());
  if (bytes == 0 || bytes % kGranularity) return CUDA_ERROR_INVALID_VALUE;
  const int device = prop->location.id;
  if (device < 0 || device >= machine().config.device_count) return CUDA_ERROR_INVALID_DEVICE;
  if (machine().next_allocation_fails() || !machine().take_bytes(device, bytes))
    return CUDA_ERROR_OUT_OF_MEMORY;
  auto* memory =
      new Physical{.file = memfd_create("emulated", MFD_CLOEXEC), .bytes = bytes, .device = device};
  void* p = MAP_FAILED;
  if (memory->file >= 0 && ftruncate(memory->file, static_cast<off_t>(bytes)) == 0)
    p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory->file, 0);
  if (p == MAP_FAILED) {
    unuse(memory);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  fill_poison(p, bytes);
  munmap(p, bytes);
  *handle = reinterpret_cast<CUmemGenericAllocationHandle>(memory);
  return CUDA_SUCCESS;
}

CUresult release(CUmemGenericAllocationHandle handle) {
  const std::lock_guard lock(machine_mutex());
  unuse(physical(handle));
  return CUDA_SUCCESS;
}

bool reserved(CUdeviceptr p, size_t bytes) {
  auto found = state().reservations.upper_bound(p);
  if (found == state().reservations.begin()) return false;
  --found;
  return p - found->first <= found->second.bytes && found->second.bytes - (p - found->first) >= bytes;
}

CUresult map(CUdeviceptr p, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
             unsigned long long) {
  const std::lock_guard lock(machine_mutex());
  Physical* memory = physical(handle);
  if (p % kGranularity || offset || bytes != memory->bytes || !reserved(p, bytes))
    return CUDA_ERROR_INVALID_VALUE;
  const auto after = state().mappings.lower_bound(p);
  if (after != state().mappings.end() && after->first < p + bytes) return CUDA_ERROR_ALREADY_MAPPED;
  if (after != state().mappings.begin() && std::prev(after)->first + std::prev(after)->second.bytes > p)
    return CUDA_ERROR_ALREADY_MAPPED;
  if (mmap(pointer(p), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, memory->file, 0) == MAP_FAILED)
    return CUDA_ERROR_OUT_OF_MEMORY;
  ++memory->uses;
  state().mappings[p] = {bytes, memory};
  return CUDA_SUCCESS;
}

// From here on it is memory of the device for copies too.
CUresult set_access(CUdeviceptr p, size_t bytes, const CUmemAccessDesc* access, size_t count) {
  const std::lock_guard lock(machine_mutex());
  if (count != 1 || access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) return CUDA_ERROR_INVALID_VALUE;
  for (const CUdeviceptr end = p + bytes; p < end;) {
    const auto found = state().mappings.find(p);
    if (found == state().mappings.end() || found->second.bytes > end - p) return CUDA_ERROR_INVALID_VALUE;
    mprotect(pointer(p), found->second.bytes, PROT_READ | PROT_WRITE);
    if (!machine().allocations.contains(p))
      machine().add_allocation(pointer(p), found->second.bytes, MemoryKind::kVirtual,
                               found->second.memory->device);
    p += found->second.bytes;
  }
  return CUDA_SUCCESS;
}

CUresult unmap(CUdeviceptr p, size_t bytes) {
  const std::lock_guard lock(machine_mutex());
  for (const CUdeviceptr end = p + bytes; p < end;) {
    const auto found = state().mappings.find(p);
    if (found == state().mappings.end() || found->second.bytes > end - p) return CUDA_ERROR_INVALID_VALUE;
    const size_t here = found->second.bytes;
    if (mmap(pointer(p), here, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
        MAP_FAILED)
      return CUDA_ERROR_UNKNOWN;
    machine().remove_allocation(pointer(p));
    unuse(found->second.memory);
    state().mappings.erase(found);
    p += here;
  }
  return CUDA_SUCCESS;
}

struct EntryPoint {
  std::string_view name;
  void* function;
};

// Real: the driver's own declaration, which the body must agree with.
template <class Real>
void* entry(Real* function) {
  return reinterpret_cast<void*>(function);
}

void* find_entry(std::string_view name) {
  const EntryPoint points[] = {
      {"cuMemGetAllocationGranularity", entry<decltype(cuMemGetAllocationGranularity)>(granularity)},
      {"cuMemAddressReserve", entry<decltype(cuMemAddressReserve)>(reserve)},
      {"cuMemAddressFree", entry<decltype(cuMemAddressFree)>(free_reserved)},
      {"cuMemCreate", entry<decltype(cuMemCreate)>(create)},
      {"cuMemRelease", entry<decltype(cuMemRelease)>(release)},
      {"cuMemMap", entry<decltype(cuMemMap)>(map)},
      {"cuMemSetAccess", entry<decltype(cuMemSetAccess)>(set_access)},
      {"cuMemUnmap", entry<decltype(cuMemUnmap)>(unmap)},
  };
  for (const EntryPoint& p : points)
    if (p.name == name) return p.function;
  return nullptr;
}

}  // namespace

void reset_virtual_memory() {
  std::set<Physical*> mapped;
  for (const auto& [p, mapping] : state().mappings) mapped.insert(mapping.memory);
  for (Physical* memory : mapped) {
    close(memory->file);
    delete memory;
  }
  for (const auto& [p, reservation] : state().reservations) munmap(pointer(p), reservation.bytes);
  state() = {};
}

}  // namespace deepinfer::emulation

namespace em = deepinfer::emulation;

extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned int,
                                                        unsigned long long,
                                                        cudaDriverEntryPointQueryResult* status) {
  return em::runtime_call([&] {
    *function = em::machine().config.virtual_memory ? em::find_entry(symbol) : nullptr;
    if (status) *status = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
  });
}
