// What every backend asks of the weight that it is to pack, and how the packed one begins.
#pragma once

#include "base/check.h"
#include "ops/linear_weight.h"

namespace deepinfer {

struct PackLimits {
  int64_t cols = 0, rows = 0;  // at most so many
  bool random = false;         // parts may have random values instead of data
};

// The shape alone: columns that fit their blocks, parts that exist, pairs of equal size. kUnsupported.
inline Result<void> check_shape(const LinearSource& s, const PackLimits& limits) {
  if (s.cols <= 0 || s.cols > limits.cols || s.cols % info(s.dtype).block_elems != 0)
    return make_error(ErrorCode::kUnsupported,
                      "weight columns: got {}, expected a multiple of {} ({}) up to {}", s.cols,
                      info(s.dtype).block_elems, info(s.dtype).name, limits.cols);
  if (s.parts.empty())
    return make_error(ErrorCode::kUnsupported, "weight: got no rows, expected at least one part");
  int64_t rows = 0;
  for (const LinearPart& part : s.parts) {
    const bool exists = part.data != nullptr || (limits.random && part.random);
    if (!exists || part.rows <= 0 || part.rows > limits.rows - rows)
      return make_error(ErrorCode::kUnsupported,
                        "weight rows: got a part of {} x {}, expected one that exists", part.rows, s.cols);
    rows += part.rows;
  }
  if (s.order == RowOrder::kPaired && (s.parts.size() != 2 || s.parts[0].rows != s.parts[1].rows))
    return make_error(ErrorCode::kUnsupported,
                      "paired weight: got {} parts of {} rows first, expected two of equal size",
                      s.parts.size(), s.parts[0].rows);
  return {};
}

// All but what the backend chooses: its kernel's number and its bytes.
inline LinearWeight begin_weight(const LinearSource& s, const Device& device) {
  LinearWeight w{.source = s.dtype,
                 .cols = s.cols,
                 .order = s.order,
                 .group = s.group,
                 .x_scale = s.x_scale,
                 .device = device};
  for (const LinearPart& part : s.parts) {
    w.part_rows.push_back(part.rows);
    w.rows += part.rows;
  }
  return w;
}

}  // namespace deepinfer
