#include "engine/step_writer.h"

#include <algorithm>

#include "base/check.h"

namespace deepinfer {

StepSummary summarize(const Step& step) {
  StepSummary s;
  s.shape.rows = static_cast<int32_t>(step.rows.size());
  for (const StepRow& row : step.rows) {
    const auto count = static_cast<int32_t>(row.tokens.size());
    DI_CHECK(count > 0, "step {}: a row without tokens", step.id);
    if (count == 1 && s.decode_rows == s.shape.tokens) ++s.decode_rows;
    s.shape.tokens += count;
    s.shape.logit_rows += row.samples;
    s.shape.scored += static_cast<int32_t>(row.targets.size());
    s.max_query = std::max(s.max_query, count);
    s.max_context = std::max(s.max_context, row.context_len + count);
  }
  return s;
}

StepWriter::StepWriter(int groups, int slots, int max_blocks)
    : dummy_slot_(slots - 1), mirror_(groups, slots, max_blocks), no_tables_(groups) {}

size_t StepWriter::write(const Step& step, const cuda::StepShape& shape, int32_t delta_room,
                         std::byte* block) {
  const cuda::StepArrays a = cuda::step_arrays(block, shape);
  const auto rows = static_cast<int32_t>(step.rows.size());
  // In a padded step every row has logits: which are sampled from is the sampling block's business.
  const bool all_logits = shape.logit_rows == shape.rows && shape.scored == 0;
  deltas_.clear();
  starts_.clear();
  overflow_.clear();
  int32_t t = 0, logit = 0, scored = 0;
  for (int32_t b = 0; b < rows; ++b) {
    const StepRow& row = step.rows[b];
    a.row_slot[b] = row.slot;
    a.row_start[b] = t;
    a.context_len[b] = row.context_len;
    starts_.push_back(static_cast<int32_t>(deltas_.size()));
    mirror_.diff(row, deltas_);
    for (size_t i = 0; i < row.targets.size(); ++i, ++scored) {
      a.scored_token[scored] = t + static_cast<int32_t>(i);
      a.target[scored] = row.targets[i];
    }
    for (size_t i = 0; i < row.tokens.size(); ++i, ++t) {
      a.token[t] = row.tokens[i];
      a.position[t] = row.context_len + static_cast<int32_t>(i);
    }
    if (row.samples || all_logits) a.logit_token[logit++] = t - 1;
  }
  for (int32_t b = rows; b < shape.rows; ++b, ++t) {
    a.row_slot[b] = dummy_slot_;
    a.row_start[b] = t;
    a.context_len[b] = 0;
    a.token[t] = 0;
    a.position[t] = -1;
    a.logit_token[logit++] = t;
    starts_.push_back(static_cast<int32_t>(deltas_.size()));
  }
  a.row_start[shape.rows] = t;
  starts_.push_back(static_cast<int32_t>(deltas_.size()));
  DI_CHECK(t == shape.tokens && logit == shape.logit_rows && scored == shape.scored,
           "step {}: {} tokens, {} rows of logits and {} targets in a block for {}, {} and {}", step.id, t,
           logit, scored, shape.tokens, shape.logit_rows, shape.scored);
  if (deltas_.size() > static_cast<size_t>(delta_room)) {
    overflow_.swap(deltas_);
    deltas_.clear();
    std::fill(starts_.begin(), starts_.end(), 0);
  }
  std::copy(starts_.begin(), starts_.end(), a.delta_start);
  std::copy(deltas_.begin(), deltas_.end(), a.deltas);
  return a.bytes + deltas_.size() * sizeof(cuda::BlockDelta);
}

StepBatch StepWriter::batch(const cuda::StepShape& shape, std::byte* block) const {
  const cuda::StepArrays a = cuda::step_arrays(block, shape);
  const auto rows = static_cast<size_t>(shape.rows), tokens = static_cast<size_t>(shape.tokens);
  return {.num_rows = shape.rows,
          .num_tokens = shape.tokens,
          .row_slot = {a.row_slot, rows},
          .row_start = {a.row_start, rows + 1},
          .context_len = {a.context_len, rows},
          .token = {a.token, tokens},
          .position = {a.position, tokens},
          .block_table = no_tables_,
          .logit_token = {a.logit_token, static_cast<size_t>(shape.logit_rows)}};
}

}  // namespace deepinfer
