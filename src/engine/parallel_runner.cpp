#include "engine/parallel_runner.h"

#include <algorithm>
#include <optional>
#include <string>

#include "base/check.h"
#include "base/log.h"
#include "comm/local.h"

namespace deepinfer {
namespace {

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

}  // namespace

Result<RankModels> make_rank_models(const Checkpoint& checkpoint, int ranks, int threads,
                                    std::chrono::milliseconds timeout) {
  DI_CHECK(ranks >= 1, "{} ranks", ranks);
  // Before threads are started: how the model is dealt does not depend on who asks.
  DI_TRY(plan_shard(checkpoint.config, checkpoint.weights, 0, ranks));
  RankModels out;
  out.comms = local_communicators(ranks, timeout);
  for (int r = 0; r < ranks; ++r) {
    const int own = threads * (r + 1) / ranks - threads * r / ranks;
    out.pools.push_back(std::make_unique<ThreadPool>(std::max(own, 1)));
  }
  std::vector<std::optional<Result<std::unique_ptr<Model>>>> made(ranks);
  std::vector<int64_t> bytes(ranks);
  ThreadPool team(ranks);
  team.run([&](int r) {
    Context context{.pool = out.pools[r].get(), .comm = out.comms[r].get()};
    made[r].emplace(make_model(checkpoint.config, checkpoint.weights, context));
    if (context.weights != nullptr) bytes[r] = static_cast<int64_t>(context.weights->allocated());
  });
  for (int r = 0; r < ranks; ++r) {
    if (!*made[r]) return std::move(*made[r]).error();
    out.models.push_back(std::move(**made[r]));
    out.weight_bytes += bytes[r];
  }
  return out;
}

int64_t block_bytes(const RankModels& ranks, DType kv_dtype, int block_size) {
  int64_t bytes = 0;
  for (const auto& model : ranks.models)
    bytes += static_cast<int64_t>(KvCache::block_bytes(model->kv_groups(kv_dtype), block_size));
  return bytes;
}

Result<std::unique_ptr<ParallelRunner>> ParallelRunner::create(RankModels ranks,
                                                               const CpuRunnerOptions& options,
                                                               std::chrono::milliseconds timeout) {
  std::unique_ptr<ParallelRunner> p(new ParallelRunner);
  p->timeout_ = timeout;
  p->comms_ = std::move(ranks.comms);
  p->faults_.resize(p->comms_.size());
  for (size_t r = 0; r < p->comms_.size(); ++r) {
    CpuRunnerOptions own = options;
    own.comm = p->comms_[r].get();
    if (r != 0) {
      own.slots = &p->ranks_.front()->slots();
      own.profiler = nullptr;  // of one thread
    }
    DI_ASSIGN(std::unique_ptr<CpuRunner> runner,
              CpuRunner::create(std::move(ranks.pools[r]), std::move(ranks.models[r]), own));
    p->ranks_.push_back(std::move(runner));
  }
  p->team_ = std::make_unique<ThreadPool>(static_cast<int>(p->ranks_.size()));
  return p;
}

void ParallelRunner::forward_of(int rank, const Step& step) noexcept {
  try {
    ranks_[rank]->launch_forward(step);
  } catch (...) {
    faults_[rank] = std::current_exception();
    comms_[rank]->abort(fmt::format("rank {}: {}", rank, text_of(faults_[rank])));
  }
}

void ParallelRunner::launch_forward(const Step& step) {
  team_->run([this, &step](int rank) { forward_of(rank, step); });
  std::exception_ptr cause;
  for (std::exception_ptr& fault : faults_) {
    if (fault == nullptr) continue;
    if (cause == nullptr || (is_echo(cause) && !is_echo(fault))) cause = fault;
    fault = nullptr;
  }
  if (cause == nullptr) return;
  renew_group();
  std::rethrow_exception(cause);
}

// What was said in a group that failed is of no use to the next step. No rank is at work here.
void ParallelRunner::renew_group() {
  auto fresh = local_communicators(static_cast<int>(ranks_.size()), timeout_);
  for (size_t r = 0; r < ranks_.size(); ++r) ranks_[r]->join(fresh[r].get());
  comms_ = std::move(fresh);
}

HeldMemory ParallelRunner::held_memory() const {
  HeldMemory sum;
  for (const auto& rank : ranks_) {
    const HeldMemory own = rank->held_memory();
    sum.cache += own.cache;
    sum.workspaces += own.workspaces;
  }
  return sum;
}

int64_t ParallelRunner::release_unused() {
  int64_t bytes = 0;
  for (const auto& rank : ranks_) bytes += rank->release_unused();
  return bytes;
}

}  // namespace deepinfer
