// A CUDA device as the engine sees it: memory, one stream, events, graphs, ranges of addresses that are
// mapped later. No CUDA header is needed to include this. The linker takes the bodies from backend/cuda, or
// from backend/no_cuda, where open() says that this build has none.
//
// Owner: the engine's thread after the load (make_current() first); not for several threads at once. A failed
// call throws CudaError; one for memory throws CudaOutOfMemory (a std::bad_alloc), see cuda_error.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/arena.h"
#include "deepinfer/result.h"

struct CUstream_st;

namespace deepinfer::cuda {

// Read from the card, never from a table.
struct GpuFacts {
  std::string name;
  int index = 0;       // among the visible ones
  int capability = 0;  // 10 * major + minor: 120 for an RTX 5090
  int multiprocessors = 0;
  size_t total_bytes = 0;
  size_t shared_per_block = 0;  // with opt-in
  size_t l2_bytes = 0;
  int driver = 0, runtime = 0;  // 13000 for CUDA 13.0
};

// Which fast paths may be used: built, served by the card, and found right by the self-check.
struct FastPaths {
  bool fa2 = false, xqa = false, cublaslt = false, skinny = true, pdl = false;
  bool skinny_codes = true, codes = true;     // products with U4 and U8: up to 16 tokens, up to 512
  bool cublaslt_f8 = false, f8_tile = false;  // products of F8 weights with activations rounded to F8
  bool finish = true;  // a skinny product of q, k and v ends with their heads, without a kernel of its own
};

struct GpuOptions {
  int index = 0;
  bool deterministic = false;  // no choice that depends on the rows of a step
  bool self_check = true;
};

struct MemoryInfo {
  size_t free_bytes = 0, total_bytes = 0;
};

// A captured step. Movable; freed with the device's stream at rest.
class Graph {
 public:
  Graph() = default;
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  friend class Gpu;
  std::shared_ptr<void> handle_;
};

class Event {
 public:
  Event() = default;
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  friend class Gpu;
  std::shared_ptr<void> handle_;
};

// Addresses of device memory: reserved whole, backed from the start as far as map() said. So that graphs can
// be captured against a KV cache whose size is not known yet.
class Range {
 public:
  std::byte* data() const { return data_; }
  size_t reserved() const { return reserved_; }
  size_t mapped() const { return mapped_; }
  size_t granularity() const { return granularity_; }  // map() rounds up to it

 private:
  friend class Gpu;
  std::byte* data_ = nullptr;
  size_t reserved_ = 0, mapped_ = 0, granularity_ = 0;
  std::shared_ptr<void> handle_;
};

class Gpu {
 public:
  // kUnsupported: no CUDA in this build; kMemory: no such device, driver too old, card older than sm_80.
  static Result<std::unique_ptr<Gpu>> open(const GpuOptions& options);
  ~Gpu();  // waits for the stream

  // Once, before memory is planned: loads cuBLASLt, makes FlashInfer's kernels ready, and compares every path
  // in `fast` with the plain kernels unless GpuOptions::self_check is false (backend/cuda/self_check.h).
  // Before it the plain kernels serve. An error when a path broke the device's context, or kMemory.
  Result<void> open_fast_paths();

  // A thread's calls go to the device that it made current: the one that opened it has; another must first.
  void make_current() const;

  const GpuFacts& facts() const { return facts_; }
  const GpuOptions& options() const { return options_; }
  MemoryInfo memory() const;
  MemoryInfo memory_at_open() const { return at_open_; }  // what others hold is missing in it

  // 256-byte aligned. kMemory with the numbers when there is not enough. Pinned memory is the host's, and
  // what asynchronous copies must read from and write to.
  Result<Buffer> allocate(size_t bytes);
  Result<Buffer> allocate_pinned(size_t bytes);
  Result<Range> reserve(size_t bytes);
  // Backs the first `bytes` of the range (rounded up to the device's granularity). kMemory.
  Result<void> map(Range& range, size_t bytes);

  // Where libraries put their work.
  CUstream_st* stream() const;

  // Asynchronous, in the stream's order.
  void copy_in(void* to_device, const void* from_host, size_t bytes);
  void copy_out(void* to_host, const void* from_device, size_t bytes);
  void fill(void* on_device, int byte, size_t bytes);

  Event record();                 // when all before it in the stream is done
  void wait(const Event& event);  // the host waits
  bool done(const Event& event);
  void synchronize();

  // Between the two, operations are recorded, not run. Nothing may be allocated and nothing waited for.
  void begin_capture();
  Graph end_capture();
  void abandon_capture();  // after an exception in between
  void launch(const Graph& graph);

  FastPaths fast;    // switched by the self-check
  bool pdl = false;  // launches of this moment may overlap with the kernel before them

  // What backend/cuda keeps here besides: stream, library handles, tuned algorithms.
  struct Parts;
  Parts& parts() const { return *parts_; }

 private:
  Gpu() = default;
  GpuFacts facts_;
  GpuOptions options_;
  MemoryInfo at_open_;
  std::shared_ptr<Parts> parts_;
};

// False in a build without CUDA.
bool built();
// The cards that this build has code for ("80 89 90a 120f"; others from 8.0 on take what the driver compiles
// from the oldest one's); empty without CUDA.
std::string_view built_for();

// Devices that the driver shows to this process; 0 with the reason when there is none.
int device_count(std::string* reason = nullptr);

// Whether one visible device can read the memory of another one directly (NVLink, or PCIe where the driver
// allows it). Unset: CUDA does not say.
std::optional<bool> can_access_peer(int device, int peer);

// A library that is loaded when the program runs: the file that was taken, or why there is none.
struct CudaLibrary {
  std::string version, path;  // "13.1.0", "/usr/local/cuda/lib64/libcublasLt.so.13"
  std::string problem;        // empty: it can be used
};

// Loads cuBLASLt as a Gpu does. Unset in a build without CUDA.
std::optional<CudaLibrary> cublaslt_library();

}  // namespace deepinfer::cuda
