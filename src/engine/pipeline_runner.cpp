#include "engine/pipeline_runner.h"

#include <future>

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

// Its thread has it while the thread runs; then the team.
struct PipelineTeam::Member {
  std::unique_ptr<CpuRunner> runner;
  std::unique_ptr<PipelineRank> rank;
  PipelineComms comms;
  std::exception_ptr fault;
  std::promise<void> end;
  std::future<void> ended;

  void run() {
    try {
      rank->follow();
    } catch (...) {
      fault = std::current_exception();
    }
    comms = {};
    end.set_value();
  }
};

PipelineTeam::PipelineTeam(const PipelinePlace& grid, std::vector<std::unique_ptr<CpuRunner>> runners,
                           std::chrono::milliseconds timeout)
    : grid_(grid), timeout_(timeout) {
  DI_CHECK(std::ssize(runners) + 1 == grid.ranks(), "{} runners besides rank 0, expected {}", runners.size(),
           grid.ranks() - 1);
  for (auto& runner : runners) {
    auto member = std::make_shared<Member>();
    member->runner = std::move(runner);
    PipelinePlace place = grid;
    place.rank = static_cast<int>(members_.size()) + 1;
    member->rank = std::make_unique<PipelineRank>(place, *member->runner);
    members_.push_back(std::move(member));
  }
}

PipelineTeam::~PipelineTeam() {
  stop();
}

PipelineComms PipelineTeam::start() {
  DI_CHECK(threads_.empty(), "a team that runs already");
  auto world = local_communicators(grid_.ranks(), timeout_ * 3 / 4);
  std::vector<PipelineComms> all(world.size());
  for (int stage = 0; stage < grid_.stages; ++stage) {
    auto own = local_communicators(grid_.shares, timeout_ * 3 / 4);
    for (int share = 0; share < grid_.shares; ++share) {
      const int rank = stage * grid_.shares + share;
      all[rank].world = std::move(world[rank]);
      if (grid_.shares > 1) all[rank].stage = std::move(own[share]);
    }
  }
  for (size_t i = 0; i < members_.size(); ++i) {
    const std::shared_ptr<Member>& member = members_[i];
    member->comms = std::move(all[i + 1]);
    member->fault = nullptr;
    member->end = {};
    member->ended = member->end.get_future();
    member->rank->join(member->comms);
    threads_.emplace_back([member] { member->run(); });
  }
  return std::move(all[0]);
}

bool PipelineTeam::stop() {
  const auto deadline = std::chrono::steady_clock::now() + timeout_ / 4;
  bool all = true;
  for (size_t i = 0; i < threads_.size(); ++i) {
    if (members_[i]->ended.wait_until(deadline) == std::future_status::ready) {
      threads_[i].join();
    } else {
      threads_[i].detach();
      all = false;
    }
  }
  threads_.clear();
  return all;
}

std::exception_ptr PipelineTeam::fault() const {
  for (const auto& member : members_)
    if (member->fault != nullptr && !is_echo(member->fault)) return member->fault;
  return nullptr;
}

HeldMemory PipelineTeam::held_memory() const {
  HeldMemory sum;
  for (const auto& member : members_) {
    const HeldMemory own = member->runner->held_memory();
    sum.cache += own.cache;
    sum.workspaces += own.workspaces;
  }
  return sum;
}

PipelineRunner::PipelineRunner(const PipelinePlace& place, PipelineComms comms,
                               std::unique_ptr<CpuRunner> runner, std::chrono::milliseconds timeout,
                               std::unique_ptr<PipelineTeam> team)
    : info_(runner->info()),
      runner_(std::move(runner)),
      comms_(std::move(comms)),
      rank_(place, *runner_),
      team_(std::move(team)),
      pause_(timeout / 4),
      ring_(static_cast<size_t>(place.stages)) {
  DI_CHECK(place.rank == 0 && place.stages > 1, "rank {} of {} stages leads", place.rank, place.stages);
  info_.max_in_flight = info_.stages = place.stages;
  if (team_) comms_ = team_->start();
  rank_.join(comms_);
  awake_ = std::thread([this] { keep_awake(); });
}

PipelineRunner::~PipelineRunner() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    wake_.notify_all();
    try {
      if (lost_.empty() && fault_ == nullptr) tell({.kind = PipelineHead::kEnd});
    } catch (const std::exception& e) {  // they are gone already
      comms_.abort(e.what());
    }
  }
  awake_.join();
}

void PipelineRunner::tell(const PipelineHead& head) {
  rank_.tell_stage(head, {});
  rank_.pass(head);
  spoke_ = true;
}

void PipelineRunner::check_alive() const {
  if (!lost_.empty()) throw DeviceLost(lost_);
}

// Inside a handler. What was said in a group that failed is of no use to the steps in flight.
void PipelineRunner::fail() {
  const std::exception_ptr own = std::current_exception();
  // It happened between two messages: the others know nothing of it.
  if (rank_.place().shares == 1 && !is_echo(own)) throw;
  comms_.abort(fmt::format("rank 0: {}", text_of(own)));
  if (team_ == nullptr) {
    lost_ = fmt::format("the group of ranks has ended: {}", text_of(own));
    throw DeviceLost(lost_);
  }
  if (!team_->stop()) {
    lost_ = fmt::format("a stage of the pipeline hangs: {}", text_of(own));
    throw DeviceLost(lost_);
  }
  fault_ = own;
  if (is_echo(own) && team_->fault() != nullptr) fault_ = team_->fault();
  std::rethrow_exception(fault_);
}

void PipelineRunner::launch_forward(const Step& step) {
  std::lock_guard lock(mutex_);
  check_alive();
  if (fault_ != nullptr) {
    if (count_ != 0) std::rethrow_exception(fault_);
    comms_ = team_->start();
    rank_.join(comms_);
    fault_ = nullptr;
  }
  DI_CHECK(count_ < ring_.size(), "step {} while {} are in flight", step.id, count_);
  try {
    forward(step);
  } catch (...) {
    fail();
  }
  ring_[(first_ + count_++) % ring_.size()].id = step.id;
}

void PipelineRunner::forward(const Step& step) {
  PipelineHead head{.kind = PipelineHead::kStep};
  for (const StepRow& row : step.rows) {
    DI_CHECK(row.tokens.empty() || row.tokens.front() != kTokenFromSlot,
             "step {}: a token that only its slot knows", step.id);
    head.amount += std::ssize(row.tokens);
  }
  const std::span<const int32_t> words = encoder_.encode(step, runner_->slots());
  head.words = static_cast<int32_t>(words.size());
  rank_.tell_stage(head, words);
  rank_.start(step, head, words);
  spoke_ = true;
}

// Only now: masks of grammars were not known before.
void PipelineRunner::launch_sample(const Step& step) {
  Step& own = ring_[(first_ + count_ - 1) % ring_.size()];
  DI_CHECK(count_ != 0 && own.id == step.id, "sample of step {}", step.id);
  own.rows = step.rows;
}

StepOutput PipelineRunner::wait(uint64_t step_id) {
  std::lock_guard lock(mutex_);
  const Step& step = ring_[first_];
  DI_CHECK(count_ != 0 && step.id == step_id, "wait for step {}, {} are in flight", step_id, count_);
  first_ = (first_ + 1) % ring_.size();
  --count_;
  check_alive();
  if (fault_ != nullptr) std::rethrow_exception(fault_);
  try {
    const CpuRunner::Rows count = CpuRunner::wanted_rows(step);
    rank_.tell_stage({.kind = PipelineHead::kHead,
                      .scored = static_cast<int32_t>(count.scored),
                      .sampled = static_cast<int32_t>(count.sampled)},
                     {});
    runner_->launch_head(&step, count, rank_.receive_rows(count));
    runner_->launch_sample(step);
    return runner_->wait(step_id);
  } catch (...) {
    fail();
  }
}

HeldMemory PipelineRunner::held_memory() const {
  HeldMemory sum = team_ != nullptr ? team_->held_memory() : HeldMemory{};
  const HeldMemory own = runner_->held_memory();
  sum.cache += own.cache;
  sum.workspaces += own.workspaces;
  return sum;
}

int64_t PipelineRunner::release_unused() {
  std::lock_guard lock(mutex_);
  check_alive();
  if (fault_ != nullptr) return runner_->release_unused();
  try {
    tell({.kind = PipelineHead::kRelease});
    const int64_t own = runner_->release_unused();
    return own + rank_.receive_released();
  } catch (...) {
    fail();
  }
}

void PipelineRunner::keep_awake() {
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, pause_, [this] { return stop_ || !lost_.empty(); })) {
    if (std::exchange(spoke_, false) || fault_ != nullptr) continue;
    try {
      tell({.kind = PipelineHead::kNothing});
      spoke_ = false;
    } catch (const std::exception&) {
      try {
        fail();
      } catch (const std::exception& e) {  // the engine hears of it with its next step
        log::error("the pipeline: {}", e.what());
      }
    }
  }
}

}  // namespace deepinfer
