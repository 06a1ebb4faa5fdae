// project, gate_up and head against tests/ref, for every weight type and awkward shapes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fixture.h"

namespace deepinfer::test {
namespace {

constexpr double kEps = 1.2e-7;
constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ4_0, DType::kQ4_1, DType::kQ8_0};

// Of a sum of n products in F32, in any order: (n + a few) eps times the sum of magnitudes.
double bound(const ref::Dot& d, int64_t cols) {
  return (static_cast<double>(cols) + 8) * kEps * d.magnitude + 1e-30;
}

class Linear : public testing::TestWithParam<DType> {
 protected:
  int64_t block() const { return info(GetParam()).block_elems; }
  Random random_{20240731};
};

TEST_P(Linear, ProjectMatchesDoublePrecision) {
  Machine m(2);
  const int64_t odd = block() == 1 ? 7 : 32;
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{16, 32}, {1, odd}, {33, 3 * odd}, {40, 576}}) {
    const Matrix w = random_matrix(random_, GetParam(), rows, cols);
    const LinearWeight packed = pack(m.context, {&w});
    for (const int64_t tokens : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 17, 33, 300}) {
      const bool with_bias = tokens % 2 == 1;
      const int64_t pad = tokens % 3;  // strided rows
      std::vector<float> x = random_floats(random_, tokens * (cols + pad) + 1);
      std::vector<float> residual = random_floats(random_, tokens * (rows + pad) + 1), before = residual;
      std::vector<float> bias = random_floats(random_, rows);
      ProjectParams p{.x = tensor(x, {tokens, cols}),
                      .weight = &packed,
                      .bias = with_bias ? tensor(bias, {rows}) : Tensor{},
                      .residual = tensor(residual, {tokens, rows})};
      p.x.stride[0] += pad;
      p.residual.stride[0] += pad;
      ops::project(m.context, p);
      for (int64_t t = 0; t < tokens; t += tokens > 50 ? 37 : 1) {
        for (int64_t r = 0; r < rows; ++r) {
          const ref::Dot d = ref::dot(GetParam(), w.row(r), {x.data() + t * (cols + pad), size_t(cols)});
          const double start = before[t * (rows + pad) + r] + (with_bias ? bias[r] : 0.0);
          const double tolerance = bound(d, cols) + 4 * kEps * (std::fabs(start) + d.magnitude);
          ASSERT_NEAR(residual[t * (rows + pad) + r], start + d.value, tolerance)
              << info(GetParam()).name << " [" << rows << ", " << cols << "] token " << t << " row " << r;
        }
        for (int64_t i = 0; i < pad; ++i)
          ASSERT_EQ(residual[t * (rows + pad) + rows + i], before[t * (rows + pad) + rows + i]);
      }
    }
  }
}

// After a norm the activations differ by ulps from the reference's, so a few of them may be quantized one
// step away.
double bound_after_norm(const ref::Dot& d, int64_t cols) {
  return bound(d, cols) + 8 * kEps * d.magnitude + 3 * d.step;
}

TEST_P(Linear, GateUpMatchesDoublePrecision) {
  Machine m(3);
  const int64_t cols = 96;
  for (const int64_t f : {1, 16, 24, 80}) {
    const Matrix gate = random_matrix(random_, GetParam(), f, cols),
                 up = random_matrix(random_, GetParam(), f, cols);
    const LinearWeight packed = pack(m.context, {&gate, &up}, RowOrder::kPaired);
    for (const int64_t tokens : {1, 2, 3, 8, 11}) {
      const Activation kind = tokens % 2 == 1 ? Activation::kSilu : Activation::kGeluTanh;
      std::vector<float> x = random_floats(random_, tokens * cols), out(tokens * f);
      std::vector<float> norm = random_floats(random_, cols), bias = random_floats(random_, 2 * f);
      const bool with_bias = tokens % 3 == 2;
      ops::gate_up(m.context, {.hidden = tensor(x, {tokens, cols}),
                               .norm = {tensor(norm, {cols}), 1e-5f},
                               .weight = &packed,
                               .bias = with_bias ? tensor(bias, {2 * f}) : Tensor{},
                               .activation = kind,
                               .out = tensor(out, {tokens, f})});
      for (int64_t t = 0; t < tokens; ++t) {
        const std::vector<float> row = ref::rms_norm({x.data() + t * cols, size_t(cols)}, norm, 1e-5f);
        for (int64_t r = 0; r < f; ++r) {
          const ref::Dot g = ref::dot(GetParam(), gate.row(r), row), u = ref::dot(GetParam(), up.row(r), row);
          const double gv = g.value + (with_bias ? bias[r] : 0), uv = u.value + (with_bias ? bias[f + r] : 0);
          const double a = ref::activate(kind, gv);
          // |act'| <= 1.13
          const double tolerance =
              1.13 * bound_after_norm(g, cols) * (std::fabs(uv) + bound_after_norm(u, cols)) +
              std::fabs(a) * bound_after_norm(u, cols) + 32 * kEps * std::fabs(a * uv) + 1e-12;
          ASSERT_NEAR(out[t * f + r], a * uv, tolerance)
              << info(GetParam()).name << " f " << f << " token " << t;
        }
      }
    }
  }
}

TEST_P(Linear, HeadComputesTheWantedRows) {
  Machine m(2);
  const int64_t cols = 64, rows = 50, tokens = 7;
  const Matrix w = random_matrix(random_, GetParam(), rows, cols);
  const LinearWeight packed = pack(m.context, {&w});
  std::vector<float> x = random_floats(random_, tokens * cols), norm = random_floats(random_, cols);
  Batch batch({{.tokens = {1, 2, 3, 4}, .logits = true}, {.tokens = {5, 6, 7}, .logits = true}});
  batch.logit_token = {1, 3, 6};
  batch.step.logit_token = batch.logit_token;
  std::vector<float> logits(3 * rows, -1);
  ops::head(m.context, {.batch = &batch.step,
                        .hidden = tensor(x, {tokens, cols}),
                        .norm = {tensor(norm, {cols}), 1e-6f},
                        .weight = &packed,
                        .scale = 0.5f,
                        .logits = tensor(logits, {3, rows})});
  for (size_t s = 0; s < 3; ++s) {
    const std::vector<float> row =
        ref::rms_norm({x.data() + batch.logit_token[s] * cols, size_t(cols)}, norm, 1e-6f);
    for (int64_t r = 0; r < rows; ++r) {
      const ref::Dot d = ref::dot(GetParam(), w.row(r), row);
      ASSERT_NEAR(logits[s * rows + r], 0.5 * d.value, bound_after_norm(d, cols));
    }
  }
}

// Rows of several parts follow each other without a gap.
TEST_P(Linear, PartsOfAnySizeAreConcatenated) {
  Machine m(2);
  const int64_t cols = 64, tokens = 2;
  const Matrix a = random_matrix(random_, GetParam(), 5, cols),
               b = random_matrix(random_, GetParam(), 30, cols),
               c = random_matrix(random_, GetParam(), 2, cols);
  const LinearWeight packed = pack(m.context, {&a, &b, &c});
  EXPECT_EQ(packed.part_rows, (std::vector<int64_t>{5, 30, 2}));
  std::vector<float> x = random_floats(random_, tokens * cols), y(tokens * 37);
  ops::project(
      m.context,
      {.x = tensor(x, {tokens, cols}), .weight = &packed, .bias = {}, .residual = tensor(y, {tokens, 37})});
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < 37; ++r) {
      const std::byte* row = r < 5 ? a.row(r) : r < 35 ? b.row(r - 5) : c.row(r - 35);
      const ref::Dot d = ref::dot(GetParam(), row, {x.data() + t * cols, size_t(cols)});
      ASSERT_NEAR(y[t * 37 + r], d.value, bound(d, cols) + 4 * kEps * d.magnitude) << t << " " << r;
    }
  }
}

TEST_P(Linear, EmbedReadsTheExactValues) {
  Machine m(2);
  const int64_t vocab = 37, cols = 96;
  const Matrix w = random_matrix(random_, GetParam(), vocab, cols);
  const LinearWeight packed = pack(m.context, {&w});
  std::vector<int32_t> last = {3, 36, 20};
  const SlotTable slots{make_tensor(last.data(), DType::kI32, {3})};
  Batch batch({{.slot = 2, .tokens = {kTokenFromSlot}},
               {.slot = 1, .tokens = {kTokenFromSlot}},
               {.slot = 0, .tokens = {0, 15, 16, 36}}});
  std::vector<float> out(6 * cols);
  ops::embed(m.context, {&batch.step, &slots, &packed, tensor(out, {6, cols})});
  const int32_t expected[] = {20, 36, 0, 15, 16, 36};
  for (int t = 0; t < 6; ++t) {
    const std::vector<double> row = ref::dequantize_row(GetParam(), w.row(expected[t]), cols);
    for (int64_t i = 0; i < cols; ++i)
      ASSERT_EQ(out[t * cols + i], static_cast<float>(row[i])) << t << " " << i;
  }
  batch.token[2] = 37;
  EXPECT_THROW(ops::embed(m.context, {&batch.step, &slots, &packed, tensor(out, {6, cols})}), InternalError);
}

// The largest nibbles and int8s everywhere: no accumulator overflows.
class IntegerLinear : public Linear {};

TEST_P(IntegerLinear, ExtremeValuesDoNotOverflow) {
  Machine m(1);
  const int64_t cols = 2048;
  for (const int fill : {0x00, 0x7f, 0x80, 0xff}) {
    Matrix w = random_matrix(random_, GetParam(), 16, cols);
    const int header = info(GetParam()).block_bytes - (GetParam() == DType::kQ8_0 ? 32 : 16);
    for (size_t at = 0; at < w.data.size(); at += info(GetParam()).block_bytes)
      std::memset(w.data.data() + at + header, fill, info(GetParam()).block_bytes - header);
    const LinearWeight packed = pack(m.context, {&w});
    for (const float value : {1.0f, -1.0f}) {
      std::vector<float> x(5 * cols, value), y(5 * 16);
      ops::project(
          m.context,
          {.x = tensor(x, {5, cols}), .weight = &packed, .bias = {}, .residual = tensor(y, {5, 16})});
      for (int64_t r = 0; r < 16; ++r) {
        const ref::Dot d = ref::dot(GetParam(), w.row(r), {x.data(), size_t(cols)});
        for (int64_t t = 0; t < 5; ++t)
          ASSERT_NEAR(y[t * 16 + r], d.value, bound(d, cols) + 4 * kEps * d.magnitude)
              << fill << " " << value;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Linear, testing::ValuesIn(kTypes),
                         [](const auto& i) { return std::string(deepinfer::info(i.param).name); });

INSTANTIATE_TEST_SUITE_P(Types, IntegerLinear, testing::Values(DType::kQ4_0, DType::kQ4_1, DType::kQ8_0),
                         [](const auto& i) { return std::string(deepinfer::info(i.param).name); });

TEST(Pack, RefusesWhatItCannotPack) {
  Machine m(1);
  const float data[64] = {};
  const auto error = [&](LinearSource s) {
    const Result<LinearWeight> r = ops::pack_linear(m.context, s);
    return r.ok() ? std::string("packed") : r.error().message;
  };
  EXPECT_THAT(error({.dtype = DType::kI32, .cols = 4, .parts = {{data, 1}}}), testing::HasSubstr("I32"));
  EXPECT_THAT(error({.dtype = DType::kQ4_0, .cols = 33, .parts = {{data, 1}}}),
              testing::HasSubstr("multiple of 32"));
  EXPECT_THAT(error({.dtype = DType::kF32, .cols = 0, .parts = {{data, 1}}}), testing::HasSubstr("columns"));
  EXPECT_THAT(error({.dtype = DType::kF32, .cols = 4, .parts = {}}), testing::HasSubstr("part"));
  EXPECT_THAT(error({.dtype = DType::kF32, .cols = 4, .parts = {{nullptr, 1}}}), testing::HasSubstr("rows"));
  EXPECT_THAT(error({.dtype = DType::kF32, .cols = 4, .parts = {{data, INT64_MAX / 4}}}),
              testing::HasSubstr("rows"));
  EXPECT_THAT(
      error({.dtype = DType::kF32, .cols = 4, .parts = {{data, 2}, {data, 1}}, .order = RowOrder::kPaired}),
      testing::HasSubstr("two of equal size"));
  m.context.device.kind = Device::Kind::kCuda;
  EXPECT_THAT(error({.dtype = DType::kF32, .cols = 4, .parts = {{data, 1}}}), testing::HasSubstr("no CUDA"));
}

}  // namespace
}  // namespace deepinfer::test
