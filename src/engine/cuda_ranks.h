// Runs steps on several GPUs of this machine that share every layer (tensor parallelism), through NCCL.
//
// Each rank is a CudaRunner with its card, its part of the weights and its own KV cache of as many blocks,
// and a thread that gives its card work; rank 0's is the engine's thread. Sums over ranks are in the ranks'
// graphs, sampled tokens go from card to card: the threads themselves meet only while they give work.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "comm/communicator.h"
#include "engine/cuda_runner.h"

namespace deepinfer {

// A rank before it meets the others.
struct CudaRankStart {
  std::unique_ptr<cuda::Gpu> gpu;
  // On the rank's thread, when it has met the others.
  std::function<Result<std::unique_ptr<Model>>(cuda::Gpu& gpu, Communicator& ranks)> load;
  // Its plan_cache may be another rank's; the least of all plans holds.
  CudaRunnerOptions options;
};

// Ends a fault of any rank with DeviceLost, but for what only rank 0's sampling meets.
class CudaRanks final : public ModelRunner {
 public:
  // Joins the cards' ranks, tries what they send each other, loads and warms up all of them at once. What
  // takes a rank longer than `timeout` to get from the others ends all. kMemory, kUnavailable (NCCL), and
  // what `load` says: of the first rank that failed by itself.
  static Result<std::unique_ptr<CudaRanks>> create(std::vector<CudaRankStart> starts, const NcclApi& api,
                                                   std::chrono::milliseconds timeout);

  const Info& info() const override { return ranks_.front()->info(); }
  void launch_forward(const Step& step) override;
  void launch_sample(const Step& step) override;
  StepOutput wait(uint64_t step_id) override;
  HeldMemory held_memory() const override;

  int size() const { return static_cast<int>(ranks_.size()); }
  const MeasuredMemory& measured(int rank) const { return ranks_[rank]->measured(); }
  std::vector<float> read_logits() { return ranks_.front()->read_logits(); }  // as CudaRunner's

 private:
  CudaRanks() = default;
  void together(const std::function<void(int rank)>& work);
  [[noreturn]] void lose(const std::exception_ptr& fault);

  std::chrono::milliseconds timeout_{};
  std::vector<std::unique_ptr<Communicator>> hosts_;
  std::vector<std::unique_ptr<CudaRunner>> ranks_;
  std::string lost_;                  // why the group has ended
  std::unique_ptr<ThreadPool> team_;  // a thread a rank; last: it goes first
};

}  // namespace deepinfer
