// A stand-in for libnccl.so.2 on emulated devices, loaded as the real one is; it lives on the emulation of
// the program that loads it. An operation waits at the front of its stream until all that take part in it
// have come to theirs, recorded in graphs or not; what never comes holds the others for ever, as there.
//
// Sums are added in an order that depends on an element's place in the call, as in a ring.
#include "comm/nccl.h"

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulation/runtime.h"

namespace deepinfer::emulation {
namespace {

using nccl::Code;
using nccl::Type;

constexpr auto kUnhandled = static_cast<Code>(1), kInvalid = static_cast<Code>(4),
               kRemote = static_cast<Code>(6);
constexpr int kVersion = 22703;

enum class Kind { kAllReduce, kAllGather, kBroadcast, kSend, kReceive };

struct Call {
  Kind kind = Kind::kAllReduce;
  const void* from = nullptr;
  void* to = nullptr;
  size_t bytes = 0;  // of one rank's part
  Type type = Type::kInt8;
  nccl::Operation operation = nccl::Operation::kSum;
  int peer = -1;  // root of a broadcast
  bool done = false;

  bool alone() const { return kind == Kind::kSend || kind == Kind::kReceive; }
  bool agrees(const Call& o) const {
    return kind == o.kind && bytes == o.bytes && type == o.type && operation == o.operation && peer == o.peer;
  }
};

size_t size_of(Type type) {
  return type == Type::kInt8 ? 1 : type == Type::kInt32 || type == Type::kF32 ? 4 : 2;
}

struct Group;

// A rank; what is in flight holds it.
struct Member {
  std::shared_ptr<Group> group;
  int rank = 0, device = 0;
  cudaStream_t stream = nullptr;  // of its first call: the others are in it too
  bool aborted = false, destroyed = false, late_error = false, silent = false;
  std::vector<Call> calls;  // at the front of its stream now
  OpPtr op;                 // that holds them
};

struct Group {
  int ranks = 0;
  std::vector<std::shared_ptr<Member>> members;
  int joined = 0;
  bool failed = false;
};

std::string name_of(Kind kind) {
  constexpr const char* kNames[] = {"ncclAllReduce", "ncclAllGather", "ncclBroadcast", "ncclSend",
                                    "ncclRecv"};
  return kNames[static_cast<int>(kind)];
}

void release(Member& m) {
  m.calls.clear();
  machine().release(std::exchange(m.op, nullptr));
}

template <class T>
void sum_all(const Group& g) {
  const size_t n = g.members[0]->calls[0].bytes / sizeof(T), ranks = g.members.size();
  for (size_t i = 0; i < n; ++i) {
    const size_t first = i * ranks / n;
    T sum{};
    for (size_t k = 0; k < ranks; ++k) {
      T value;
      std::memcpy(&value, static_cast<const T*>(g.members[(first + k) % ranks]->calls[0].from) + i,
                  sizeof(T));
      sum = k == 0 ? value : sum + value;
    }
    for (const auto& m : g.members) std::memcpy(static_cast<T*>(m->calls[0].to) + i, &sum, sizeof(T));
  }
}

void run_together(const Group& g) {
  const Call& call = g.members[0]->calls[0];
  switch (call.kind) {
    case Kind::kAllReduce:
      if (call.type != Type::kF32 || call.operation != nccl::Operation::kSum)
        throw_failure("NCCL's stand-in adds 32-bit floats only");
      return sum_all<float>(g);
    case Kind::kAllGather:
      for (const auto& to : g.members)
        for (size_t r = 0; r < g.members.size(); ++r)
          std::memmove(static_cast<std::byte*>(to->calls[0].to) + r * call.bytes, g.members[r]->calls[0].from,
                       call.bytes);
      return;
    case Kind::kBroadcast:
      for (const auto& to : g.members)
        std::memmove(to->calls[0].to, g.members[static_cast<size_t>(call.peer)]->calls[0].from, call.bytes);
      return;
    default:
      return;
  }
}

// What can run now that one more rank has come.
void match(Group& g) {
  machine().enter(-1);
  bool all = true, together = true;
  for (const auto& m : g.members) {
    all &= m->op != nullptr;
    together &= m->op != nullptr && m->calls.size() == 1 && !m->calls[0].alone();
  }
  if (together) {
    std::string wrong;
    const Call first = g.members[0]->calls[0];
    for (const auto& m : g.members)
      if (const Call& c = m->calls[0]; !c.agrees(first))
        wrong = "NCCL: rank " + std::to_string(m->rank) + " calls " + name_of(c.kind) + " of " +
                std::to_string(c.bytes) + " bytes, rank 0 " + name_of(first.kind) + " of " +
                std::to_string(first.bytes);
    if (!wrong.empty()) {
      for (const auto& m : g.members) release(*m);
      throw_failure(wrong);
    }
    run_together(g);
    ++machine().counts.exchanges;
    for (const auto& m : g.members) release(*m);
    return;
  }
  bool moved = false;
  for (const auto& from : g.members)
    for (Call& send : from->calls) {
      if (send.kind != Kind::kSend || send.done) continue;
      Member& to = *g.members[static_cast<size_t>(send.peer)];
      for (Call& receive : to.calls) {
        if (receive.kind != Kind::kReceive || receive.done || receive.peer != from->rank) continue;
        if (receive.bytes != send.bytes) throw_failure("NCCL: a send and its receive differ in size");
        std::memcpy(receive.to, send.from, send.bytes);
        send.done = receive.done = moved = true;
        ++machine().counts.exchanges;
        break;
      }
    }
  for (const auto& m : g.members) {
    bool done = m->op != nullptr;
    for (const Call& c : m->calls) done &= c.done;
    if (done) release(*m);
  }
  if (all && !moved) throw_failure("NCCL: every rank waits for another one");
}

void arrive(const std::shared_ptr<Member>& m, std::vector<Call> calls, const OpPtr& op) {
  if (m->destroyed) throw_failure("NCCL: a communicator was destroyed with work in flight");
  m->op = op;
  m->calls = std::move(calls);
  if (m->aborted) return release(*m);
  match(*m->group);
}

void check_memory(const Member& m, const void* p, size_t bytes) {
  const Allocation* a = machine().find(p);
  if (bytes == 0) return;
  if (a == nullptr || a->device != m.device || !machine().on_device(p, bytes))
    throw_failure("NCCL: rank " + std::to_string(m.rank) + " was given memory that is not of its device");
}

Code submit(const std::shared_ptr<Member>& m, std::vector<Call> calls, cudaStream_t stream) {
  Stream* const s = machine().stream(stream);
  if (s == nullptr || s->device != m->device || current_device() != m->device)
    throw_failure("NCCL: a stream, or a current device, that is not rank " + std::to_string(m->rank) + "'s");
  if (m->stream == nullptr) m->stream = stream;
  if (m->stream != stream) throw_failure("NCCL: one communicator in two streams");
  for (const Call& c : calls) {
    check_memory(*m, c.from, c.bytes);
    check_memory(*m, c.to, c.kind == Kind::kAllGather ? c.bytes * m->group->members.size() : c.bytes);
  }
  NcclFault& fault = nccl_fault();
  const bool faulty = fault.kind != NcclFault::Kind::kNone && fault.rank == m->rank && fault.n-- == 0;
  if (faulty) {
    const auto kind = std::exchange(fault.kind, NcclFault::Kind::kNone);
    if (kind == NcclFault::Kind::kCall) return kUnhandled;
    m->late_error = kind == NcclFault::Kind::kLate;
    m->silent = true;
  }
  if (m->silent) return Code::kSuccess;  // and never comes
  const cudaError_t error =
      enqueue_held([m, calls = std::move(calls)](const OpPtr& op) { arrive(m, calls, op); }, stream);
  return error == cudaSuccess ? Code::kSuccess : kUnhandled;
}

// Calls between ncclGroupStart and ncclGroupEnd of a thread.
struct Open {
  int depth = 0;
  std::shared_ptr<Member> member;
  cudaStream_t stream = nullptr;
  std::vector<Call> calls;
};
Open& open_group() {
  thread_local Open open;
  return open;
}

std::shared_ptr<Member>& member_of(nccl::Comm* comm) {
  return *reinterpret_cast<std::shared_ptr<Member>*>(comm);
}

Code call(nccl::Comm* comm, cudaStream_t stream, Call c) {
  const std::lock_guard lock(machine_mutex());
  const std::shared_ptr<Member>& m = member_of(comm);
  if (m->aborted || (c.peer >= 0 && c.peer >= m->group->ranks)) return kInvalid;
  Open& open = open_group();
  if (open.depth == 0) return submit(m, {c}, stream);
  if (open.member != nullptr && open.member != m) throw_failure("NCCL: two communicators in one group");
  open.member = m;
  open.stream = stream;
  open.calls.push_back(c);
  return Code::kSuccess;
}

struct Meetings {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<int, std::shared_ptr<Group>> groups;
  int ids = 0;
};
Meetings& meetings() {
  static Meetings m;
  return m;
}

Code join(nccl::Comm** out, int ranks, const nccl::UniqueId& unique, int rank) {
  int id = 0;
  std::memcpy(&id, unique.internal, sizeof id);
  Meetings& all = meetings();
  std::unique_lock lock(all.mutex);
  std::shared_ptr<Group>& slot = all.groups[id];
  if (slot == nullptr) {
    slot = std::make_shared<Group>();
    slot->ranks = ranks;
    slot->members.resize(static_cast<size_t>(ranks));
  }
  const std::shared_ptr<Group> group = slot;
  {
    const std::lock_guard machine_lock(machine_mutex());
    if (nccl_init_to_fail() == rank) {
      nccl_init_to_fail() = -1;
      group->failed = true;
      all.changed.notify_all();
      return kUnhandled;
    }
  }
  if (group->failed) return kRemote;
  if (group->ranks != ranks || rank < 0 || rank >= ranks || group->members[static_cast<size_t>(rank)])
    return kInvalid;
  auto member = std::make_shared<Member>();
  member->group = group;
  member->rank = rank;
  member->device = current_device();
  group->members[static_cast<size_t>(rank)] = member;
  ++group->joined;
  all.changed.notify_all();
  const bool here = all.changed.wait_for(lock, std::chrono::seconds(30),
                                         [&] { return group->failed || group->joined == ranks; });
  if (!here || group->failed) {
    group->failed = true;  // for those who come later, too
    group->members.clear();
    return kRemote;
  }
  all.groups.erase(id);
  *out = reinterpret_cast<nccl::Comm*>(new std::shared_ptr<Member>(std::move(member)));
  return Code::kSuccess;
}

// The ranks of a group hold each other.
void leave(const std::shared_ptr<Member>& m) {
  if (m->op != nullptr) release(*m);
  bool last = true;
  for (const auto& other : m->group->members) last &= other == nullptr || other->aborted || other->destroyed;
  if (last) m->group->members.clear();
}

}  // namespace
}  // namespace deepinfer::emulation

namespace em = deepinfer::emulation;
using deepinfer::nccl::Code;
using deepinfer::nccl::Comm;
using deepinfer::nccl::Config;
using deepinfer::nccl::Operation;
using deepinfer::nccl::Type;
using deepinfer::nccl::UniqueId;

extern "C" {

Code ncclGetVersion(int* version) {
  *version = em::kVersion;
  return Code::kSuccess;
}

const char* ncclGetErrorString(Code code) {
  return code == em::kUnhandled ? "unhandled cuda error"
         : code == em::kRemote  ? "remote process exited"
                                : "other";
}

const char* ncclGetLastError(Comm*) {
  return "an error of the stand-in";
}

Code ncclGetUniqueId(UniqueId* id) {
  const std::lock_guard lock(em::meetings().mutex);
  *id = {};
  const int next = ++em::meetings().ids;
  std::memcpy(id->internal, &next, sizeof next);
  return Code::kSuccess;
}

Code ncclCommInitRank(Comm** comm, int ranks, UniqueId id, int rank) {
  return em::join(comm, ranks, id, rank);
}

Code ncclCommInitRankConfig(Comm** comm, int ranks, UniqueId id, int rank, Config*) {
  return em::join(comm, ranks, id, rank);
}

Code ncclCommDestroy(Comm* comm) {
  const std::lock_guard lock(em::machine_mutex());
  const auto member = std::move(em::member_of(comm));
  delete &em::member_of(comm);
  if (member->op != nullptr) em::throw_failure("NCCL: a communicator was destroyed with work in flight");
  member->destroyed = true;
  em::leave(member);
  return Code::kSuccess;
}

// What waits on the device ends without its result.
Code ncclCommAbort(Comm* comm) {
  const std::lock_guard lock(em::machine_mutex());
  const auto member = std::move(em::member_of(comm));
  delete &em::member_of(comm);
  member->aborted = true;
  em::leave(member);
  return Code::kSuccess;
}

Code ncclCommGetAsyncError(Comm* comm, Code* error) {
  const std::lock_guard lock(em::machine_mutex());
  *error = em::member_of(comm)->late_error ? em::kRemote : Code::kSuccess;
  return Code::kSuccess;
}

Code ncclAllReduce(const void* from, void* to, size_t count, Type type, Operation operation, Comm* comm,
                   cudaStream_t stream) {
  return em::call(comm, stream,
                  {.kind = em::Kind::kAllReduce,
                   .from = from,
                   .to = to,
                   .bytes = count * em::size_of(type),
                   .type = type,
                   .operation = operation});
}

Code ncclAllGather(const void* from, void* to, size_t count, Type type, Comm* comm, cudaStream_t stream) {
  return em::call(comm, stream,
                  {.kind = em::Kind::kAllGather,
                   .from = from,
                   .to = to,
                   .bytes = count * em::size_of(type),
                   .type = type});
}

Code ncclBroadcast(const void* from, void* to, size_t count, Type type, int root, Comm* comm,
                   cudaStream_t stream) {
  return em::call(comm, stream,
                  {.kind = em::Kind::kBroadcast,
                   .from = from,
                   .to = to,
                   .bytes = count * em::size_of(type),
                   .type = type,
                   .peer = root});
}

Code ncclSend(const void* from, size_t count, Type type, int peer, Comm* comm, cudaStream_t stream) {
  return em::call(comm, stream,
                  {.kind = em::Kind::kSend,
                   .from = from,
                   .to = const_cast<void*>(from),
                   .bytes = count * em::size_of(type),
                   .type = type,
                   .peer = peer});
}

Code ncclRecv(void* to, size_t count, Type type, int peer, Comm* comm, cudaStream_t stream) {
  return em::call(comm, stream,
                  {.kind = em::Kind::kReceive,
                   .from = to,
                   .to = to,
                   .bytes = count * em::size_of(type),
                   .type = type,
                   .peer = peer});
}

Code ncclGroupStart() {
  ++em::open_group().depth;
  return Code::kSuccess;
}

Code ncclGroupEnd() {
  const std::lock_guard lock(em::machine_mutex());
  em::Open& open = em::open_group();
  if (open.depth == 0) return em::kInvalid;
  if (--open.depth > 0 || open.member == nullptr) return Code::kSuccess;
  const em::Open calls = std::exchange(open, {});
  return em::submit(calls.member, calls.calls, calls.stream);
}

}  // extern "C"
