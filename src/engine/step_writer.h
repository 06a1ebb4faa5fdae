// Writes a step into the block of arrays that goes to the device.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/cuda_step.h"
#include "engine/table_mirror.h"
#include "tensor/step_batch.h"

namespace deepinfer {

// What a step needs before rows are padded.
struct StepSummary {
  cuda::StepShape shape;
  int32_t decode_rows = 0;  // the first rows, of one token each
  int32_t max_query = 0;
  int32_t max_context = 0;
  bool decode() const { return decode_rows == shape.rows && shape.scored == 0; }
};
StepSummary summarize(const Step& step);

// Owner: the runner. One thread. Nothing is allocated once the largest step was written.
class StepWriter {
 public:
  // `slots` counts the one of padding, the last.
  StepWriter(int groups, int slots, int max_blocks);

  // Fills `block` for a shape of at least the step's rows; what is more, pads: then every row has one token
  // and one row of logits. Deltas that are more than `delta_room` are left out, all of them: see overflow().
  // Returns the bytes in use.
  size_t write(const Step& step, const cuda::StepShape& shape, int32_t delta_room, std::byte* block);

  // Deltas of the last write() that must reach the device before the step. Empty as a rule.
  std::span<const cuda::BlockDelta> overflow() const { return overflow_; }

  // The arrays of the last write() as the operations see them. Valid as long as its block and this.
  StepBatch batch(const cuda::StepShape& shape, std::byte* block) const;

  void forget() { mirror_.forget(); }

 private:
  int32_t dummy_slot_;
  TableMirror mirror_;
  std::vector<BlockTable> no_tables_;  // [groups]: the device has its own
  std::vector<cuda::BlockDelta> deltas_, overflow_;
  std::vector<int32_t> starts_;  // [rows + 1] in deltas_
};

}  // namespace deepinfer
