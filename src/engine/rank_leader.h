// Ranks of a model that are processes: rank 0 has the engine and tells the others each step; they only run
// forward.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "comm/communicator.h"
#include "engine/cpu_runner.h"
#include "engine/step_wire.h"

namespace deepinfer {

// Rank 0. A failure of any rank is DeviceLost: the group cannot go on.
class RankLeader final : public ModelRunner {
 public:
  // What `runner` was made with: `comm`. Others wait at most `timeout` for a word: while nothing is to be
  // done a thread of this object says so.
  RankLeader(std::unique_ptr<Communicator> comm, std::unique_ptr<CpuRunner> runner,
             std::chrono::milliseconds timeout);
  ~RankLeader() override;  // tells the others to end

  const Info& info() const override { return runner_->info(); }
  void launch_forward(const Step& step) override;
  void launch_sample(const Step& step) override { runner_->launch_sample(step); }
  StepOutput wait(uint64_t step_id) override { return runner_->wait(step_id); }
  HeldMemory held_memory() const override { return runner_->held_memory(); }
  int64_t release_unused() override;

  Tensor logits() const { return runner_->logits(); }

 private:
  void tell(int32_t kind, std::span<const int32_t> numbers);
  template <class Work>
  void together(const Work& work);
  void keep_awake();

  const std::unique_ptr<Communicator> comm_;
  const std::unique_ptr<CpuRunner> runner_;
  const std::chrono::milliseconds pause_;  // after which others hear something
  StepEncoder encoder_;

  std::mutex mutex_;  // of what stands below, and of talking
  std::condition_variable wake_;
  bool spoke_ = false, stop_ = false;
  std::string lost_;  // why the group has ended, or empty
  std::thread awake_;
};

// Another rank: runs steps until rank 0 says that it ends. CommError when rank 0 or another one is gone; what
// this rank itself throws ends the group first.
void follow_leader(Communicator& comm, CpuRunner& runner);

}  // namespace deepinfer
