// Matrices of a checkpoint, of whatever form, as one source for ops::pack_linear.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "deepinfer/result.h"
#include "model/weights.h"
#include "ops/linear_weight.h"
#include "ops/params.h"
#include "quant/method.h"

namespace deepinfer {

// A dimension of a matrix or vector: how long it is, and which run of it is wanted.
struct Extent {
  Extent(int64_t n) : size(n), run{0, n} {}  // NOLINT(google-explicit-constructor): all of it
  Extent(int64_t n, Interval r) : size(n), run(r) {}
  bool all() const { return run.count == size; }

  int64_t size;
  Interval run;
};

using NamedRows = std::pair<std::string, Extent>;

struct LinearRows {
  LinearSource source;  // borrows from the rest and from the checkpoint
  std::vector<CodedMatrix> coded;
  std::vector<Buffer> plain;
};

// The rows of several matrices [rows_i, cols], by name. Codes stay codes when all of them have one dtype and
// one column order; else all become plain numbers of 16 bits (F32 beside F32), with a line in the log. So do
// some columns of a matrix in act order, whose groups a cut scatters. Plain ones are quantized where
// weights.online says so. Of a run of rows nothing else is read; of a run of columns only where it has no
// codes of its own. kModel.
Result<LinearRows> read_linear(const Weights& weights, const std::vector<NamedRows>& parts,
                               const Extent& cols, RowOrder order, ThreadPool* pool);

// What the first column of a cut through a matrix [rows, cols], and the number of columns, have to be a
// multiple of (the last run may be short). kModel.
Result<int64_t> column_unit(const Weights& weights, const std::string& name, int64_t rows, int64_t cols);

}  // namespace deepinfer
