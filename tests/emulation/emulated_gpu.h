// What tests set and read of the emulated machine. No CUDA header is needed to include this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace deepinfer::emulation {

// A kernel did what CUDA forbids, or work was given to the runtime that can never end.
class Failure : public std::logic_error {
  using std::logic_error::logic_error;
};

// Every order (of threads, blocks, streams) is drawn from it: DEEPINFER_EMULATION_SEED, else 1.
uint64_t seed();
void set_seed(uint64_t seed);

// Throws Failure with the text and the seed, and counts it.
[[noreturn]] void throw_failure(const std::string& text);
// Failures since the last call. A test that expects some takes them; others are reported at the test's end.
int take_failures();

struct MachineConfig {
  int device_count = 1;  // all alike, but for:
  std::string name = "Emulated GPU";
  int major = 9, minor = 0;  // compute capability
  int multiprocessors = 4;
  size_t total_memory = size_t{1} << 30;
  std::vector<size_t> memory_of = {};   // of each device, where they differ from total_memory
  size_t used_by_others = 0;            // of total_memory
  size_t shared_per_block = 227 << 10;  // with opt-in
  int driver_version = 13000;           // 0: no driver
  bool virtual_memory = true;           // the driver knows cuMemCreate and its like
  bool cublaslt = true;                 // libcublasLt.so is there
  bool peer_access = false;             // devices read each other's memory
  size_t bytes_of_node = 0;             // of device memory, that a graph takes for each of its nodes
};

// A fresh machine: work in flight is dropped, all handles and device memory are gone, errors forgotten. Only
// when nothing that owns some of it lives.
void reset_machine(const MachineConfig& config = {});

// The n-th allocation from now (0: the next one; device, pinned or virtual memory) fails once.
void fail_allocation(int n);
// The n-th kernel that starts from now faults with this error (cudaErrorIllegalAddress: 700), for good.
void fail_kernel(int n, int error = 700);

// What NCCL's stand-in does wrong, from its rank's n-th operation from now on (0: the next one).
struct NcclFault {
  enum class Kind {
    kNone,
    kCall,   // the call returns an error
    kLate,   // the call is fine; ncclCommGetAsyncError tells of an error
    kSilent  // neither it nor any later one comes to the others
  };
  Kind kind = Kind::kNone;
  int rank = 0;
  int n = 0;
};
void fail_nccl(const NcclFault& fault);
// ncclCommInitRank of this rank fails once.
void fail_nccl_init(int rank);

struct MachineCounts {
  int64_t kernels = 0, copies = 0, graph_launches = 0;  // that have run
  size_t functions = 0;          // different kernels that were launched or captured: whose code is loaded
  int64_t exchanges = 0;         // of NCCL's stand-in that have run, each counted once
  int64_t early_starts = 0;      // dependents that started before the kernel in front of them
  int64_t allocations = 0;       // calls that allocated, ever
  int64_t live_allocations = 0;  // of device, pinned and virtual memory
  size_t device_bytes = 0;       // allocated now, on all devices
  size_t pending = 0;            // operations that have not run
};
MachineCounts machine_counts();

}  // namespace deepinfer::emulation
