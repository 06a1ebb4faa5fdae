// Random codes with scales, zero points and an order of columns, as loaders make them, and what their kernels
// are measured against.
#pragma once

#include <algorithm>
#include <numeric>

#include "fixture.h"
#include "quant/codes.h"
#include "tensor/half.h"

namespace deepinfer::test {

enum class Scales : uint8_t {
  kOrdinary,  // about 0.01
  kRowWide,   // of a row alike, of rows from 1e-8 to 1e4
  kWide,      // each from 1e-8 to 1e4
};

struct CodeShape {
  DType dtype = DType::kU4;
  DType scale = DType::kF16;
  int64_t group = 0;  // 0: all columns
  bool zeros = false;
  bool ordered = false;
  Scales scales = Scales::kOrdinary;
};

// One part's memory.
struct CodeMatrix {
  int64_t rows = 0;
  std::vector<std::byte> codes, scales;
  std::vector<int16_t> zeros;

  LinearPart part() const {
    return {.data = codes.data(),
            .rows = rows,
            .scale = scales.data(),
            .zero = zeros.empty() ? nullptr : zeros.data()};
  }
};

// A source without parts: the form that the matrices of one weight share.
inline LinearSource code_source(Random& random, const CodeShape& shape, int64_t cols) {
  LinearSource s{.dtype = shape.dtype, .cols = cols, .parts = {}, .scale_dtype = shape.scale};
  s.group = shape.group == 0 || shape.group > cols ? cols : shape.group;
  s.zero = shape.dtype == DType::kU4 ? 8 : shape.dtype == DType::kU8 ? 128 : 0;
  if (shape.ordered) {
    s.column_order.resize(cols);
    std::iota(s.column_order.begin(), s.column_order.end(), 0);
    std::shuffle(s.column_order.begin(), s.column_order.end(), random);
  }
  return s;
}

inline std::byte random_code(Random& random, DType dtype) {
  auto code = static_cast<uint8_t>(random());
  if (dtype == DType::kF8E4M3 && (code & 0x7f) == 0x7f) code ^= 1;  // not a number
  return std::byte{code};
}

inline CodeMatrix random_codes(Random& random, const CodeShape& shape, const LinearSource& source,
                               int64_t rows) {
  CodeMatrix m{.rows = rows, .codes = {}, .scales = {}, .zeros = {}};
  m.codes.resize(rows * row_bytes(shape.dtype, source.cols));
  for (std::byte& code : m.codes) code = random_code(random, shape.dtype);
  const int64_t groups = source.groups();
  const auto wide = [&] { return std::pow(10.0, -8 + 12 * static_cast<double>(random() % 1000) / 1000); };
  m.scales.resize(rows * groups * info(shape.scale).block_bytes);
  double of_row = 0;
  for (int64_t i = 0; i < rows * groups; ++i) {
    if (i % groups == 0) of_row = wide();
    const double spread = 1 + static_cast<double>(random() % 1000) / 1000;
    const double magnitude = shape.scales == Scales::kOrdinary  ? 0.01 * spread
                             : shape.scales == Scales::kRowWide ? of_row * spread
                                                                : wide();
    const auto scale = static_cast<float>(random() % 8 == 0 ? -magnitude : magnitude);
    const uint16_t bits = shape.scale == DType::kF16 ? ref::to_f16(scale) : ref::to_bf16(scale);
    if (shape.scale == DType::kF32)
      std::memcpy(&m.scales[i * 4], &scale, 4);
    else
      std::memcpy(&m.scales[i * 2], &bits, 2);
  }
  if (shape.zeros) {
    m.zeros.resize(rows * groups);
    for (int16_t& z : m.zeros)  // 16 and 256: what GPTQ's zero points less one come to
      z = static_cast<int16_t>(random() % (shape.dtype == DType::kU4 ? 17 : 257));
  }
  return m;
}

inline LinearWeight pack(Context& context, const LinearSource& source) {
  Result<LinearWeight> packed = ops::pack_linear(context, source);
  DI_CHECK(packed.ok(), "{}", packed.error().message);
  return std::move(packed).value();
}

// One row times one column, and what the kernel may be off.
struct CodeDot {
  double value = 0;
  double bound = 0;
  double step = 0;  // a step of the activations' quantization times the largest weight
};

// Sums over k are chains of roundings of 2^-24 each: of blocks of 32 (the sum inside one is exact) or of
// single k. Scales that are not in F16 add 2^-11 of theirs (BF16: nothing) and, far below the row's largest,
// the step of F16's subnormal numbers: 2^-25 where the largest is above 2^14.
inline CodeDot code_dot(const LinearSource& s, const LinearPart& part, int64_t row,
                        std::span<const float> x) {
  constexpr double kEps = 1.2e-7;
  const bool integer = s.dtype != DType::kF8E4M3;
  std::vector<float> weights(s.cols), ordered(x.begin(), x.end());
  dequantize_codes(s, part, row, weights.data());
  if (!s.column_order.empty()) {
    const std::vector<float> stored = weights;
    for (int64_t j = 0; j < s.cols; ++j) {
      weights[j] = stored[s.column_order[j]];
      ordered[j] = x[s.column_order[j]];
    }
  }
  const std::vector<double> a = ref::activations(integer ? DType::kQ8_0 : DType::kF32, ordered);
  double largest_scale = 0, largest_x = 0, largest_w = 0, magnitude = 0, codes = 0;
  for (int64_t g = 0; g < s.groups(); ++g)
    largest_scale = std::max(largest_scale, std::fabs(double{scale_at(s, part, row, g)}));
  CodeDot d;
  for (int64_t j = 0; j < s.cols; ++j) {
    d.value += weights[j] * a[j];
    magnitude += std::fabs(weights[j] * a[j]);
    codes += 272 * std::fabs(a[j]);  // the largest |code - zero|
    largest_x = std::max(largest_x, std::fabs(double{ordered[j]}));
    largest_w = std::max(largest_w, std::fabs(double{weights[j]}));
  }
  d.bound = (static_cast<double>(integer ? s.cols / 32 : s.cols) + 8) * kEps * magnitude + 1e-30;
  if (integer && s.scale_dtype != DType::kF16 && s.groups() > 1) {
    if (s.scale_dtype == DType::kF32) d.bound += std::ldexp(magnitude, -11);
    d.bound += std::ldexp(largest_scale * codes, -39);
  }
  d.step = integer ? largest_w * largest_x / 127 : 0;
  return d;
}

}  // namespace deepinfer::test
