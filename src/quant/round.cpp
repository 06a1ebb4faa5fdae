#include "quant/round.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "tensor/half.h"

namespace deepinfer {
namespace {

constexpr float kMaxE4m3 = 448;
constexpr float kMaxF16 = 65504;

int max_code(DType dtype) {
  return dtype == DType::kU4 ? 15 : 255;
}

struct Range {
  float low = 0, high = 0;
  float magnitude() const { return std::max(-low, high); }
};

Range range_of(const float* x, int64_t n) {
  Range r;
  for (int64_t i = 0; i < n; ++i) {
    r.low = std::min(r.low, x[i]);
    r.high = std::max(r.high, x[i]);
  }
  return r;
}

float exact_scale(const RoundSpec& spec, const Range& r) {
  if (spec.dtype == DType::kF8E4M3) return r.magnitude() / kMaxE4m3;
  const auto steps = static_cast<float>(max_code(spec.dtype));
  return spec.symmetric ? r.magnitude() / (steps / 2) : (r.high - r.low) / steps;
}

// What a group of zeros, or one below the smallest scale, gets; and what a scale too large for F16 becomes.
float usable_scale(DType dtype, float scale) {
  const float smallest = dtype == DType::kF16 ? 0x1p-24f : std::numeric_limits<float>::min();
  if (scale == 0) return 1;
  scale = std::max(scale, smallest);
  return dtype == DType::kF16 ? std::min(scale, kMaxF16) : scale;
}

// x / scale as a whole number, to the nearest even. The sum rounds for |x / scale| below 2^22; codes saturate
// far below.
float whole(float x) {
  constexpr float kMagic = 0x1.8p23f;
  x = std::min(1024.0f, std::max(-1024.0f, x));  // in this order NaN becomes a number
  return (x + kMagic) - kMagic;
}

void put_codes(const RoundSpec& spec, const float* x, int64_t begin, int64_t end, float scale, int zero,
               std::byte* codes) {
  if (spec.dtype == DType::kF8E4M3) {
    for (int64_t i = begin; i < end; ++i) codes[i] = std::byte{float_to_e4m3(x[i] / scale)};
    return;
  }
  const auto top = static_cast<float>(max_code(spec.dtype));
  const auto code = [&](int64_t i) {
    return static_cast<uint8_t>(
        std::min(top, std::max(0.0f, whole(x[i] / scale) + static_cast<float>(zero))));
  };
  if (spec.dtype == DType::kU8) {
    for (int64_t i = begin; i < end; ++i) codes[i] = std::byte{code(i)};
    return;
  }
  for (int64_t i = begin; i < end; i += 2)
    codes[i / 2] = std::byte{static_cast<uint8_t>(code(i) | (i + 1 < end ? code(i + 1) : 0) << 4)};
}

void check_spec(const RoundSpec& spec, int64_t cols) {
  const bool known = spec.dtype == DType::kU4 || spec.dtype == DType::kU8 || spec.dtype == DType::kF8E4M3;
  DI_CHECK(known && cols > 0 && cols % 2 == 0 && spec.group >= 0 && spec.group_of(cols) % 2 == 0,
           "round: {} by groups of {} of {} columns", info(spec.dtype).name, spec.group, cols);
  DI_CHECK(spec.symmetric || spec.dtype != DType::kF8E4M3, "round: zero points of F8");
}

}  // namespace

int16_t RoundSpec::zero() const {
  if (dtype == DType::kF8E4M3) return 0;
  return dtype == DType::kU4 ? 8 : 128;
}

void store_scale(DType dtype, float scale, void* scales, int64_t at) {
  auto* out = static_cast<std::byte*>(scales);
  if (dtype == DType::kF32) {
    std::memcpy(out + at * 4, &scale, sizeof scale);
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? float_to_f16(scale) : float_to_bf16(scale);
  std::memcpy(out + at * 2, &bits, sizeof bits);
}

float load_scale(DType dtype, const void* scales, int64_t at) {
  const auto* in = static_cast<const std::byte*>(scales);
  if (dtype == DType::kF32) {
    float scale;
    std::memcpy(&scale, in + at * 4, sizeof scale);
    return scale;
  }
  uint16_t bits;
  std::memcpy(&bits, in + at * 2, sizeof bits);
  return dtype == DType::kF16 ? f16_to_float(bits) : bf16_to_float(bits);
}

bool all_finite(const float* x, int64_t n) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i)
    bad |= static_cast<uint32_t>((std::bit_cast<uint32_t>(x[i]) & 0x7f800000u) == 0x7f800000u);
  return bad == 0;
}

void round_row_with(const RoundSpec& spec, const float* x, int64_t cols, const void* scales,
                    const int16_t* zeros, std::byte* codes) {
  check_spec(spec, cols);
  const int64_t group = spec.group_of(cols);
  for (int64_t g = 0; g * group < cols; ++g)
    put_codes(spec, x, g * group, std::min(cols, (g + 1) * group), load_scale(spec.scale_dtype, scales, g),
              zeros != nullptr ? zeros[g] : spec.zero(), codes);
}

void round_row(const RoundSpec& spec, const float* x, int64_t cols, std::byte* codes, void* scales,
               int16_t* zeros) {
  check_spec(spec, cols);
  DI_CHECK(spec.symmetric || zeros != nullptr, "round: no place for zero points");
  const int64_t group = spec.group_of(cols);
  for (int64_t g = 0; g * group < cols; ++g) {
    const Range r = range_of(x + g * group, std::min(group, cols - g * group));
    const float wanted = exact_scale(spec, r);
    store_scale(spec.scale_dtype, usable_scale(spec.scale_dtype, wanted), scales, g);
    if (spec.symmetric) continue;
    const float zero = whole(-r.low / load_scale(spec.scale_dtype, scales, g));
    zeros[g] = static_cast<int16_t>(std::clamp(zero, 0.0f, static_cast<float>(max_code(spec.dtype))));
  }
  round_row_with(spec, x, cols, scales, spec.symmetric ? nullptr : zeros, codes);
}

LinearPart CodedRows::part() const {
  return {.data = codes.data(),
          .rows = rows,
          .scale = scales.data(),
          .zero = zeros.empty() ? nullptr : zeros.data()};
}

LinearSource CodedRows::source() const {
  return {.dtype = spec.dtype,
          .cols = cols,
          .parts = {part()},
          .group = spec.group_of(cols),
          .scale_dtype = spec.scale_dtype,
          .zero = spec.zero()};
}

CodedRows round_rows(const RoundSpec& spec, const float* x, int64_t rows, int64_t cols, ThreadPool* pool) {
  check_spec(spec, cols);
  const int64_t groups = spec.groups(cols), bytes = row_bytes(spec.dtype, cols);
  const int64_t scale_bytes = row_bytes(spec.scale_dtype, groups);
  CodedRows out{.spec = spec, .rows = rows, .cols = cols};
  out.codes.resize(rows * bytes);
  out.scales.resize(rows * scale_bytes);
  if (!spec.symmetric) out.zeros.resize(rows * groups);
  const int threads = pool != nullptr ? pool->size() : 1;
  const auto work = [&](int t) {
    for (int64_t r = rows * t / threads; r < rows * (t + 1) / threads; ++r)
      round_row(spec, x + r * cols, cols, out.codes.data() + r * bytes, out.scales.data() + r * scale_bytes,
                spec.symmetric ? nullptr : out.zeros.data() + r * groups);
  };
  if (pool != nullptr)
    pool->run(work);
  else
    work(0);
  return out;
}

}  // namespace deepinfer
