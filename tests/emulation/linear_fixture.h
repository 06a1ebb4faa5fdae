// What tests of CUDA's products share: double-precision sums of what the kernels read, and bounds of their
// errors.
#pragma once

#include <gtest/gtest.h>

#include "backend/cuda.h"
#include "backend/cuda/linear.h"
#include "emulation/cuda_fixture.h"

namespace deepinfer::test {

inline constexpr double kEps = 1.2e-7;

inline bool is_quantized(DType d) {
  return d == DType::kQ4_0 || d == DType::kQ4_1 || d == DType::kQ8_0;
}

// Half a unit in the last place of A, relative.
inline double eps_of(DType a) {
  return a == DType::kF16 ? 0x1p-11 : 0x1p-8;
}

struct Sum {
  double value = 0;
  double magnitude = 0;  // of all products
  double largest = 0;    // of one
};

// A row of the weight as CUDA multiplies with it: dense values rounded to A, integers exactly.
inline std::vector<double> weight_row(DType a, const Matrix& w, int64_t row) {
  std::vector<double> values = ref::dequantize_row(w.dtype, w.row(row), w.cols);
  if (!is_quantized(w.dtype))
    for (double& v : values) v = ref::round_to(a, v);
  return values;
}

template <class T>
Sum dot(const std::vector<double>& w, const T* x) {
  Sum s;
  for (size_t i = 0; i < w.size(); ++i) {
    const double product = w[i] * x[i];
    s.value += product;
    s.magnitude += std::fabs(product);
    s.largest = std::max(s.largest, std::fabs(product));
  }
  return s;
}

// project() over strided rows, with a residual, and a bias where the tokens are odd in number. `sums_of(x,
// r)`: the product's row r with a token's x; `bound(sum)`: of its error.
template <class SumsOf, class Bound>
void check_project(CudaMachine& m, DType a, Random& random, const LinearWeight& packed, int64_t tokens,
                   const std::pair<SumsOf, Bound>& expected) {
  const int64_t rows = packed.rows, cols = packed.cols, pad = tokens % 3 * 8;
  SCOPED_TRACE(testing::Message() << "[" << rows << ", " << cols << "] times " << tokens << " tokens");
  const bool with_bias = tokens % 2 == 1;
  const std::vector<float> x = rounded(a, random_floats(random, tokens * (cols + pad))),
                           before = random_floats(random, tokens * (rows + pad)),
                           bias = random_floats(random, rows);
  DeviceTensor dx(m, a, x), residual(m, DType::kF32, before), dbias(m, DType::kF32, bias);
  cuda::project(m.context, {.x = dx.rows(tokens, cols, cols + pad),
                            .weight = &packed,
                            .bias = with_bias ? dbias.tensor({rows}) : Tensor{},
                            .residual = residual.rows(tokens, rows, rows + pad)});
  const std::vector<float> after = residual.read();
  for (int64_t t = 0; t < tokens; ++t) {
    const auto sum_of = expected.first(x.data() + t * (cols + pad));
    for (int64_t r = 0; r < rows; ++r) {
      const Sum s = sum_of(r);
      const double start = before[t * (rows + pad) + r] + (with_bias ? bias[r] : 0.0);
      ASSERT_NEAR(after[t * (rows + pad) + r], start + s.value,
                  expected.second(s) + 4 * kEps * (std::fabs(start) + s.magnitude))
          << "token " << t << " row " << r;
    }
    for (int64_t i = 0; i < pad; ++i)
      ASSERT_EQ(after[t * (rows + pad) + rows + i], before[t * (rows + pad) + rows + i]);
  }
  ASSERT_EQ(m.arena.used(), 0u);
}

// linear() of a token among others and of the same alone: equal bits.
inline void check_bits_alone(CudaMachine& m, DType a, Random& random, const LinearWeight& packed,
                             int64_t tokens) {
  DeviceTensor x(m, a, random_floats(random, tokens * packed.cols));
  const auto run = [&](int64_t first, int64_t count) {
    DeviceTensor out(m, DType::kF32, static_cast<size_t>(count * packed.rows));
    cuda::linear(m.context, {.weight = &packed,
                             .x = slice_rows(x.tensor({tokens, packed.cols}), first, count),
                             .bias = {},
                             .out = out.tensor({count, packed.rows})});
    return out.read();
  };
  const std::vector<float> all = run(0, tokens);
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 1}, {tokens - 1, 1}, {5, 9}, {17, 19}}) {
    const std::vector<float> some = run(first, count);
    for (int64_t i = 0; i < count * packed.rows; ++i)
      ASSERT_EQ(some[i], all[first * packed.rows + i]) << first << " " << count << " " << i;
  }
}

struct Case {
  DType weight, activation;
};
inline std::string name_of(const testing::TestParamInfo<Case>& i) {
  return std::string(info(i.param.weight).name) + "_" + std::string(info(i.param.activation).name);
}

class CudaLinear : public testing::TestWithParam<Case> {
 protected:
  DType weight() const { return GetParam().weight; }
  DType a() const { return GetParam().activation; }
  bool quantized() const { return is_quantized(weight()); }
  int64_t columns(int64_t n) const { return quantized() ? (n + 31) / 32 * 32 : n; }

  // Of a sum in F32 in any order, over weights that the path for many tokens rounds to A first. Q4_1's
  // minimum and quanta cancel: their parts count.
  double bound(const Sum& s, int64_t cols, int64_t tokens) const {
    const double parts = weight() == DType::kQ4_1 ? 8 : 1;
    const double expanded = quantized() && (tokens > 64 || every_weight_is_rounded_) ? eps_of(a()) : 0;
    return ((static_cast<double>(cols) + 8) * kEps * parts + expanded) * s.magnitude + 1e-30;
  }
  // And over normalized activations, a few of which may round the other way.
  double bound_after_norm(const Sum& s, int64_t cols, int64_t tokens) const {
    return bound(s, cols, tokens) + 3 * 2 * eps_of(a()) * s.largest;
  }

  void project(CudaMachine& m, int64_t rows, int64_t cols, const std::vector<int64_t>& token_counts) {
    const Matrix w = random_matrix(random_, weight(), rows, cols);
    const LinearWeight packed = pack(m.context, {&w});
    std::vector<std::vector<double>> values;
    for (int64_t r = 0; r < rows; ++r) values.push_back(weight_row(a(), w, r));
    const auto row_of = [&](const float* x) { return [&values, x](int64_t r) { return dot(values[r], x); }; };
    for (const int64_t tokens : token_counts)
      check_project(m, a(), random_, packed, tokens,
                    std::pair(row_of, [&](const Sum& s) { return bound(s, cols, tokens); }));
  }

  void gate_up(CudaMachine& m, int64_t f, int64_t cols, int64_t tokens) {
    const Matrix gate = random_matrix(random_, weight(), f, cols),
                 up = random_matrix(random_, weight(), f, cols);
    const LinearWeight packed = pack(m.context, {&gate, &up}, RowOrder::kPaired);
    const Activation kind = tokens % 2 == 1 ? Activation::kSilu : Activation::kGeluTanh;
    const bool with_bias = tokens % 3 == 2;
    const std::vector<float> x = random_floats(random_, tokens * cols), norm = random_floats(random_, cols),
                             bias = random_floats(random_, 2 * f);
    DeviceTensor dx(m, DType::kF32, x), dnorm(m, DType::kF32, norm), dbias(m, DType::kF32, bias),
        out(m, a(), static_cast<size_t>(tokens * f));
    cuda::gate_up(m.context, {.hidden = dx.tensor({tokens, cols}),
                              .norm = {dnorm.tensor({cols}), 1e-5f},
                              .weight = &packed,
                              .bias = with_bias ? dbias.tensor({2 * f}) : Tensor{},
                              .activation = kind,
                              .out = out.tensor({tokens, f})});
    const std::vector<float> result = out.read();
    for (int64_t t = 0; t < tokens; ++t) {
      const std::vector<float> row =
          rounded(a(), ref::rms_norm({x.data() + t * cols, size_t(cols)}, norm, 1e-5f));
      for (int64_t r = 0; r < f; ++r) {
        const Sum g = dot(weight_row(a(), gate, r), row.data()), u = dot(weight_row(a(), up, r), row.data());
        const double gv = g.value + (with_bias ? bias[r] : 0), uv = u.value + (with_bias ? bias[f + r] : 0);
        const double act = ref::activate(kind, gv);
        const double gb = bound_after_norm(g, cols, tokens), ub = bound_after_norm(u, cols, tokens);
        // 1.13: the steepest slope of GELU, above SiLU's 1.10. The activation's exponential is good to some
        // tens of kEps; the result is rounded to A once, and once before that where cuBLASLt stores the sums.
        const double tolerance = 1.13 * gb * (std::fabs(uv) + ub) + std::fabs(act) * ub +
                                 (2 * eps_of(a()) + 64 * kEps) * std::fabs(act * uv) + 1e-7;
        ASSERT_NEAR(result[t * f + r], act * uv, tolerance)
            << "f " << f << " cols " << cols << " token " << t << " of " << tokens << " row " << r;
      }
    }
  }

  Random random_{20240731};
  bool every_weight_is_rounded_ = false;
};

inline std::vector<Case> cases() {
  std::vector<Case> all;
  for (const DType w : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ4_0, DType::kQ4_1, DType::kQ8_0})
    for (const DType a : {DType::kBF16, DType::kF16}) all.push_back({w, a});
  return all;
}
}  // namespace deepinfer::test
