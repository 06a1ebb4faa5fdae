// Ranges of addresses that are backed later, by the driver's virtual memory calls. They are asked for by
// name, so that the program needs no libcuda.so.1 to start.
#include <cuda.h>
#include <fmt/format.h>

#include <vector>

#include "backend/cuda/error.h"
#include "backend/cuda/parts.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

struct Driver {
  decltype(&cuMemGetAllocationGranularity) granularity = nullptr;
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) free = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;
};

template <class Function>
Result<void> find(const char* name, Function& out) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t code = cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault, &found);
  if (code != cudaSuccess || found != cudaDriverEntryPointSuccess || address == nullptr) {
    (void)cudaGetLastError();
    return make_error(ErrorCode::kMemory, "the NVIDIA driver has no {}: update the driver (580 or newer)",
                      name);
  }
  out = reinterpret_cast<Function>(address);
  return {};
}

Result<Driver> find_driver() {
  Driver d;
  DI_TRY(find("cuMemGetAllocationGranularity", d.granularity));
  DI_TRY(find("cuMemAddressReserve", d.reserve));
  DI_TRY(find("cuMemAddressFree", d.free));
  DI_TRY(find("cuMemCreate", d.create));
  DI_TRY(find("cuMemRelease", d.release));
  DI_TRY(find("cuMemMap", d.map));
  DI_TRY(find("cuMemUnmap", d.unmap));
  DI_TRY(find("cuMemSetAccess", d.set_access));
  return d;
}

CUmemAllocationProp pinned_on(int index) {
  CUmemAllocationProp prop{};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  prop.location.id = index;
  return prop;
}

struct Piece {
  CUdeviceptr address = 0;
  size_t bytes = 0;
  CUmemGenericAllocationHandle memory{};
};

// What a Range owns.
struct Backing {
  explicit Backing(const Driver& d) : driver(d) {}
  Backing(const Backing&) = delete;
  ~Backing() {
    for (const Piece& p : pieces) {
      (void)driver.unmap(p.address, p.bytes);
      (void)driver.release(p.memory);
    }
    if (address != 0) (void)driver.free(address, bytes);
  }
  Driver driver;
  CUdeviceptr address = 0;
  size_t bytes = 0, granularity = 0;
  std::vector<Piece> pieces;
};

Error refused(const GpuFacts& f, const char* what, size_t bytes, CUresult code) {
  return make_error(ErrorCode::kMemory, "GPU {} ({}): {} {} bytes was refused (driver error {})", f.index,
                    f.name, what, bytes, static_cast<int>(code));
}

size_t round_up(size_t n, size_t unit) {
  return (n + unit - 1) / unit * unit;
}

// Maps fresh memory behind what is mapped.
Result<void> append(Backing& b, const GpuFacts& facts, size_t mapped, size_t bytes) {
  Piece piece{.address = b.address + mapped, .bytes = bytes};
  const CUmemAllocationProp prop = pinned_on(facts.index);
  CUresult code = b.driver.create(&piece.memory, bytes, &prop, 0);
  if (code != CUDA_SUCCESS) return refused(facts, "memory for the KV cache: allocating", bytes, code);
  code = b.driver.map(piece.address, bytes, 0, piece.memory, 0);
  if (code != CUDA_SUCCESS) {
    (void)b.driver.release(piece.memory);
    return refused(facts, "memory for the KV cache: mapping", bytes, code);
  }
  CUmemAccessDesc access{};
  access.location = prop.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  code = b.driver.set_access(piece.address, bytes, &access, 1);
  if (code != CUDA_SUCCESS) {
    (void)b.driver.unmap(piece.address, bytes);
    (void)b.driver.release(piece.memory);
    return refused(facts, "memory for the KV cache: access to", bytes, code);
  }
  b.pieces.push_back(piece);
  return {};
}

}  // namespace

Result<Range> Gpu::reserve(size_t bytes) {
  DI_ASSIGN(const Driver driver, find_driver());
  auto backing = std::make_shared<Backing>(driver);
  const CUmemAllocationProp prop = pinned_on(facts_.index);
  CUresult code = driver.granularity(&backing->granularity, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
  if (code != CUDA_SUCCESS || backing->granularity == 0)
    return refused(facts_, "mapping memory later (virtual memory management) for", bytes, code);
  backing->bytes = round_up(bytes, backing->granularity);
  code = driver.reserve(&backing->address, backing->bytes, 0, 0, 0);
  if (code != CUDA_SUCCESS) return refused(facts_, "reserving addresses for", backing->bytes, code);
  Range range;
  range.data_ = reinterpret_cast<std::byte*>(backing->address);
  range.reserved_ = backing->bytes;
  range.granularity_ = backing->granularity;
  range.handle_ = std::move(backing);
  return range;
}

Result<void> Gpu::map(Range& range, size_t bytes) {
  DI_CHECK(range.handle_ != nullptr, "map of {} bytes of a range that was never reserved", bytes);
  Backing& backing = *static_cast<Backing*>(range.handle_.get());
  const size_t end = round_up(bytes, backing.granularity);
  DI_CHECK(end <= range.reserved_, "map of {} bytes, reserved are {}", end, range.reserved_);
  if (end <= range.mapped_) return {};
  DI_TRY(append(backing, facts_, range.mapped_, end - range.mapped_));
  range.mapped_ = end;
  return {};
}

}  // namespace deepinfer::cuda
