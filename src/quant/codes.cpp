#include "quant/codes.h"

#include <cstring>
#include <vector>

#include "base/check.h"
#include "tensor/half.h"

namespace deepinfer {
namespace {

float code_at(DType dtype, const std::byte* row, int64_t column) {
  if (dtype == DType::kU4)
    return static_cast<float>(std::to_integer<int>(row[column / 2]) >> (column % 2 * 4) & 15);
  const auto code = std::to_integer<uint8_t>(row[column]);
  return dtype == DType::kU8 ? static_cast<float>(code) : e4m3_to_float(code);
}

Result<void> check_order(const LinearSource& s) {
  if (s.column_order.empty()) return {};
  std::vector<bool> seen(static_cast<size_t>(s.cols));
  if (std::ssize(s.column_order) != s.cols)
    return make_error(ErrorCode::kUnsupported, "column order: got {} entries, expected {}, one a column",
                      s.column_order.size(), s.cols);
  for (const int32_t column : s.column_order) {
    if (column < 0 || column >= s.cols || seen[column])
      return make_error(ErrorCode::kUnsupported, "column order: got {}, expected each column of {} once",
                        column, s.cols);
    seen[column] = true;
  }
  return {};
}

}  // namespace

Result<void> check_codes(const LinearSource& s) {
  const bool scales =
      s.scale_dtype == DType::kF16 || s.scale_dtype == DType::kBF16 || s.scale_dtype == DType::kF32;
  if (!has_codes(s.dtype) || !scales)
    return make_error(ErrorCode::kUnsupported,
                      "codes: got {} with scales of {}, expected U4, U8 or F8_E4M3 with F16, BF16 or F32",
                      info(s.dtype).name, info(s.scale_dtype).name);
  if (s.cols < 2 || s.cols % 2 != 0)
    return make_error(ErrorCode::kUnsupported, "codes: got {} columns, expected an even number", s.cols);
  if (s.group < 1 || s.group > s.cols || (s.group != s.cols && s.group % 32 != 0))
    return make_error(ErrorCode::kUnsupported,
                      "codes: got groups of {} of {} columns, expected a multiple of 32, or all columns",
                      s.group, s.cols);
  for (const LinearPart& part : s.parts)
    if (part.data == nullptr || part.scale == nullptr || part.rows < 1)
      return make_error(ErrorCode::kUnsupported, "codes: got a part of {} rows without codes or scales",
                        part.rows);
  return check_order(s);
}

float scale_at(const LinearSource& s, const LinearPart& part, int64_t row, int64_t group) {
  const int64_t at = row * s.groups() + group;
  if (s.scale_dtype == DType::kF32) {
    float scale;
    std::memcpy(&scale, static_cast<const std::byte*>(part.scale) + at * 4, sizeof scale);
    return scale;
  }
  uint16_t bits;
  std::memcpy(&bits, static_cast<const std::byte*>(part.scale) + at * 2, sizeof bits);
  return s.scale_dtype == DType::kF16 ? f16_to_float(bits) : bf16_to_float(bits);
}

void dequantize_codes(const LinearSource& s, const LinearPart& part, int64_t row, float* out) {
  const std::byte* codes = static_cast<const std::byte*>(part.data) + row * row_bytes(s.dtype, s.cols);
  for (int64_t j = 0; j < s.cols; ++j) {
    const int64_t group = j / s.group;
    const int16_t zero = part.zero != nullptr ? part.zero[row * s.groups() + group] : s.zero;
    const float value =
        (code_at(s.dtype, codes, j) - static_cast<float>(zero)) * scale_at(s, part, row, group);
    out[s.column_order.empty() ? j : s.column_order[j]] = value;
  }
}

}  // namespace deepinfer
