#include "engine/cuda_ranks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <thread>

#include "backend/cuda_error.h"
#include "base/check.h"
#include "comm/local.h"

namespace deepinfer {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::minutes kLoading{60};  // ranks read their weights at their own pace

std::string text_of(const std::exception_ptr& fault) {
  try {
    std::rethrow_exception(fault);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception that is no std::exception";
  }
}

// Whether it only tells that another rank is gone.
bool is_echo(const std::exception_ptr& fault) {
  try {
    std::rethrow_exception(fault);
  } catch (const CommError&) {
    return true;
  } catch (...) {
    return false;
  }
}

// The rank's own fault before one that echoes another's.
void take_cause(std::exception_ptr& cause, const std::exception_ptr& fault) {
  if (fault != nullptr && (cause == nullptr || (is_echo(cause) && !is_echo(fault)))) cause = fault;
}

Error not_met(const cuda::Gpu& gpu, const std::string& what) {
  return make_error(ErrorCode::kUnavailable,
                    "GPU {} ({}): {}: the GPUs do not reach each other. NCCL_DEBUG=INFO shows how they try; "
                    "NCCL_P2P_DISABLE=1 makes them go through the host's memory",
                    gpu.facts().index, gpu.facts().name, what);
}

// Everything that steps ask of NCCL, once at several sizes: connections stand before a step needs them, and
// links that lose or spoil data are found here.
class Trial {
 public:
  Trial(cuda::Gpu& gpu, NcclCommunicator& comm, std::chrono::milliseconds timeout)
      : gpu_(gpu), comm_(comm), timeout_(timeout) {}

  Result<void> run() {
    DI_ASSIGN(device_, gpu_.allocate(kMost * sizeof(float)));
    DI_ASSIGN(host_, gpu_.allocate_pinned(kMost * sizeof(float)));
    for (const size_t n : {size_t{256}, size_t{65536}, kMost}) DI_TRY(sum(n));
    return logits_and_tokens();
  }

 private:
  static constexpr size_t kMost = size_t{2} << 20;  // floats

  // Sums of small whole numbers are exact in any order.
  static float value(size_t i, int rank) {
    return static_cast<float>((i * 7 + static_cast<size_t>(rank) * 13) % 1000);
  }
  std::span<float> on_device(size_t n) { return {reinterpret_cast<float*>(device_.data()), n}; }
  std::span<float> on_host(size_t n) { return {reinterpret_cast<float*>(host_.data()), n}; }

  void put(size_t n) {
    for (size_t i = 0; i < n; ++i) on_host(n)[i] = value(i, comm_.rank());
    gpu_.copy_in(device_.data(), host_.data(), n * sizeof(float));
  }
  Result<void> get(size_t n) {
    gpu_.copy_out(host_.data(), device_.data(), n * sizeof(float));
    const cuda::Event end = gpu_.record();
    const auto start = steady_clock::now();
    while (!gpu_.done(end)) {
      comm_.check();
      if (steady_clock::now() - start > timeout_)
        return not_met(gpu_,
                       fmt::format("no answer for {} s", std::chrono::duration<double>(timeout_).count()));
      std::this_thread::yield();
    }
    return {};
  }

  Result<void> sum(size_t n) {
    put(n);
    comm_.all_reduce(on_device(n));
    DI_TRY(get(n));
    for (size_t i = 0; i < n; ++i) {
      float want = 0;
      for (int r = 0; r < comm_.size(); ++r) want += value(i, r);
      if (on_host(n)[i] != want)
        return not_met(gpu_, fmt::format("a sum of {} ranks is wrong at {} of {}: got {}, expected {}",
                                         comm_.size(), i, n, on_host(n)[i], want));
    }
    return {};
  }

  Result<void> logits_and_tokens() {
    constexpr size_t kSome = 1024;
    put(kSome);
    if (comm_.rank() != 0) comm_.send(std::as_bytes(on_device(kSome)), 0);
    for (int r = 1; comm_.rank() == 0 && r < comm_.size(); ++r) {
      comm_.receive(std::as_writable_bytes(on_device(kSome)), r);
      DI_TRY(get(kSome));
      if (on_host(kSome)[5] != value(5, r))
        return not_met(gpu_, fmt::format("what rank {} sent is wrong", r));
    }
    put(kSome);
    comm_.broadcast(std::as_writable_bytes(on_device(kSome)), 0);
    DI_TRY(get(kSome));
    if (on_host(kSome)[9] != value(9, 0)) return not_met(gpu_, "what rank 0 sent to all is wrong");
    return {};
  }

  cuda::Gpu& gpu_;
  NcclCommunicator& comm_;
  const std::chrono::milliseconds timeout_;
  Buffer device_, host_;
};

// The least of all ranks' plans, or why one has none: each card has its own memory.
Result<CachePlan> agreed(Communicator& host, const Result<CachePlan>& own) {
  if (!own) return own;  // who fails tells the others
  std::array<int64_t, 2> mine = {own->num_blocks, own->max_model_len};
  std::vector<int64_t> all(2 * static_cast<size_t>(host.size()));
  host.all_gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
  CachePlan least = *own;
  for (size_t i = 0; i < all.size(); i += 2) {
    least.num_blocks = std::min(least.num_blocks, all[i]);
    least.max_model_len = static_cast<int>(std::min<int64_t>(least.max_model_len, all[i + 1]));
  }
  return least;
}

Result<std::unique_ptr<CudaRunner>> make_rank(CudaRankStart start, std::shared_ptr<NcclGroup> group, int rank,
                                              Communicator& host, std::chrono::milliseconds timeout) {
  start.gpu->make_current();
  CudaPeers peers{.host = &host, .timeout = timeout};
  DI_ASSIGN(peers.comm, NcclCommunicator::join(std::move(group), rank, start.gpu->stream()));
  // Nothing waits on the device, or copies, when memory is freed.
  const auto fail = [&](const std::string& why) {
    host.abort(why);
    peers.comm->abort(why);
    peers.comm->leave();
    try {
      start.gpu->synchronize();
    } catch (const std::exception&) {
      // Why it failed is at hand.
    }
  };
  // Its memory is freed when nothing waits on the device.
  std::optional<Trial> trial(std::in_place, *start.gpu, *peers.comm, timeout);
  try {
    const Result<void> tried = trial->run();
    auto model = tried ? start.load(*start.gpu, *peers.comm) : Result<std::unique_ptr<Model>>(tried.error());
    if (!model) {
      fail(model.error().message);
      return model.error();
    }
    trial.reset();
    start.options.plan_cache = [&host, own = start.options.plan_cache](const MeasuredMemory& measured) {
      return agreed(host, own(measured));
    };
    return CudaRunner::create(std::move(start.gpu), std::move(*model), std::move(start.options),
                              std::move(peers));
  } catch (const std::exception& e) {
    if (peers.comm != nullptr) fail(e.what());
    throw;
  }
}

}  // namespace

Result<std::unique_ptr<CudaRanks>> CudaRanks::create(std::vector<CudaRankStart> starts, const NcclApi& api,
                                                     std::chrono::milliseconds timeout) {
  const int ranks = static_cast<int>(starts.size());
  DI_CHECK(ranks > 0, "no ranks");
  DI_ASSIGN(const std::shared_ptr<NcclGroup> group, make_nccl_group(api, ranks));
  std::unique_ptr<CudaRanks> c(new CudaRanks);
  c->timeout_ = timeout;
  c->hosts_ = local_communicators(ranks, std::max<std::chrono::milliseconds>(timeout, kLoading));
  c->team_ = std::make_unique<ThreadPool>(ranks);
  std::vector<std::optional<Result<std::unique_ptr<CudaRunner>>>> made(starts.size());
  std::vector<std::exception_ptr> faults(starts.size());
  c->team_->run([&](int r) {
    const auto at = static_cast<size_t>(r);
    Communicator& host = *c->hosts_[at];
    try {
      made[at].emplace(make_rank(std::move(starts[at]), group, r, host, timeout));
      if (!*made[at]) host.abort(made[at]->error().message);
    } catch (...) {
      faults[at] = std::current_exception();
      host.abort(text_of(faults[at]));
    }
  });
  std::exception_ptr cause;
  for (const std::exception_ptr& fault : faults) take_cause(cause, fault);
  for (const auto& m : made)
    if (m && !*m && (cause == nullptr || is_echo(cause))) return m->error();
  if (cause != nullptr) std::rethrow_exception(cause);
  for (auto& m : made) c->ranks_.push_back(std::move(**m));
  return c;
}

// No rank's thread is at work when this returns. A fault ends the group.
void CudaRanks::together(const std::function<void(int rank)>& work) {
  if (!lost_.empty()) throw DeviceLost(lost_);
  std::vector<std::exception_ptr> faults(ranks_.size());
  team_->run([&](int r) {
    try {
      work(r);
    } catch (...) {
      faults[static_cast<size_t>(r)] = std::current_exception();
    }
  });
  std::exception_ptr cause;
  for (const std::exception_ptr& fault : faults) take_cause(cause, fault);
  if (cause != nullptr) lose(cause);
}

void CudaRanks::lose(const std::exception_ptr& fault) {
  lost_ = fmt::format(
      "a rank of {} GPUs failed, and the others cannot go on without it: {}. Nothing can run on them in this "
      "process any more: start again",
      ranks_.size(), text_of(fault));
  for (const auto& rank : ranks_) rank->leave(lost_);
  throw DeviceLost(lost_);
}

void CudaRanks::launch_forward(const Step& step) {
  together([&](int r) { ranks_[static_cast<size_t>(r)]->launch_forward(step); });
}

void CudaRanks::launch_sample(const Step& step) {
  if (!lost_.empty()) throw DeviceLost(lost_);
  // What may fail for this step alone comes before any rank needs another one.
  try {
    ranks_.front()->prepare_sample(step);
  } catch (const std::bad_alloc&) {
    together([&](int r) { ranks_[static_cast<size_t>(r)]->forget_step(); });
    throw;
  } catch (...) {
    lose(std::current_exception());
  }
  together([&](int r) { ranks_[static_cast<size_t>(r)]->launch_sample(step); });
}

// All ranks are looked at: one that is gone leaves the others waiting.
StepOutput CudaRanks::wait(uint64_t step_id) {
  if (!lost_.empty()) throw DeviceLost(lost_);
  try {
    const auto start = steady_clock::now();
    for (bool all = false; !all;) {
      all = true;
      for (const auto& rank : ranks_) all &= rank->done(step_id);
      if (all) break;
      if (steady_clock::now() - start > timeout_)
        throw CommError(0, size(), "waiting for the device",
                        fmt::format("step {} takes longer than {} s (server.stall_timeout)", step_id,
                                    std::chrono::duration<double>(timeout_).count()));
      std::this_thread::yield();
    }
    for (size_t r = ranks_.size(); r-- > 1;) (void)ranks_[r]->wait(step_id);
    return ranks_.front()->wait(step_id);
  } catch (...) {
    lose(std::current_exception());
  }
}

HeldMemory CudaRanks::held_memory() const {
  HeldMemory sum;
  for (const auto& rank : ranks_) {
    const HeldMemory own = rank->held_memory();
    sum.cache += own.cache;
    sum.graphs += own.graphs;
    sum.workspaces += own.workspaces;
    sum.pinned += own.pinned;
  }
  return sum;
}

}  // namespace deepinfer
