// Runs steps on the stages of a pipeline. Rank 0 is the engine's thread: it runs the first stage's layers in
// launch_forward(), and head and sampler in wait(), when the step has come back. The other ranks are threads
// of this process or processes of their own.
#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/pipeline_rank.h"

namespace deepinfer {

// The other ranks as threads of this process. Used by one thread.
class PipelineTeam {
 public:
  // `runners` of the ranks from 1 on.
  PipelineTeam(const PipelinePlace& grid, std::vector<std::unique_ptr<CpuRunner>> runners,
               std::chrono::milliseconds timeout);
  ~PipelineTeam();

  // A new group, whose threads follow rank 0: its communicators. All threads have ended.
  // A call of theirs waits at most three quarters of the timeout.
  PipelineComms start();
  // Waits at most a quarter of it for all threads to end. False: some did not, and none can be started again.
  bool stop();
  // What a thread of the last group threw by itself, not because another was gone; or null.
  std::exception_ptr fault() const;

  HeldMemory held_memory() const;  // any thread

 private:
  struct Member;

  const PipelinePlace grid_;
  const std::chrono::milliseconds timeout_;
  std::vector<std::shared_ptr<Member>> members_;  // of the ranks from 1 on; a thread that hangs keeps its own
  std::vector<std::thread> threads_;
};

class PipelineRunner final : public ModelRunner {
 public:
  // Others wait at most `timeout` for a word: while nothing is to be done a thread of this object says so.
  // With a team, which makes the communicators, another rank's fault ends the steps in flight and the next
  // one finds a new group, unless a rank hangs. Without one, or then, it is DeviceLost.
  PipelineRunner(const PipelinePlace& place, PipelineComms comms, std::unique_ptr<CpuRunner> runner,
                 std::chrono::milliseconds timeout, std::unique_ptr<PipelineTeam> team = nullptr);
  ~PipelineRunner() override;  // tells the others to end

  const Info& info() const override { return info_; }
  void launch_forward(const Step& step) override;
  void launch_sample(const Step& step) override;
  StepOutput wait(uint64_t step_id) override;
  HeldMemory held_memory() const override;
  int64_t release_unused() override;

  Tensor logits() const { return runner_->logits(); }  // of the step that was waited for

 private:
  void tell(const PipelineHead& head);
  void check_alive() const;
  void forward(const Step& step);
  [[noreturn]] void fail();
  void keep_awake();

  Info info_;
  std::unique_ptr<CpuRunner> runner_;
  PipelineComms comms_;
  PipelineRank rank_;
  std::unique_ptr<PipelineTeam> team_;  // null: others are processes
  const std::chrono::milliseconds pause_;
  StepEncoder encoder_;
  std::vector<Step> ring_;  // [stages] steps in flight, as far as sampling needs them
  size_t first_ = 0, count_ = 0;

  std::mutex mutex_;  // of what stands below, and of talking
  std::condition_variable wake_;
  bool spoke_ = false, stop_ = false;
  std::string lost_;          // why nothing can run any more, or empty
  std::exception_ptr fault_;  // of the steps in flight; the group has ended
  std::thread awake_;
};

}  // namespace deepinfer
