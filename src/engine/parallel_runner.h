// Runs steps on several CPU ranks that share every layer (tensor parallelism), as threads of this process.
//
// Each rank is a CpuRunner with its part of the weights, its own KV cache of as many blocks, and its own pool
// of threads. Rank 0 is the engine's thread, which samples; the others have a thread each and wait between
// steps as a pool's threads do.
#pragma once

#include <chrono>
#include <exception>
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "comm/communicator.h"
#include "engine/cpu_runner.h"
#include "model/checkpoint.h"

namespace deepinfer {

// The models of all ranks, made at the same time.
struct RankModels {
  std::vector<std::unique_ptr<Communicator>> comms;
  std::vector<std::unique_ptr<ThreadPool>> pools;
  std::vector<std::unique_ptr<Model>> models;
  int64_t weight_bytes = 0;
};

// `threads` in all, at least one a rank. What takes longer than `timeout` between two of a group's calls
// fails. kConfig: more ranks than the model can be dealt to. Other errors as of make_model().
Result<RankModels> make_rank_models(const Checkpoint& checkpoint, int ranks, int threads,
                                    std::chrono::milliseconds timeout);

// Bytes of a block of the KV cache on all ranks.
int64_t block_bytes(const RankModels& ranks, DType kv_dtype, int block_size);

class ParallelRunner final : public ModelRunner {
 public:
  // kMemory as CpuRunner::create(). `options.comm` and `options.slots` are set here.
  static Result<std::unique_ptr<ParallelRunner>> create(RankModels ranks, const CpuRunnerOptions& options,
                                                        std::chrono::milliseconds timeout);

  const Info& info() const override { return ranks_.front()->info(); }
  // What a rank throws ends the step on all of them and is thrown here: the first rank's that failed by
  // itself. The next step finds a new group.
  void launch_forward(const Step& step) override;
  void launch_sample(const Step& step) override { ranks_.front()->launch_sample(step); }
  StepOutput wait(uint64_t step_id) override { return ranks_.front()->wait(step_id); }
  HeldMemory held_memory() const override;
  int64_t release_unused() override;

  Tensor logits() const { return ranks_.front()->logits(); }

 private:
  ParallelRunner() = default;
  void forward_of(int rank, const Step& step) noexcept;
  void renew_group();

  std::chrono::milliseconds timeout_{};
  std::vector<std::unique_ptr<Communicator>> comms_;
  std::vector<std::unique_ptr<CpuRunner>> ranks_;
  std::vector<std::exception_ptr> faults_;  // [ranks] of the last step
  std::unique_ptr<ThreadPool> team_;        // a thread a rank; last: it goes first
};

}  // namespace deepinfer
