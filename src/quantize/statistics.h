// What calibration keeps of a linear's input: enough for GPTQ and AWQ, independent of the number of tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"

namespace deepinfer::quantize {

struct InputStatistics {
  int64_t cols = 0;
  // [cols, cols], symmetric: 2 / tokens * X^T X. |W X^T|^2 of all tokens is proportional to trace(W gram
  // W^T).
  std::vector<float> gram;
  std::vector<float> mean_abs;  // [cols]: of |x| over the tokens
};

// x [tokens, cols].
InputStatistics input_statistics(ThreadPool& pool, const std::vector<float>& x, int64_t cols);

// trace(d gram d^T) in each row of d [rows, cols].
std::vector<double> output_errors(ThreadPool& pool, const InputStatistics& input, const std::vector<float>& d,
                                  int64_t rows);

}  // namespace deepinfer::quantize
