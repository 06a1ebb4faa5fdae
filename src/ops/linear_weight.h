// A packed weight: the backend's own layout, and the kernel that reads it. quant fills it through
// ops::pack_linear.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/arena.h"
#include "tensor/random_values.h"
#include "tensor/tensor.h"

namespace deepinfer {

// Rows of a checkpoint's tensor as they stand in the file: [rows, cols] of dtype, row-major.
struct LinearPart {
  const void* data = nullptr;
  int64_t rows = 0;
  std::optional<RandomValues> random = {};  // instead of data, with kBF16
};

enum class RowOrder : uint8_t {
  kConcatenated,  // the parts one after another (q, k, v)
  kPaired,  // two parts of equal size that one epilogue combines (gate, up): row i of each belong together
};

struct LinearSource {
  DType dtype = DType::kF32;  // kF32, kF16, kBF16, kQ4_0, kQ4_1, kQ8_0
  int64_t cols = 0;           // K
  std::vector<LinearPart> parts;
  RowOrder order = RowOrder::kConcatenated;
};

// Row groups (parts; later experts and adapters) of one matmul: y = W x.
struct LinearWeight {
  DType source = DType::kF32;
  int64_t rows = 0;  // N, without padding
  int64_t cols = 0;  // K
  RowOrder order = RowOrder::kConcatenated;
  std::vector<int64_t> part_rows;
  Device device;
  int kernel = 0;  // the backend's number of the layout in `packed`
  Buffer packed;   // owned; private to the backend

  explicit operator bool() const { return rows != 0; }
};

}  // namespace deepinfer
