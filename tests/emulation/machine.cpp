#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <string>
#include <thread>

#include "emulation/runtime.h"

#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#endif

namespace deepinfer::emulation {

namespace {

std::unique_ptr<Machine>& machine_slot() {
  static std::unique_ptr<Machine> slot;
  return slot;
}

cudaError_t& last_error() {
  thread_local cudaError_t error = cudaSuccess;
  return error;
}

}  // namespace

std::recursive_mutex& machine_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

Machine& machine() {
  auto& slot = machine_slot();
  if (!slot) slot = std::make_unique<Machine>(MachineConfig{});
  return *slot;
}

int& current_device() {
  thread_local int device = 0;
  return device;
}

void reset_machine(const MachineConfig& config) {
  const std::lock_guard lock(machine_mutex());
  if (const auto& before = machine_slot()) before->enter(-1);
  reset_virtual_memory();
  machine_slot() = std::make_unique<Machine>(config);
  nccl_fault() = {};
  nccl_init_to_fail() = -1;
  last_error() = cudaSuccess;
  current_device() = 0;
}

NcclFault& nccl_fault() {
  static NcclFault fault;
  return fault;
}

int& nccl_init_to_fail() {
  static int rank = -1;
  return rank;
}

void fail_nccl(const NcclFault& fault) {
  const std::lock_guard lock(machine_mutex());
  nccl_fault() = fault;
}

void fail_nccl_init(int rank) {
  const std::lock_guard lock(machine_mutex());
  nccl_init_to_fail() = rank;
}

void fail_allocation(int n) {
  const std::lock_guard lock(machine_mutex());
  machine().allocations_to_fail = n;
}

void fail_kernel(int n, int error) {
  const std::lock_guard lock(machine_mutex());
  machine().kernels_to_fault = n;
  machine().fault = static_cast<cudaError_t>(error);
}

MachineCounts machine_counts() {
  const std::lock_guard lock(machine_mutex());
  MachineCounts counts = machine().counts;
  counts.live_allocations = static_cast<int64_t>(machine().allocations.size());
  counts.pending = machine().pending();
  counts.functions = machine().functions.size();
  return counts;
}

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) last_error() = error;
  return error;
}

cudaError_t runtime_call(const std::function<cudaError_t()>& body) {
  const std::lock_guard lock(machine_mutex());
  Machine& m = machine();
  if (m.config.driver_version < 13000) return note(cudaErrorInsufficientDriver);
  if (m.config.device_count == 0) return note(cudaErrorNoDevice);
  const int device = current_device();
  if (m.sticky(device) != cudaSuccess) return note(m.sticky(device));
  const cudaError_t error = body();
  if (error == cudaSuccess && m.sticky(device) != cudaSuccess) return note(m.sticky(device));
  return note(error);
}

Machine::Machine(const MachineConfig& c)
    : config(c),
      used_(static_cast<size_t>(std::max(c.device_count, 1))),
      sticky_(used_.size(), cudaSuccess),
      random_(draw_seed()) {
  for (size_t i = 0; i < used_.size(); ++i) {
    streams_.push_back(std::make_unique<Stream>());
    streams_.back()->device = static_cast<int>(i);
  }
}

Machine::~Machine() {
  // Operations that never ran hold each other: what follows, and what may be overtaken.
  for (std::vector<OpPtr> left = std::move(ready_); !left.empty();) {
    const OpPtr op = std::move(left.back());
    left.pop_back();
    op->primary.reset();
    for (OpPtr& next : op->next) left.push_back(std::move(next));
    op->next.clear();
  }
  for (const auto& [start, allocation] : allocations)
    if (allocation.kind != MemoryKind::kVirtual) std::free(reinterpret_cast<void*>(start));
}

Stream* Machine::stream(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread)
    return streams_[static_cast<size_t>(current_device())].get();
  auto* wanted = reinterpret_cast<Stream*>(handle);
  for (const auto& s : streams_)
    if (s.get() == wanted) return wanted;
  return nullptr;
}

Stream* Machine::add_stream(bool blocking) {
  streams_.push_back(std::make_unique<Stream>());
  streams_.back()->device = current_device();
  streams_.back()->blocking = blocking;
  return streams_.back().get();
}

size_t Machine::shared_limit(const void* function) const {
  const auto set = shared_limits.find({current_device(), function});
  return set == shared_limits.end() ? size_t{48} << 10 : set->second;
}

// As a build for all cards (80, 89, 90a, 120f) has it.
int Machine::code_architecture() const {
  const int card = 10 * config.major + config.minor;
  return card == 89 || card == 90 ? card : config.major == 12 ? 120 : 80;
}

void Machine::remove_stream(Stream* stream) {
  std::erase_if(streams_, [&](const auto& s) { return s.get() == stream; });
}

cudaError_t Machine::unsafe_in_capture() {
  cudaError_t error = cudaSuccess;
  for (const auto& weak : captures) {
    const auto capture = weak.lock();
    if (!capture || capture->mode == cudaStreamCaptureModeRelaxed) continue;
    if (capture->mode == cudaStreamCaptureModeThreadLocal && capture->thread != std::this_thread::get_id())
      continue;
    capture->invalid = true;
    error = cudaErrorStreamCaptureUnsupported;
  }
  return error;
}

bool Machine::legacy_blocked_by_capture() {
  bool blocked = false;
  for (const auto& s : streams_)
    if (s->capture && s->blocking) {
      s->capture->invalid = true;
      blocked = true;
    }
  return blocked;
}

void Machine::release_capture(const Capture& capture) {
  for (const auto& s : streams_)
    if (s->capture.get() == &capture) {
      s->tail.clear();
      s->capture.reset();
    }
  std::erase_if(captures, [&](const auto& weak) {
    const auto held = weak.lock();
    return !held || held.get() == &capture;
  });
}

void Machine::add(const OpPtr& op, const std::vector<OpPtr>& after) {
  ++pending_;
  for (const OpPtr& before : after)
    if (before && !before->done) {
      before->next.push_back(op);
      ++op->waits_for;
    }
  if (op->waits_for == 0) ready_.push_back(op);
}

OpPtr Machine::submit_op(Stream& stream, Work work, const std::vector<OpPtr>& also_after) {
  auto op = std::make_shared<Op>();
  work.device = stream.device;
  op->work = std::make_shared<const Work>(std::move(work));
  std::vector<OpPtr> after = also_after;
  after.push_back(stream.last);
  Stream* legacy = streams_[static_cast<size_t>(stream.device)].get();
  if (&stream == legacy) {
    for (const auto& s : streams_)
      if (s->blocking && s->device == stream.device && s.get() != legacy) after.push_back(s->last);
  } else if (stream.blocking) {
    after.push_back(legacy->last);
  }
  if (op->work->kernel.pdl && also_after.empty() && stream.last && stream.last->work &&
      stream.last->work->kernel.body)
    op->primary = stream.last;
  add(op, after);
  stream.last = op;
  return op;
}

void Machine::submit(Stream& stream, Work work) {
  if (!stream.capture) {
    submit_op(stream, std::move(work), {});
    return;
  }
  Graph& graph = stream.capture->graph;
  work.device = stream.device;
  Node node{.work = std::make_shared<const Work>(std::move(work)), .after = stream.tail};
  node.programmatic =
      node.work->kernel.pdl && node.after.size() == 1 && graph.nodes[node.after[0]].work->kernel.body;
  stream.tail = {graph.nodes.size()};
  graph.nodes.push_back(std::move(node));
}

void Machine::launch_graph(Stream& stream, const Graph& graph) {
  const OpPtr begin = submit_op(stream, {.other = [this] { ++counts.graph_launches; }}, {});
  std::vector<OpPtr> ops{begin};
  for (const Node& node : graph.nodes) {
    auto op = std::make_shared<Op>();
    op->work = node.work;
    std::vector<OpPtr> after{begin};
    for (const size_t i : node.after) after.push_back(ops[i + 1]);
    if (node.programmatic) op->primary = ops[node.after[0] + 1];
    add(op, after);
    ops.push_back(op);
  }
  submit_op(stream, {}, ops);
}

void Machine::finish(Op& op) {
  op.done = true;
  --pending_;
  op.grid.reset();
  op.primary.reset();
  for (const OpPtr& next : op.next)
    if (--next->waits_for == 0) ready_.push_back(next);
  op.next.clear();
}

// Kernels that may overtake the one in front of them, and those that may overtake these once all blocks of
// theirs have started: a kernel may meet another one far in front of it.
void Machine::start_dependents(const Op& op) {
  for (const OpPtr& next : op.next)
    if (next->primary.get() == &op && next->waits_for == 1 && !next->grid && !random_.one_in(4)) {
      next->grid = std::make_unique<Grid>(next->work->kernel);
      ++counts.early_starts;
      next->grid->start_before_dependency();
      if (next->grid->all_started()) start_dependents(*next);
    }
}

void Machine::run_kernel(const OpPtr& op) {
  const KernelLaunch& kernel = op->work->kernel;
  if (kernels_to_fault >= 0 && kernels_to_fault-- == 0) {
    sticky(op->work->device) = fault;
    return;
  }
  enter(op->work->device);
  start_dependents(*op);
  if (!op->grid) op->grid = std::make_unique<Grid>(kernel);
  op->grid->run();
  ++counts.kernels;
  const dim3 g = kernel.grid;
  microseconds += 1 + 0.01 * g.x * g.y * g.z;
}

void Machine::execute(const OpPtr& op) {
  if (op->work->held && sticky(op->work->device) == cudaSuccess) {
    ++held_;
    op->work->held(op);
    return;
  }
  struct Finish {
    Machine& machine;
    Op& op;
    ~Finish() { machine.finish(op); }
  } finish_at_end{*this, *op};
  if (sticky(op->work->device) != cudaSuccess) return;
  microseconds += 0.5;
  if (op->work->kernel.body) {
    run_kernel(op);
  } else if (op->work->other) {
    enter(-1);
    op->work->other();
  }
}

void Machine::release(const OpPtr& op) {
  --held_;
  finish(*op);
}

bool Machine::run_one() {
  if (ready_.empty()) return false;
  const size_t i = random_.below(static_cast<uint32_t>(ready_.size()));
  const OpPtr op = ready_[i];
  ready_.erase(ready_.begin() + static_cast<ptrdiff_t>(i));
  execute(op);
  return true;
}

void Machine::wait(const OpPtr& op) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::seconds kPatience{30};
  std::optional<Clock::time_point> since;
  while (op && !op->done) {
    if (run_one()) {
      since.reset();
      continue;
    }
    const auto now = Clock::now();
    if (!since) since = now;
    if (held_ == 0 || now - *since > kPatience) throw_failure("the host waits for work that can never run");
    // Under runtime_call(), which holds it once.
    machine_mutex().unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    machine_mutex().lock();
  }
}

void Machine::run_some() {
  if (random_.one_in(2)) run_one();
}

void Machine::wait_all() {
  while (run_one()) {
  }
}

bool Machine::next_allocation_fails() {
  ++counts.allocations;
  return allocations_to_fail >= 0 && allocations_to_fail-- == 0;
}

size_t Machine::free_bytes(int device) const {
  const size_t taken = used_[static_cast<size_t>(device)] + config.used_by_others;
  const size_t total = total_bytes(device);
  return taken < total ? total - taken : 0;
}

size_t Machine::total_bytes(int device) const {
  const auto at = static_cast<size_t>(device);
  return at < config.memory_of.size() ? config.memory_of[at] : config.total_memory;
}

void Machine::enter(int device) {
#if __has_feature(address_sanitizer)
  if (config.device_count < 2 || device == entered_) return;
  for (const auto& [start, a] : allocations) {
    auto* const p = reinterpret_cast<void*>(start);
    if (a.kind == MemoryKind::kPinned) continue;
    if (device >= 0 && a.device != device)
      __asan_poison_memory_region(p, a.bytes);
    else
      __asan_unpoison_memory_region(p, a.bytes);
  }
#endif
  entered_ = device;
}

bool Machine::take_bytes(int device, size_t bytes) {
  if (bytes > free_bytes(device)) return false;
  used_[static_cast<size_t>(device)] += bytes;
  counts.device_bytes += bytes;
  return true;
}

void Machine::give_bytes(int device, size_t bytes) {
  used_[static_cast<size_t>(device)] -= bytes;
  counts.device_bytes -= bytes;
}

void Machine::add_allocation(void* p, size_t bytes, MemoryKind kind, int device) {
  enter(-1);
  allocations[reinterpret_cast<uintptr_t>(p)] = {bytes, kind, device, ++ids_};
}

void Machine::remove_allocation(void* p) {
  enter(-1);
  allocations.erase(reinterpret_cast<uintptr_t>(p));
}

cudaError_t Machine::allocate(void** out, size_t bytes, MemoryKind kind) {
  *out = nullptr;
  const bool fails = next_allocation_fails();
  if (bytes == 0) return cudaSuccess;
  const int device = current_device();
  if (fails || (kind == MemoryKind::kDevice && !take_bytes(device, bytes))) return cudaErrorMemoryAllocation;
  // 256-byte alignment as cudaMalloc gives, and no more: ASan watches the byte after the last.
  if (posix_memalign(out, 256, bytes)) return cudaErrorMemoryAllocation;
  fill_poison(*out, bytes);
  add_allocation(*out, bytes, kind, device);
  return cudaSuccess;
}

// Does not wait for work in flight, though cudaFree often does: who relies on that has not thought of it.
cudaError_t Machine::free(void* p, MemoryKind kind) {
  if (!p) return cudaSuccess;
  const auto found = allocations.find(reinterpret_cast<uintptr_t>(p));
  if (found == allocations.end() || found->second.kind != kind) return cudaErrorInvalidValue;
  if (kind == MemoryKind::kDevice) give_bytes(found->second.device, found->second.bytes);
  enter(-1);
  fill_poison(p, found->second.bytes);
  allocations.erase(found);
  std::free(p);
  return cudaSuccess;
}

const Allocation* Machine::find(const void* p, uintptr_t* start) const {
  const auto at = reinterpret_cast<uintptr_t>(p);
  auto found = allocations.upper_bound(at);
  if (found == allocations.begin()) return nullptr;
  --found;
  if (at - found->first >= found->second.bytes) return nullptr;
  if (start) *start = found->first;
  return &found->second;
}

bool Machine::on_device(const void* p, size_t bytes) const {
  auto at = reinterpret_cast<uintptr_t>(p);
  while (bytes) {
    uintptr_t start = 0;
    const Allocation* a = find(reinterpret_cast<const void*>(at), &start);
    if (!a || a->kind == MemoryKind::kPinned) return false;
    const size_t here = start + a->bytes - at;
    if (here >= bytes) return true;
    if (a->kind != MemoryKind::kVirtual) return false;
    at += here;
    bytes -= here;
  }
  return true;
}

}  // namespace deepinfer::emulation

namespace em = deepinfer::emulation;

extern "C" {

cudaError_t cudaGetLastError() {
  const std::lock_guard lock(em::machine_mutex());
  const cudaError_t error = std::exchange(em::last_error(), cudaSuccess);
  const cudaError_t sticky = em::machine().sticky(em::current_device());
  return sticky != cudaSuccess ? sticky : error;
}

cudaError_t cudaPeekAtLastError() {
  const std::lock_guard lock(em::machine_mutex());
  const cudaError_t sticky = em::machine().sticky(em::current_device());
  return sticky != cudaSuccess ? sticky : em::last_error();
}

}  // extern "C"
