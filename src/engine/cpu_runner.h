// Runs steps on the CPU: one at a time, done when launch_sample returns.
#pragma once

#include <memory>

#include "engine/model_runner.h"
#include "model/model.h"

namespace deepinfer {

struct CpuRunnerOptions {
  int max_num_seqs = 128;
  int max_num_batched_tokens = 2048;
  int max_model_len = 0;
  int64_t num_blocks = 0;
  DType kv_dtype = DType::kF16;
  Profiler* profiler = nullptr;  // of the operations; outlives the runner
  // With several ranks: this one's, and where rank 0 keeps last tokens (others only read them). Rank 0
  // samples and scores; others run forward alone.
  Communicator* comm = nullptr;
  const SlotTable* slots = nullptr;
  bool head = true;  // false: of a stage without embedding and head, which runs layers alone
};

class CpuRunner final : public ModelRunner {
 public:
  // Reserves everything that a step needs; memory counts when it is first touched. kMemory when the system
  // refuses.
  static Result<std::unique_ptr<CpuRunner>> create(std::unique_ptr<ThreadPool> pool,
                                                   std::unique_ptr<Model> model,
                                                   const CpuRunnerOptions& options);

  const Info& info() const override { return info_; }
  void launch_forward(const Step& step) override;
  void launch_sample(const Step& step) override;
  StepOutput wait(uint64_t step_id) override;
  HeldMemory held_memory() const override;
  int64_t release_unused() override;

  // Where a pipeline's stages have a runner each. Stages run their layers on hidden [T, H] in place, which
  // the first of them writes.
  void forward_layers(const Step& step, const Tensor& hidden, bool embeds);
  // After it, of this step: how many rows of hidden the head is wanted for, and they: those of tokens that
  // are scored, then those that are sampled from. [wanted_rows().., H]
  struct Rows {
    int64_t scored = 0, sampled = 0;
    int64_t all() const { return scored + sampled; }
  };
  static Rows wanted_rows(const Step& step);
  void copy_wanted(const Tensor& hidden, float* out) const;
  // The first stage: logits and scores out of these rows; launch_sample() and wait() may follow. `step` is
  // that of rank 0; null on others.
  void launch_head(const Step* step, const Rows& count, const Tensor& rows);
  int hidden() const { return model_->config().hidden; }

  // Logits of the last forward, [S, V]: for tests and for quality measurements.
  Tensor logits() const { return logits_; }

  const SlotTable& slots() const { return slots_; }
  // Another group of as many ranks, when the one before has failed.
  void join(Communicator* comm) { context_.comm = comm; }

 private:
  // The step's rows as flat arrays; capacity is kept from step to step.
  struct Flat {
    std::vector<int32_t> row_slot, row_start, context_len, token, position, logit_token;
    std::vector<int32_t> scored_token, target, target_top;  // of all rows with targets, one after another
    std::vector<std::vector<int32_t>> block_ids;            // [groups]
    std::vector<BlockTable> tables;
    StepBatch batch;
  };

  CpuRunner() = default;
  bool samples() const;  // whether logits are wanted here
  void flatten(const Step& step);
  void list_sample_rows(const Step& step);
  void accept(const Step& step, const SampleParams& p);
  void flatten_rows(const Step* step, const Rows& count);
  void score(const Step* step, const Tensor& hidden);
  void score_piece(const Tensor& hidden, size_t first, size_t count, std::vector<OutputToken>& out);

  Info info_;
  int logit_rows_ = 0;  // that logits_memory_ holds
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Model> model_;
  Arena scratch_;
  Buffer kv_memory_, logits_memory_, hidden_memory_;
  std::unique_ptr<KvCache> kv_;
  std::vector<int32_t> last_token_;  // [slots]
  SlotTable slots_;
  Context context_;
  Flat flat_;
  Tensor logits_;
  std::vector<SampleRow> sample_rows_;
  std::span<std::byte> scratch_memory_;  // what scratch_ hands out
  StepOutput output_;
  uint64_t launched_ = 0;
};

}  // namespace deepinfer
