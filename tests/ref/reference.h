// What the operations mean, as naive loops in double precision. Slow and plain: the oracle of tests/ops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ops/params.h"
#include "tensor/dtype.h"

namespace deepinfer::ref {

double f16(uint16_t bits);
uint16_t to_f16(double x);  // to the nearest, ties to even
uint16_t to_bf16(float x);
double e4m3(uint8_t bits);
uint8_t to_e4m3(double x);               // to the nearest, ties to even; beyond 448 is 448
double round_to(DType dtype, double x);  // F32, F16, BF16

// A row as it stands in a file, [cols] of dtype.
std::vector<double> dequantize_row(DType dtype, const std::byte* row, int64_t cols);

// What an integer kernel multiplies with: int8 with an F32 scale per 32. Float kernels take x as it is.
std::vector<double> activations(DType weight, std::span<const float> x);

// The dot product, and what bounds its error: the sum of the magnitudes of all products, and the largest
// step of the quantized activations times the largest weight.
struct Dot {
  double value = 0;
  double magnitude = 0;
  double step = 0;
};
Dot dot(DType weight, const std::byte* row, std::span<const float> x);

std::vector<float> rms_norm(std::span<const float> x, std::span<const float> weight, double eps);
double activate(Activation kind, double x);

// One head in place; cos and sin of position * inv_freq, rounded to F32 as the operation's table is.
void rotate(std::span<double> x, std::span<const float> inv_freq, int64_t position, bool interleaved,
            double scale);

struct AttentionShape {
  int dim_k = 0, dim_v = 0;
  double scale = 1, soft_cap = 0;
  int64_t window = 0;  // 0: all
};
// One query at `position`; keys [positions][dim_k], values [positions][dim_v].
std::vector<double> attend(const AttentionShape& shape, std::span<const double> q,
                           const std::vector<std::vector<double>>& keys,
                           const std::vector<std::vector<double>>& values, int64_t position);

}  // namespace deepinfer::ref
