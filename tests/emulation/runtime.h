// The stand-in for the CUDA runtime, behind its real names. What is asynchronous waits as an Op until
// somebody waits for something; then operations run one at a time, in any order that streams and events
// allow, drawn from the seed. Any thread may call; one lock guards everything.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <vector>

#include "emulation/emulated_gpu.h"
#include "emulation/grid.h"

namespace deepinfer::emulation {

struct Op;
using OpPtr = std::shared_ptr<Op>;

// What an operation does: a kernel, or anything else.
struct Work {
  KernelLaunch kernel;          // if kernel.body
  std::function<void()> other;  // else, if any
  // Else: gets itself when its turn comes, and is done when somebody calls Machine::release() with it.
  std::function<void(OpPtr)> held;
  int device = 0;  // whose stream it came to
};

struct Op {
  std::shared_ptr<const Work> work;
  std::unique_ptr<Grid> grid;  // of a kernel that has started
  OpPtr primary;               // the kernel before it in the stream, if this one may start early
  std::vector<OpPtr> next;     // operations that wait for this one
  int waits_for = 0;           // operations that have not run
  bool done = false;
};

// One node of a graph: its work and the nodes that it follows.
struct Node {
  std::shared_ptr<const Work> work;
  std::vector<size_t> after;
  bool programmatic = false;  // follows one kernel that it may overtake up to its wait
};

struct Graph {
  std::vector<Node> nodes;
  size_t bytes = 0;  // that it takes on the device, once instantiated
  int device = 0;
};

struct Stream;

struct Capture {
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  Stream* origin;
  Graph graph;
  bool invalid = false;
};

struct Stream {
  int device = 0;
  bool blocking = true;  // in order with the legacy stream
  OpPtr last;
  std::shared_ptr<Capture> capture;
  std::vector<size_t> tail;  // nodes that the next captured operation follows
};

struct Event {
  bool timing = true;
  OpPtr op;
  std::shared_ptr<double> time;  // of the last record, once it has run
  std::shared_ptr<Capture> capture;
  std::vector<size_t> tail;
};

enum class MemoryKind { kDevice, kPinned, kVirtual };

struct Allocation {
  size_t bytes;
  MemoryKind kind;
  int device;
  uint64_t id;
};

class Machine {
 public:
  explicit Machine(const MachineConfig& config);
  ~Machine();

  // Operations.
  void submit(Stream& stream, Work work);
  OpPtr submit_op(Stream& stream, Work work, const std::vector<OpPtr>& also_after);
  void launch_graph(Stream& stream, const Graph& graph);
  // Where work of other devices is held, other threads may still bring what it waits for: they get some time.
  void wait(const OpPtr& op);
  void release(const OpPtr& op);  // an operation that was held
  void run_some();                // perhaps one operation: for those who poll
  void wait_all();
  bool idle() const { return pending_ == 0; }
  size_t pending() const { return pending_; }

  // The Stream behind the handle; of the current device for the legacy one. Null: not one of ours.
  Stream* stream(cudaStream_t handle);
  Stream* add_stream(bool blocking);
  void remove_stream(Stream* stream);

  // A call that no capture in force allows: invalidates the capture.
  cudaError_t unsafe_in_capture();
  bool legacy_blocked_by_capture();
  // Its streams are free again.
  void release_capture(const Capture& capture);

  // The function's limit of dynamic shared memory on the current device.
  size_t shared_limit(const void* function) const;
  // What the card's code was compiled for, 80 where the driver makes it from PTX.
  int code_architecture() const;

  // Memory.
  cudaError_t allocate(void** out, size_t bytes, MemoryKind kind);
  cudaError_t free(void* p, MemoryKind kind);
  bool take_bytes(int device, size_t bytes);  // false: not enough
  void give_bytes(int device, size_t bytes);
  size_t total_bytes(int device) const;
  size_t free_bytes(int device) const;
  bool next_allocation_fails();
  // The allocation that holds p, or null; with its start.
  const Allocation* find(const void* p, uintptr_t* start = nullptr) const;
  // All bytes are device memory (mapped, of one allocation or of neighbours in a range).
  bool on_device(const void* p, size_t bytes) const;
  void add_allocation(void* p, size_t bytes, MemoryKind kind, int device);
  void remove_allocation(void* p);
  // With several devices: of all device memory only this one's may be touched; -1: all of it.
  void enter(int device);

  MachineConfig config;
  MachineCounts counts;
  // Of the device's context. A thread may stand on a device that an earlier machine had.
  cudaError_t& sticky(int device) {
    return sticky_[std::min(static_cast<size_t>(device), sticky_.size() - 1)];
  }
  int kernels_to_fault = -1, allocations_to_fail = -1;
  cudaError_t fault = cudaSuccess;
  std::vector<std::weak_ptr<Capture>> captures;
  double microseconds = 0;  // of the device's clock
  // Dynamic shared memory that a kernel may have, by device, where it was set.
  std::map<std::pair<int, const void*>, size_t> shared_limits;
  std::map<uintptr_t, Allocation> allocations;
  std::set<const void*> functions;  // kernels that came to a stream

 private:
  void add(const OpPtr& op, const std::vector<OpPtr>& after);
  bool run_one();
  void execute(const OpPtr& op);
  void run_kernel(const OpPtr& op);
  void start_dependents(const Op& op);
  void finish(Op& op);

  std::vector<std::unique_ptr<Stream>> streams_;  // the first ones: each device's legacy stream
  std::vector<OpPtr> ready_;
  size_t pending_ = 0, held_ = 0;
  std::vector<size_t> used_;
  std::vector<cudaError_t> sticky_;
  int entered_ = -1;
  uint64_t ids_ = 0;
  Random random_;
};

// In runtime_driver.cpp: all reservations and mappings are gone.
void reset_virtual_memory();

// What tests asked of NCCL's stand-in.
NcclFault& nccl_fault();
int& nccl_init_to_fail();

std::recursive_mutex& machine_mutex();
Machine& machine();
int& current_device();

// Runs a runtime call's body under the lock and notes its error for cudaGetLastError. A machine without
// devices, or whose context is broken, answers with that.
cudaError_t runtime_call(const std::function<cudaError_t()>& body);
cudaError_t note(cudaError_t error);
// What a library launches in the stream.
cudaError_t enqueue_work(std::function<void()> work, cudaStream_t stream);
// The same, done when Machine::release() is called with what it gets.
cudaError_t enqueue_held(std::function<void(OpPtr)> work, cudaStream_t stream);

}  // namespace deepinfer::emulation
