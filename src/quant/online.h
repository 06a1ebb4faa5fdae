// Quantization while loading: plain matrices to codes, rounded to nearest.
#pragma once

#include <string_view>

#include "quant/method.h"
#include "quant/round.h"

namespace deepinfer {

// model.quantization fp8: e4m3 with one scale a row. int4: groups of 128 columns, or the largest of 64 and 32
// that divides them.
RoundSpec online_spec(std::string_view method, int64_t cols);

// Bits that an element takes, scales included.
double online_bits(std::string_view method);

// Rows of a matrix [rows, cols] of F32, F16 or BF16. kModel: a value that is no finite number.
Result<CodedMatrix> quantize_matrix(const RawTensor& matrix, const RoundSpec& spec, ThreadPool* pool);

}  // namespace deepinfer
