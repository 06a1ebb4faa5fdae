// A runner whose model is a hash: the value at a position depends on every value before it, read through the
// block tables of a KV store that remembers who wrote what. A wrong table, a lost or doubled token, a stale
// prefix hit or a block reused too early changes the tokens that come out, or is reported as a fault at once.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "engine/model_runner.h"

namespace deepinfer::test {

struct FakeOptions {
  ModelRunner::Info info;
  bool late = true;           // compute in wait(), as late as the contract allows, instead of at the launch
  bool reject_drafts = true;  // accept 0 (1 where info.tracks_tokens) to room tokens at random, not all
  uint64_t seed = 1;
};

// What the model gives for a sequence computed alone, without cache, blocks or batches.
struct OracleRequest {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  uint64_t seed = 0;
  std::vector<int32_t> end_ids;
  int64_t max_len = 0;
};
struct OracleOutput {
  std::vector<int32_t> tokens;
  std::vector<OutputToken> scores;  // of the prompt
  FinishReason finish = FinishReason::kNone;
};
OracleOutput oracle(const ModelRunner::Info& info, const OracleRequest& request);

KvGroupSpec full_group();
KvGroupSpec window_group(int window);
ModelRunner::Info small_info();  // one full group, block 4, 64 blocks, 8 slots, vocabulary 50, context 200

class FakeRunner final : public ModelRunner {
 public:
  explicit FakeRunner(FakeOptions options);

  const Info& info() const override { return options_.info; }
  void launch_forward(const Step& step) override;
  void launch_sample(const Step& step) override;
  StepOutput wait(uint64_t step_id) override;
  int64_t release_unused() override;

  const std::vector<std::string>& faults() const { return faults_; }
  int64_t computed_tokens() const { return computed_tokens_; }
  int max_in_flight_seen() const { return max_in_flight_seen_; }
  int drafts_seen() const { return drafts_seen_; }  // tokens of StepRow::drafts
  int drafts_accepted() const { return drafts_accepted_; }

  // Called first in launch_forward() and wait(): may throw or block.
  std::function<void(const Step&)> on_launch;
  std::function<void(uint64_t)> on_wait;

 private:
  struct Cell {
    int group = -1;
    int64_t position = -1;
    uint64_t value = 0;
    int32_t token = -1;
  };
  struct Slot {
    uint64_t sequence = ~uint64_t{0};
    int64_t length = 0;  // position of the next input
    int32_t last = -1;
  };
  struct Footprint {
    uint64_t sequence = 0;
    int32_t slot = 0;
    std::vector<int32_t> blocks;  // that it may read or write
  };
  struct InFlight {
    const Step* step = nullptr;
    uint64_t id = 0;
    bool sampled = false;
    std::vector<Footprint> rows;
    StepOutput output;
  };

  void check_row(const StepRow& row);
  Footprint footprint(const StepRow& row) const;
  void check_conflicts(const Step& step);
  void execute(const Step& step, StepOutput& output);
  void execute_row(const Step& step, const StepRow& row, StepOutput& output);
  std::vector<OutputToken> sample(const Step& step, const StepRow& row, int64_t position, uint64_t value,
                                  float* surprise);
  uint64_t forward(const StepRow& row, int32_t token, int64_t position);
  uint64_t history(const StepRow& row, int64_t position);
  Cell* cell(const StepRow& row, size_t group, int64_t position);
  void fault(std::string what);

  FakeOptions options_;
  std::vector<Cell> store_;  // [blocks, block_size]
  std::vector<Slot> slots_;
  std::deque<InFlight> in_flight_;
  std::vector<std::string> faults_;
  int64_t computed_tokens_ = 0;
  int max_in_flight_seen_ = 0;
  int drafts_seen_ = 0, drafts_accepted_ = 0;
};

}  // namespace deepinfer::test
