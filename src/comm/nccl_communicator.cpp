#include "comm/nccl_communicator.h"

#include <chrono>
#include <thread>
#include <utility>

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr std::chrono::seconds kStuck{2};  // calls of NCCL return at once, but for those that wait for a peer

std::string code_text(const NcclApi& api, nccl::Code code, nccl::Comm* comm) {
  const char* const what = api.error_string(code);
  const char* const detail = api.last_error(comm);
  const std::string more = detail == nullptr ? "" : detail;
  return fmt::format("NCCL reports: {}{}{} (NCCL_DEBUG=INFO makes it say more)", what == nullptr ? "?" : what,
                     more.empty() ? "" : ": ", more);
}

}  // namespace

Result<std::shared_ptr<NcclGroup>> make_nccl_group(const NcclApi& api, int ranks) {
  auto group = std::make_shared<NcclGroup>();
  group->api = api;
  group->ranks = ranks;
  group->members.resize(static_cast<size_t>(ranks));
  const nccl::Code code = api.get_unique_id(&group->id);
  if (code != nccl::Code::kSuccess)
    return make_error(ErrorCode::kUnavailable, "a group of {} GPUs: {}", ranks,
                      code_text(api, code, nullptr));
  return group;
}

Result<std::unique_ptr<NcclCommunicator>> NcclCommunicator::join(std::shared_ptr<NcclGroup> group, int rank,
                                                                 NcclApi::Stream stream) {
  DI_CHECK(rank >= 0 && rank < group->ranks, "rank {} of {}", rank, group->ranks);
  std::unique_ptr<NcclCommunicator> c(new NcclCommunicator(std::move(group), rank, stream));
  NcclGroup& g = *c->group_;
  nccl::Comm* comm = nullptr;
  const nccl::Code code = g.api.comm_init_rank(&comm, g.ranks, g.id, rank);
  if (code != nccl::Code::kSuccess)
    return make_error(ErrorCode::kUnavailable, "rank {} of {} cannot join the others: {}", rank, g.ranks,
                      code_text(g.api, code, nullptr));
  const std::lock_guard lock(g.mutex);
  c->comm_ = comm;
  g.members[static_cast<size_t>(rank)] = c.get();
  return c;
}

NcclCommunicator::~NcclCommunicator() {
  nccl::Comm* comm = nullptr;
  {
    const std::lock_guard lock(group_->mutex);
    group_->members[static_cast<size_t>(rank_)] = nullptr;
    comm = std::exchange(comm_, nullptr);
  }
  if (comm == nullptr) return;
  (void)(group_->ended ? group_->api.comm_abort(comm) : group_->api.comm_destroy(comm));
}

void NcclCommunicator::ended(const char* call) const {
  const std::lock_guard lock(group_->mutex);
  throw CommError(rank_, size(), call, group_->reason.empty() ? "this rank has left" : group_->reason);
}

std::string NcclCommunicator::text_of(nccl::Code code) const {
  const std::lock_guard lock(group_->mutex);
  return code_text(group_->api, code, comm_);
}

template <class Work>
void NcclCommunicator::call(const char* name, const Work& work) {
  nccl::Comm* comm = nullptr;
  {
    const std::lock_guard lock(group_->mutex);
    comm = group_->ended ? nullptr : comm_;
    inside_ = comm != nullptr;
  }
  if (comm == nullptr) ended(name);
  const nccl::Code code = work(comm);
  {
    const std::lock_guard lock(group_->mutex);
    inside_ = false;
  }
  if (group_->ended) ended(name);
  if (code == nccl::Code::kSuccess) return;
  const std::string reason = text_of(code);
  abort(fmt::format("rank {}: {}: {}", rank_, name, reason));
  throw CommError(rank_, size(), name, reason);
}

void NcclCommunicator::all_reduce(std::span<float> v) {
  if (v.empty()) return;
  call("all_reduce", [&](nccl::Comm* comm) {
    return group_->api.all_reduce(v.data(), v.data(), v.size(), nccl::Type::kF32, nccl::Operation::kSum, comm,
                                  stream_);
  });
}

void NcclCommunicator::all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
  DI_CHECK(all.size() == mine.size() * static_cast<size_t>(size()),
           "all_gather: {} bytes of each of {} into {}", mine.size(), size(), all.size());
  if (mine.empty()) return;
  call("all_gather", [&](nccl::Comm* comm) {
    return group_->api.all_gather(mine.data(), all.data(), mine.size(), nccl::Type::kInt8, comm, stream_);
  });
}

void NcclCommunicator::broadcast(std::span<std::byte> data, int root) {
  if (data.empty()) return;
  call("broadcast", [&](nccl::Comm* comm) {
    return group_->api.broadcast(data.data(), data.data(), data.size(), nccl::Type::kInt8, root, comm,
                                 stream_);
  });
}

void NcclCommunicator::send(std::span<const std::byte> data, int to) {
  if (data.empty()) return;
  call("send", [&](nccl::Comm* comm) {
    return group_->api.send(data.data(), data.size(), nccl::Type::kInt8, to, comm, stream_);
  });
}

void NcclCommunicator::receive(std::span<std::byte> data, int from) {
  if (data.empty()) return;
  call("receive", [&](nccl::Comm* comm) {
    return group_->api.receive(data.data(), data.size(), nccl::Type::kInt8, from, comm, stream_);
  });
}

void NcclCommunicator::all_to_all(std::span<const std::byte> mine, std::span<std::byte> all) {
  const size_t part = mine.size() / static_cast<size_t>(size());
  DI_CHECK(mine.size() == all.size() && mine.size() == part * static_cast<size_t>(size()),
           "all_to_all: {} bytes into {} among {} ranks", mine.size(), all.size(), size());
  if (part == 0) return;
  call("all_to_all", [&](nccl::Comm* comm) {
    const NcclApi& api = group_->api;
    nccl::Code code = api.group_start();
    if (code != nccl::Code::kSuccess) return code;
    for (int r = 0; r < size(); ++r) {
      const size_t at = static_cast<size_t>(r) * part;
      const nccl::Code sent = api.send(mine.data() + at, part, nccl::Type::kInt8, r, comm, stream_);
      const nccl::Code got = api.receive(all.data() + at, part, nccl::Type::kInt8, r, comm, stream_);
      if (code == nccl::Code::kSuccess) code = sent != nccl::Code::kSuccess ? sent : got;
    }
    const nccl::Code end = api.group_end();
    return code == nccl::Code::kSuccess ? end : code;
  });
}

void NcclCommunicator::abort(std::string reason) {
  {
    const std::lock_guard lock(group_->mutex);
    if (group_->reason.empty()) group_->reason = std::move(reason);
    group_->ended = true;
  }
  // Who is not inside of NCCL sees that by itself. Who stays inside waits for a peer there: only that may be
  // aborted from here, for an abort frees what a call that is on its way still reads.
  const auto limit = std::chrono::steady_clock::now() + kStuck;
  for (;;) {
    std::vector<nccl::Comm*> stuck;
    {
      const std::lock_guard lock(group_->mutex);
      const bool late = std::chrono::steady_clock::now() > limit;
      bool inside = false;
      for (NcclCommunicator* m : group_->members) {
        if (m == nullptr || !m->inside_ || m->comm_ == nullptr) continue;
        inside = true;
        if (late) stuck.push_back(std::exchange(m->comm_, nullptr));
      }
      if (!inside) return;
    }
    for (nccl::Comm* comm : stuck) (void)group_->api.comm_abort(comm);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void NcclCommunicator::check() {
  if (group_->ended) ended("waiting for the device");
  nccl::Code code = nccl::Code::kSuccess;
  {
    const std::lock_guard lock(group_->mutex);
    if (comm_ == nullptr || group_->api.comm_async_error(comm_, &code) != nccl::Code::kSuccess) return;
  }
  if (code == nccl::Code::kSuccess || code == nccl::Code::kInProgress) return;
  const std::string reason = text_of(code);
  abort(fmt::format("rank {}: {}", rank_, reason));
  throw CommError(rank_, size(), "waiting for the device", reason);
}

void NcclCommunicator::leave() {
  nccl::Comm* comm = nullptr;
  {
    const std::lock_guard lock(group_->mutex);
    if (group_->reason.empty()) group_->reason = fmt::format("rank {} has left", rank_);
    group_->ended = true;
    comm = std::exchange(comm_, nullptr);
  }
  if (comm != nullptr) (void)group_->api.comm_abort(comm);
}

}  // namespace deepinfer
