// Codes with scales beside them (kU4, kU8, kF8E4M3), the one form that quantized checkpoints take before they
// are packed: what they mean, and how they are cut.
#pragma once

#include <cstdint>

#include "deepinfer/result.h"
#include "ops/linear_weight.h"

namespace deepinfer {

constexpr bool has_codes(DType dtype) {
  return dtype == DType::kU4 || dtype == DType::kU8 || dtype == DType::kF8E4M3;
}

// Group, zero points, pointers and the column order fit each other. kUnsupported with what was found.
Result<void> check_codes(const LinearSource& source);

// The scalar oracle: row `row` of a part in F32, columns in the order of x (column_order undone). code - zero
// is exact, the product with the scale is rounded once. Every kernel is measured against it. source passed
// check_codes().
void dequantize_codes(const LinearSource& source, const LinearPart& part, int64_t row, float* out);

// A scale of a part as F32.
float scale_at(const LinearSource& source, const LinearPart& part, int64_t row, int64_t group);

}  // namespace deepinfer
