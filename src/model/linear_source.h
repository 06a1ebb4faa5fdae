// Matrices of a checkpoint, of whatever form, as one source for ops::pack_linear.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "deepinfer/result.h"
#include "model/weights.h"
#include "ops/linear_weight.h"
#include "quant/method.h"

namespace deepinfer {

struct LinearRows {
  LinearSource source;  // borrows from the rest and from the checkpoint
  std::vector<CodedMatrix> coded;
  std::vector<Buffer> plain;
};

// The rows of several matrices [rows_i, cols], by name. Codes stay codes when all of them have one dtype and
// one column order; else all become plain numbers of 16 bits (F32 beside F32), with a line in the log. Plain
// ones are quantized where weights.online says so. kModel.
Result<LinearRows> read_linear(const Weights& weights,
                               const std::vector<std::pair<std::string, int64_t>>& parts, int64_t cols,
                               RowOrder order, ThreadPool* pool);

}  // namespace deepinfer
