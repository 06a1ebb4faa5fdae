// The formats in which a checkpoint stores the rows of a matrix, and what they mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "deepinfer/result.h"
#include "ops/linear_weight.h"
#include "tensor/context.h"

namespace deepinfer {

struct QuantFormat {
  std::string_view name;  // as checkpoints call it: "Q4_1"
  DType dtype;            // how it is recognized
  int group;              // elements along a row that share a scale: a cut through rows stands on a multiple
  // The scalar oracle: elements of one row (a multiple of `group`) into F32, bit for bit as the gguf package.
  // Every kernel is measured against it. `row` needs no alignment.
  void (*dequantize)(const std::byte* row, int64_t elems, float* out);
};

// formats.cpp: the table. Null for a dtype that no weight has.
const QuantFormat* find_format(DType dtype);
std::span<const QuantFormat> quant_formats();

// The rows of one rank of `ranks`: each part is cut into equal runs of rows, in the layout of the checkpoint.
// kUnsupported when a part does not divide. Columns are never cut here.
Result<LinearSource> shard_rows(const LinearSource& source, int rank, int ranks);

// Checks the format and the shape, then packs for the context's device (ops::pack_linear).
Result<LinearWeight> pack(Context& context, const LinearSource& source);

// One function a format, each in its own file.
void dequantize_f32(const std::byte* row, int64_t elems, float* out);
void dequantize_f16(const std::byte* row, int64_t elems, float* out);
void dequantize_bf16(const std::byte* row, int64_t elems, float* out);
void dequantize_q4_0(const std::byte* row, int64_t elems, float* out);
void dequantize_q4_1(const std::byte* row, int64_t elems, float* out);
void dequantize_q8_0(const std::byte* row, int64_t elems, float* out);

}  // namespace deepinfer
