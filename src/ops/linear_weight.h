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
//
// Codes (kU4, kU8, kF8E4M3) have scales beside them: value = scale * (code - zero), one scale and one zero
// point for `LinearSource::group` columns of a row. This is what AWQ, GPTQ, FP8, compressed-tensors and
// quantization while loading all become; the backends know no other form.
struct LinearPart {
  const void* data = nullptr;
  int64_t rows = 0;
  std::optional<RandomValues> random = {};  // instead of data, with kBF16
  const void* scale = nullptr;              // codes: [rows, groups] of LinearSource::scale_dtype
  const int16_t* zero = nullptr;            // codes: [rows, groups]; null: LinearSource::zero everywhere
};

enum class RowOrder : uint8_t {
  kConcatenated,  // the parts one after another (q, k, v)
  kPaired,  // two parts of equal size that one epilogue combines (gate, up): row i of each belong together
};

struct LinearSource {
  DType dtype = DType::kF32;  // kF32, kF16, kBF16, kQ4_0, kQ4_1, kQ8_0; codes: kU4, kU8, kF8E4M3
  int64_t cols = 0;           // K
  std::vector<LinearPart> parts;
  RowOrder order = RowOrder::kConcatenated;

  // Codes only.
  int64_t group = 0;  // columns that share a scale: cols, or a multiple of 32; the last may be short
  DType scale_dtype = DType::kF16;  // kF16, kBF16, kF32
  int16_t zero = 0;  // of parts without zero points: 8 (U4) or 128 (U8) when symmetric, 0 for F8
  // Column j of the codes is multiplied with x[column_order[j]]: groups of a checkpoint that was quantized in
  // another order (GPTQ's act order), sorted. Empty: as they stand.
  std::vector<int32_t> column_order;
  // F8: the checkpoint's own scale of x, a hint for devices that multiply in F8. 0: x is scaled as it comes.
  float x_scale = 0;

  int64_t groups() const { return group == 0 ? 0 : (cols + group - 1) / group; }  // of a row
};

// Row groups (parts; later experts and adapters) of one matmul: y = W x.
struct LinearWeight {
  DType source = DType::kF32;
  int64_t rows = 0;  // N, without padding
  int64_t cols = 0;  // K
  RowOrder order = RowOrder::kConcatenated;
  std::vector<int64_t> part_rows;
  int64_t group = 0;    // of codes; 0: the dtype has no scales beside it
  float x_scale = 0;    // as in LinearSource
  Buffer column_order;  // [cols] I32 on the device; empty: as they stand
  Device device;
  int kernel = 0;  // the backend's number of the layout in `packed`
  Buffer packed;   // owned; private to the backend

  explicit operator bool() const { return rows != 0; }
};

}  // namespace deepinfer
