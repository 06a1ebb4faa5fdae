// A linear after quantization, before it takes a checkpoint's layout.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quant/round.h"
#include "quantize/decoder_layer.h"

namespace deepinfer::quantize {

struct QuantizedLinear {
  std::string name;
  CodedRows coded;             // column j of the codes is the weight's column order[j]
  std::vector<int32_t> order;  // empty: as they stand
  std::vector<float> bias;     // [rows] or empty

  // What it stands for, in F32 and in the order of x: every reader of the checkpoint computes the same.
  std::vector<float> dequantize() const;
  // Divides row i by divisors[i]. The codes stay, the scales are rounded again.
  void divide_rows(const std::vector<float>& divisors);
};

// Codes of [rows, cols] zeroed, with room for scales and zero points.
CodedRows empty_codes(const RoundSpec& spec, int64_t rows, int64_t cols);

// The values of codes that stand in their own order, [rows, cols].
std::vector<float> dequantize_rows(const CodedRows& coded);

inline void set_u4(std::byte* row, int64_t column, int code) {
  const int shift = column % 2 * 4;
  const int rest = std::to_integer<int>(row[column / 2]) & ~(15 << shift);
  row[column / 2] = static_cast<std::byte>(rest | code << shift);
}
inline int get_u4(const std::byte* row, int64_t column) {
  return std::to_integer<int>(row[column / 2]) >> (column % 2 * 4) & 15;
}

}  // namespace deepinfer::quantize
