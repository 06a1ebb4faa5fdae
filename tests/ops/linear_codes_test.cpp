// The matmuls of codes with scales (U4, U8, F8) against dequantize_codes: every kind of scale, group, zero
// point and order, awkward shapes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "codes_fixture.h"

namespace deepinfer::test {
namespace {

constexpr double kEps = 1.2e-7;

std::vector<float> project(Machine& m, const LinearWeight& w, std::vector<float>& x, int64_t tokens) {
  std::vector<float> y(tokens * w.rows);
  ops::project(
      m.context,
      {.x = tensor(x, {tokens, w.cols}), .weight = &w, .bias = {}, .residual = tensor(y, {tokens, w.rows})});
  return y;
}

std::vector<CodeShape> all_shapes() {
  std::vector<CodeShape> shapes;
  for (const DType dtype : {DType::kU4, DType::kU8, DType::kF8E4M3})
    for (const DType scale : {DType::kF16, DType::kBF16, DType::kF32})
      for (const int64_t group : {0, 32, 64, 128})
        for (const bool zeros : {false, true})
          for (const bool ordered : {false, true})
            if (!zeros || dtype != DType::kF8E4M3) shapes.push_back({dtype, scale, group, zeros, ordered});
  return shapes;
}

std::string name_of(const CodeShape& s) {
  return std::string(info(s.dtype).name) + "_" + std::string(info(s.scale).name) + "_group" +
         std::to_string(s.group) + (s.zeros ? "_zeros" : "") + (s.ordered ? "_ordered" : "");
}

class Codes : public testing::TestWithParam<CodeShape> {
 protected:
  Random random_{20250211};
};

// Each token alone and all together, with any number of threads, give the same bits: the right ones.
TEST_P(Codes, ProjectMatchesTheOracle) {
  Machine one(1), three(3);
  for (const Scales scales : {Scales::kOrdinary, Scales::kRowWide, Scales::kWide}) {
    CodeShape shape = GetParam();
    shape.scales = scales;
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 32}, {16, 64}, {37, 416}, {21, 512}}) {
      LinearSource s = code_source(random_, shape, cols);
      const CodeMatrix m = random_codes(random_, shape, s, rows);
      s.parts = {m.part()};
      const LinearWeight w = pack(one.context, s), w3 = pack(three.context, s);
      constexpr int64_t kTokens = 21;
      std::vector<float> x = random_floats(random_, kTokens * cols);
      const std::vector<float> together = project(three, w3, x, kTokens);
      for (int64_t first = 0, count = 1; first < kTokens; first += count, ++count) {
        std::vector<float> some(x.begin() + first * cols, x.begin() + (first + count) * cols);
        const std::vector<float> y = project(count % 2 == 1 ? one : three, w, some, count);
        ASSERT_EQ(std::memcmp(y.data(), &together[first * rows], y.size() * 4), 0)
            << count << " tokens of [" << rows << ", " << cols << "]";
      }
      for (int64_t t = 0; t < kTokens; t += 4) {
        for (int64_t r = 0; r < rows; ++r) {
          const CodeDot d = code_dot(s, s.parts[0], r, {x.data() + t * cols, size_t(cols)});
          ASSERT_NEAR(together[t * rows + r], d.value, d.bound)
              << "[" << rows << ", " << cols << "] token " << t << " row " << r << " scales " << int(scales);
        }
      }
    }
  }
}

// Three parts, of which only some have zero points of their own.
TEST_P(Codes, PartsOfAnySizeAreConcatenated) {
  Machine machine(2);
  const int64_t cols = 192;
  CodeShape shape = GetParam();
  LinearSource s = code_source(random_, shape, cols);
  const CodeMatrix a = random_codes(random_, shape, s, 5);
  shape.zeros = false;
  const CodeMatrix b = random_codes(random_, shape, s, 30), c = random_codes(random_, shape, s, 2);
  s.parts = {a.part(), b.part(), c.part()};
  const LinearWeight w = pack(machine.context, s);
  EXPECT_EQ(w.part_rows, (std::vector<int64_t>{5, 30, 2}));
  std::vector<float> x = random_floats(random_, 2 * cols);
  const std::vector<float> y = project(machine, w, x, 2);
  for (int64_t t = 0; t < 2; ++t) {
    for (int64_t r = 0; r < 37; ++r) {
      const int part = r < 5 ? 0 : r < 35 ? 1 : 2;
      const int64_t row = r < 5 ? r : r < 35 ? r - 5 : r - 35;
      const CodeDot d = code_dot(s, s.parts[part], row, {x.data() + t * cols, size_t(cols)});
      ASSERT_NEAR(y[t * 37 + r], d.value, d.bound) << t << " " << r;
    }
  }
}

// After a norm the activations differ by ulps from the reference's: a few may be quantized one step away.
double bound_after_norm(const CodeDot& d, double magnitude) {
  return d.bound + 8 * kEps * magnitude + 3 * d.step;
}

double magnitude_of(const LinearSource& s, const LinearPart& part, int64_t row, std::span<const float> x) {
  std::vector<float> w(s.cols);
  dequantize_codes(s, part, row, w.data());
  double sum = 0;
  for (int64_t j = 0; j < s.cols; ++j) sum += std::fabs(double{w[j]} * x[j]);
  return sum;
}

TEST_P(Codes, GateUpMatchesTheOracle) {
  Machine machine(3);
  const int64_t cols = 96;
  for (const Scales scales : {Scales::kOrdinary, Scales::kRowWide}) {
    for (const int64_t f : {1, 24, 33}) {
      CodeShape shape = GetParam();
      shape.scales = scales;
      LinearSource s = code_source(random_, shape, cols);
      s.order = RowOrder::kPaired;
      const CodeMatrix gate = random_codes(random_, shape, s, f), up = random_codes(random_, shape, s, f);
      s.parts = {gate.part(), up.part()};
      const LinearWeight w = pack(machine.context, s);
      for (const int64_t tokens : {1, 2, 11}) {
        std::vector<float> x = random_floats(random_, tokens * cols), out(tokens * f);
        std::vector<float> norm = random_floats(random_, cols);
        ops::gate_up(machine.context, {.hidden = tensor(x, {tokens, cols}),
                                       .norm = {tensor(norm, {cols}), 1e-5f},
                                       .weight = &w,
                                       .bias = {},
                                       .out = tensor(out, {tokens, f})});
        for (int64_t t = 0; t < tokens; ++t) {
          const std::vector<float> row = ref::rms_norm({x.data() + t * cols, size_t(cols)}, norm, 1e-5f);
          for (int64_t r = 0; r < f; ++r) {
            const CodeDot g = code_dot(s, s.parts[0], r, row), u = code_dot(s, s.parts[1], r, row);
            const double g_bound = bound_after_norm(g, magnitude_of(s, s.parts[0], r, row));
            const double u_bound = bound_after_norm(u, magnitude_of(s, s.parts[1], r, row));
            const double a = ref::activate(Activation::kSilu, g.value);
            // |act'| <= 1.13
            const double tolerance = 1.13 * g_bound * (std::fabs(u.value) + u_bound) +
                                     std::fabs(a) * u_bound + 32 * kEps * std::fabs(a * u.value) + 1e-12;
            ASSERT_NEAR(out[t * f + r], a * u.value, tolerance) << f << " " << t << " " << r;
          }
        }
      }
    }
  }
}

TEST_P(Codes, HeadComputesTheWantedRows) {
  Machine machine(2);
  const int64_t cols = 160, rows = 50, tokens = 7;
  LinearSource s = code_source(random_, GetParam(), cols);
  const CodeMatrix m = random_codes(random_, GetParam(), s, rows);
  s.parts = {m.part()};
  const LinearWeight w = pack(machine.context, s);
  std::vector<float> x = random_floats(random_, tokens * cols), norm = random_floats(random_, cols);
  Batch batch({{.tokens = {1, 2, 3, 4}, .logits = true}, {.tokens = {5, 6, 7}, .logits = true}});
  batch.logit_token = {1, 3, 6};
  batch.step.logit_token = batch.logit_token;
  std::vector<float> logits(3 * rows, -1);
  ops::head(machine.context, {.batch = &batch.step,
                              .hidden = tensor(x, {tokens, cols}),
                              .norm = {tensor(norm, {cols}), 1e-6f},
                              .weight = &w,
                              .scale = 0.5f,
                              .logits = tensor(logits, {3, rows})});
  for (size_t i = 0; i < 3; ++i) {
    const std::vector<float> row =
        ref::rms_norm({x.data() + batch.logit_token[i] * cols, size_t(cols)}, norm, 1e-6f);
    for (int64_t r = 0; r < rows; ++r) {
      const CodeDot d = code_dot(s, s.parts[0], r, row);
      ASSERT_NEAR(logits[i * rows + r], 0.5 * d.value,
                  bound_after_norm(d, magnitude_of(s, s.parts[0], r, row)));
    }
  }
}

// What F16 holds of the scales is read back bit for bit.
TEST_P(Codes, EmbedReadsTheOraclesValues) {
  Machine machine(2);
  for (const int64_t cols : {160, 256}) {
    LinearSource s = code_source(random_, GetParam(), cols);
    const CodeMatrix m = random_codes(random_, GetParam(), s, 37);
    s.parts = {m.part()};
    const LinearWeight w = pack(machine.context, s);
    Batch batch({{.slot = 0, .tokens = {0, 15, 16, 36}}});
    std::vector<float> out(4 * cols), expected(cols);
    ops::embed(machine.context, {&batch.step, nullptr, &w, tensor(out, {4, cols})});
    const bool exact = s.dtype == DType::kF8E4M3 || s.scale_dtype != DType::kF32 || s.groups() == 1;
    for (int t = 0; t < 4; ++t) {
      dequantize_codes(s, s.parts[0], batch.token[t], expected.data());
      for (int64_t i = 0; i < cols; ++i) {
        const double bound = exact ? 0 : std::ldexp(std::fabs(expected[i]), -11);
        ASSERT_NEAR(out[t * cols + i], expected[i], bound) << t << " " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Codes, testing::ValuesIn(all_shapes()),
                         [](const auto& i) { return name_of(i.param); });

// One matrix of equal codes, scales of 1, zero points of `zero`.
struct Constant {
  Constant(DType dtype, uint8_t code, int16_t zero, int64_t rows, int64_t cols)
      : codes(rows * row_bytes(dtype, cols), std::byte{code}),
        scales(rows, 1.0f),
        zeros(rows, zero),
        source{.dtype = dtype, .cols = cols, .group = cols, .scale_dtype = DType::kF32} {
    source.parts = {{.data = codes.data(), .rows = rows, .scale = scales.data(), .zero = zeros.data()}};
    if (dtype == DType::kF8E4M3) source.parts[0].zero = nullptr;
  }
  std::vector<std::byte> codes;
  std::vector<float> scales;
  std::vector<int16_t> zeros;
  LinearSource source;
};

// The largest and smallest codes and zero points everywhere: no accumulator overflows, every sum is exact.
TEST(CodesEdges, ExtremeCodesAndZeroPointsAreExact) {
  Machine machine(1);
  for (const int64_t cols : {512, 480})
    for (const DType dtype : {DType::kU4, DType::kU8}) {
      for (const int code : {0x00, 0x77, 0x7f, 0x80, 0xff}) {
        for (const int zero : {0, 7, 8, 16, 128, 255, 256, 1024, -1024}) {
          if (dtype == DType::kU4 && (zero < 0 || zero > 255)) continue;
          const Constant c(dtype, static_cast<uint8_t>(code), static_cast<int16_t>(zero), 16, cols);
          const LinearWeight w = pack(machine.context, c.source);
          for (const float value : {127.0f, -127.0f}) {
            std::vector<float> x(5 * cols, value);
            const std::vector<float> y = project(machine, w, x, 5);
            std::vector<float> row(cols);
            dequantize_codes(c.source, c.source.parts[0], 0, row.data());
            const double expected = std::accumulate(row.begin(), row.end(), 0.0) * value;
            for (const float v : y) ASSERT_EQ(v, expected) << info(dtype).name << " " << code << " " << zero;
          }
        }
      }
    }
}

// Every code of E4M3, subnormal ones too, one at a time.
TEST(CodesEdges, EveryF8IsExact) {
  Machine machine(1);
  const int64_t cols = 256;
  for (const int64_t group : {cols, int64_t{128}, int64_t{96}}) {
    std::vector<std::byte> codes(cols);
    for (int64_t j = 0; j < cols; ++j) codes[j] = std::byte((j & 0x7f) == 0x7f ? 0 : j);
    const std::vector<float> scales = {0.7f, -1.3e-5f, 31.0f};
    LinearSource s{.dtype = DType::kF8E4M3, .cols = cols, .group = group, .scale_dtype = DType::kF32};
    s.parts = {{.data = codes.data(), .rows = 1, .scale = scales.data()}};
    const LinearWeight w = pack(machine.context, s);
    std::vector<float> expected(cols), x(cols * cols);
    dequantize_codes(s, s.parts[0], 0, expected.data());
    for (int64_t j = 0; j < cols; ++j) x[j * cols + j] = 1;
    const std::vector<float> many = project(machine, w, x, cols);
    for (int64_t j = 0; j < cols; ++j) {
      std::vector<float> alone(x.begin() + j * cols, x.begin() + (j + 1) * cols);
      ASSERT_EQ(project(machine, w, alone, 1)[0], expected[j]) << j;
      ASSERT_EQ(many[j], expected[j]) << j;
    }
  }
}

TEST(CodesEdges, F8TakesAnyEvenNumberOfColumns) {
  Machine machine(2);
  Random random(5);
  for (const int64_t cols : {2, 14, 34, 130}) {
    const CodeShape shape{.dtype = DType::kF8E4M3, .scale = DType::kF32, .group = 32};
    LinearSource s = code_source(random, shape, cols);
    const CodeMatrix m = random_codes(random, shape, s, 19);
    s.parts = {m.part()};
    const LinearWeight w = pack(machine.context, s);
    std::vector<float> x = random_floats(random, 9 * cols);
    for (const int64_t tokens : {1, 9}) {
      const std::vector<float> y = project(machine, w, x, tokens);
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t r = 0; r < 19; ++r) {
          const CodeDot d = code_dot(s, s.parts[0], r, {x.data() + t * cols, size_t(cols)});
          ASSERT_NEAR(y[t * 19 + r], d.value, d.bound) << cols << " " << t << " " << r;
        }
    }
  }
}

// Shares of BF16's memory: 4.5 bits, 4.75 with zero points; 8.5 and 9; less where scales are for 128 columns;
// F8 a byte and its scales.
TEST(CodesEdges, MemoryIsWhatTheLayoutsPromise) {
  Machine machine(1);
  Random random(6);
  const int64_t rows = 128, cols = 1024;
  const auto bits = [&](const CodeShape& shape) {
    LinearSource s = code_source(random, shape, cols);
    const CodeMatrix m = random_codes(random, shape, s, rows);
    s.parts = {m.part()};
    return static_cast<double>(pack(machine.context, s).packed.size()) * 8 / (rows * cols);
  };
  EXPECT_DOUBLE_EQ(bits({DType::kU4, DType::kF16, 64}), 4.5);
  EXPECT_DOUBLE_EQ(bits({DType::kU4, DType::kF16, 64, true}), 4.75);
  EXPECT_DOUBLE_EQ(bits({DType::kU4, DType::kF16, 128}), 4.125);
  EXPECT_DOUBLE_EQ(bits({DType::kU4, DType::kBF16, 128}), 4.125);  // no scale a row: F16 holds them
  EXPECT_DOUBLE_EQ(bits({DType::kU4, DType::kF16, 128, true}), 4.1875);
  EXPECT_DOUBLE_EQ(bits({DType::kU4, DType::kF32, 128, true}), 4.1875 + 32.0 / cols);
  EXPECT_DOUBLE_EQ(bits({DType::kU8, DType::kF16, 32}), 8.5);
  EXPECT_DOUBLE_EQ(bits({DType::kU8, DType::kF16, 32, true}), 9.0);
  EXPECT_DOUBLE_EQ(bits({DType::kU8, DType::kF16, 0}), 8.125);
  EXPECT_DOUBLE_EQ(bits({DType::kU8, DType::kF16, 256, true}), 8.25);
  EXPECT_DOUBLE_EQ(bits({DType::kF8E4M3, DType::kF32, 0}), 8 + 32.0 / cols);
  EXPECT_DOUBLE_EQ(bits({DType::kF8E4M3, DType::kF32, 128}), 8.25);
}

// Zero points that are all in the middle cost nothing, wherever they stand.
TEST(CodesEdges, ZeroPointsInTheMiddleAreSymmetric) {
  Machine machine(1);
  for (const DType dtype : {DType::kU4, DType::kU8}) {
    const int16_t middle = dtype == DType::kU4 ? 8 : 128;
    const Constant c(dtype, 0x21, middle, 16, 64);
    LinearSource plain = c.source;
    plain.zero = middle;
    plain.parts[0].zero = nullptr;
    LinearSource moved = plain;
    moved.zero = static_cast<int16_t>(middle - 1);
    const LinearWeight a = pack(machine.context, c.source), b = pack(machine.context, plain);
    ASSERT_EQ(a.packed.size(), b.packed.size());
    EXPECT_EQ(std::memcmp(a.packed.data(), b.packed.data(), a.packed.size()), 0);
    EXPECT_GT(pack(machine.context, moved).packed.size(), a.packed.size());
  }
}

TEST(CodesEdges, WhatCannotBePackedIsRefused) {
  Machine machine(1);
  const auto error = [&](const LinearSource& s) {
    const Result<LinearWeight> r = ops::pack_linear(machine.context, s);
    return r.ok() ? std::string("packed") : r.error().message;
  };
  const auto changed = [](const Constant& c, const auto& change) {
    LinearSource s = c.source;
    change(s);
    return s;
  };
  using testing::HasSubstr;
  const Constant u4(DType::kU4, 0, 3, 4, 64), f8(DType::kF8E4M3, 0x7f, 0, 4, 64);
  EXPECT_EQ(error(u4.source), "packed");
  EXPECT_THAT(error(changed(u4, [](auto& s) { s.cols = s.group = 48; })), HasSubstr("multiple of 32"));
  EXPECT_THAT(error(changed(u4, [](auto& s) { s.group = 48; })), HasSubstr("groups: got 48 of 64"));
  EXPECT_THAT(error(changed(u4, [](auto& s) { s.group = 0; })), HasSubstr("groups: got 0"));
  EXPECT_THAT(error(changed(u4, [](auto& s) { s.scale_dtype = DType::kI8; })), HasSubstr("scales: got I8"));
  EXPECT_THAT(error(changed(u4, [](auto& s) { s.parts[0].scale = nullptr; })), HasSubstr("got none for 4"));
  EXPECT_THAT(error(changed(u4, [](auto& s) { s.column_order = {0, 1}; })), HasSubstr("got 2 entries"));
  EXPECT_THAT(error(changed(u4, [](auto& s) { s.column_order.assign(64, 64); })), HasSubstr("column 64 of"));
  EXPECT_THAT(error(Constant(DType::kU4, 0, 256, 4, 64).source), HasSubstr("zero points: got 256 to 256"));
  EXPECT_THAT(error(Constant(DType::kU8, 0, 1025, 4, 64).source), HasSubstr("expected -1024 to 1024"));
  EXPECT_THAT(error(f8.source), HasSubstr("not a number"));
  EXPECT_THAT(error(changed(f8, [](auto& s) { s.zero = 1; })), HasSubstr("F8_E4M3 has none"));
}

}  // namespace
}  // namespace deepinfer::test
