#include "ref/reference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace deepinfer::ref {

double f16(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

uint16_t to_f16(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double a = std::fabs(x);
  if (std::isnan(x)) return sign | 0x7e00;
  if (a >= 65520) return sign | 0x7c00;
  if (a == 0) return sign;
  int exponent = 0;
  if (a > 0) std::frexp(a, &exponent);
  const int unit = std::max(exponent - 11, -24);  // of the last bit
  const auto n = static_cast<int64_t>(std::nearbyint(std::ldexp(a, -unit)));
  // A carry out of the mantissa ends up in the exponent.
  return sign | static_cast<uint16_t>(unit == -24 && n < 1024 ? n : ((unit + 24) << 10) + n);
}

uint16_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

double e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if ((bits & 0x7f) == 0x7f) return NAN;
  const double a = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return bits & 0x80 ? -a : a;
}

// The nearest of all codes, found by looking at each.
uint8_t to_e4m3(double x) {
  const auto sign = static_cast<uint8_t>(std::signbit(x) ? 0x80 : 0);
  if (std::isnan(x)) return sign | 0x7f;
  const double a = std::min(std::fabs(x), 448.0);
  uint8_t best = 0;
  for (uint8_t code = 1; code < 0x7f; ++code) {
    const double now = std::fabs(e4m3(code) - a), before = std::fabs(e4m3(best) - a);
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  return sign | best;
}

double round_to(DType dtype, double x) {
  if (dtype == DType::kF16) return f16(to_f16(x));
  if (dtype == DType::kBF16) {
    return std::bit_cast<float>(static_cast<uint32_t>(to_bf16(static_cast<float>(x))) << 16);
  }
  return static_cast<float>(x);
}

namespace {

template <class T>
T read(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof(T));
  return v;
}

double element(DType dtype, const std::byte* row, int64_t i) {
  const DTypeInfo& t = info(dtype);
  const std::byte* block = row + i / t.block_elems * t.block_bytes;
  const int at = static_cast<int>(i % t.block_elems);
  switch (dtype) {
    case DType::kF32:
      return read<float>(block);
    case DType::kF16:
      return f16(read<uint16_t>(block));
    case DType::kBF16:
      return std::bit_cast<float>(static_cast<uint32_t>(read<uint16_t>(block)) << 16);
    case DType::kQ8_0:
      return f16(read<uint16_t>(block)) * read<int8_t>(block + 2 + at);
    case DType::kQ4_0: {
      const int byte = read<uint8_t>(block + 2 + at % 16);
      return f16(read<uint16_t>(block)) * ((at < 16 ? byte & 15 : byte >> 4) - 8);
    }
    case DType::kQ4_1: {
      const int byte = read<uint8_t>(block + 4 + at % 16);
      return f16(read<uint16_t>(block)) * (at < 16 ? byte & 15 : byte >> 4) + f16(read<uint16_t>(block + 2));
    }
    default:
      return NAN;
  }
}

bool integer(DType d) {
  return d == DType::kQ4_0 || d == DType::kQ4_1 || d == DType::kQ8_0;
}

}  // namespace

std::vector<double> dequantize_row(DType dtype, const std::byte* row, int64_t cols) {
  std::vector<double> out(cols);
  for (int64_t i = 0; i < cols; ++i) out[i] = element(dtype, row, i);
  return out;
}

std::vector<double> activations(DType weight, std::span<const float> x) {
  std::vector<double> out(x.begin(), x.end());
  if (!integer(weight)) return out;
  for (size_t start = 0; start < x.size(); start += 32) {
    float largest = 0;
    for (size_t i = start; i < start + 32; ++i) largest = std::max(largest, std::fabs(x[i]));
    const float scale = largest / 127.0f;
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    for (size_t i = start; i < start + 32; ++i)
      out[i] = static_cast<double>(scale) * std::nearbyint(x[i] * inverse);
  }
  return out;
}

Dot dot(DType weight, const std::byte* row, std::span<const float> x) {
  const std::vector<double> w = dequantize_row(weight, row, static_cast<int64_t>(x.size()));
  const std::vector<double> a = activations(weight, x);
  Dot d;
  double largest_x = 0, largest_w = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    d.value += w[i] * a[i];
    // A minimum and a scaled quantum may cancel: their parts count, not their sum.
    const double parts =
        weight == DType::kQ4_1   ? std::fabs(w[i]) + 2 * std::fabs(f16(read<uint16_t>(row + i / 32 * 20 + 2)))
        : weight == DType::kQ4_0 ? std::fabs(w[i]) + 8 * std::fabs(f16(read<uint16_t>(row + i / 32 * 18)))
                                 : std::fabs(w[i]);
    d.magnitude += parts * std::fabs(a[i]);
    largest_x = std::max(largest_x, std::fabs(static_cast<double>(x[i])));
    largest_w = std::max(largest_w, std::fabs(w[i]));
  }
  d.step = integer(weight) ? largest_w * largest_x / 127 : 0;
  return d;
}

std::vector<float> rms_norm(std::span<const float> x, std::span<const float> weight, double eps) {
  double squares = 0;
  for (const float v : x) squares += static_cast<double>(v) * v;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  std::vector<float> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = static_cast<float>(x[i] * scale * weight[i]);
  return out;
}

double activate(Activation kind, double x) {
  if (kind == Activation::kSilu) return x / (1 + std::exp(-x));
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

void rotate(std::span<double> x, std::span<const float> inv_freq, int64_t position, bool interleaved,
            double scale) {
  const size_t half = inv_freq.size();
  for (size_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * inv_freq[i];
    const double c = std::cos(static_cast<double>(angle)) * scale;
    const double s = std::sin(static_cast<double>(angle)) * scale;
    double& a = x[interleaved ? 2 * i : i];
    double& b = x[interleaved ? 2 * i + 1 : i + half];
    const double first = a * c - b * s;
    b = b * c + a * s;
    a = first;
  }
}

std::vector<double> attend(const AttentionShape& shape, std::span<const double> q,
                           const std::vector<std::vector<double>>& keys,
                           const std::vector<std::vector<double>>& values, int64_t position) {
  const int64_t first = shape.window > 0 ? std::max<int64_t>(0, position + 1 - shape.window) : 0;
  std::vector<double> score;
  double top = -INFINITY;
  for (int64_t j = first; j <= position; ++j) {
    double s = 0;
    for (int d = 0; d < shape.dim_k; ++d) s += q[d] * keys[j][d];
    s *= shape.scale;
    if (shape.soft_cap > 0) s = shape.soft_cap * std::tanh(s / shape.soft_cap);
    score.push_back(s);
    top = std::max(top, s);
  }
  double total = 0;
  std::vector<double> out(shape.dim_v);
  for (int64_t j = first; j <= position; ++j) {
    const double weight = std::exp(score[j - first] - top);
    total += weight;
    for (int d = 0; d < shape.dim_v; ++d) out[d] += weight * values[j][d];
  }
  for (double& v : out) v /= total;
  return out;
}

}  // namespace deepinfer::ref
