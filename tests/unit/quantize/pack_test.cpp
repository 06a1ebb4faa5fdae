// The layouts as their readers see them, unpacked here the way those programs do.
#include "quantize/pack.h"

#include <gtest/gtest.h>

#include <cstring>

#include "random_matrix.h"

namespace deepinfer::quantize {
namespace {

constexpr int64_t kRows = 24, kCols = 96, kGroup = 32;

QuantizedLinear quantized(bool symmetric, DType dtype = DType::kU4) {
  const std::vector<float> w = random_values(kRows * kCols, 91);
  const RoundSpec spec{.dtype = dtype, .group = dtype == DType::kU4 ? kGroup : 0, .symmetric = symmetric};
  return {.name = "w", .coded = round_rows(spec, w.data(), kRows, kCols), .order = {}, .bias = {}};
}

const OutTensor& named(const std::vector<OutTensor>& all, const std::string& name) {
  for (const OutTensor& t : all)
    if (t.name == name) return t;
  throw std::runtime_error("no tensor " + name);
}

int nibble(const OutTensor& t, int64_t word, int64_t place) {
  uint32_t bits;
  std::memcpy(&bits, t.data.data() + word * 4, 4);
  return static_cast<int>(bits >> place * 4 & 15);
}

int code(const QuantizedLinear& q, int64_t row, int64_t col) {
  return get_u4(q.coded.codes.data() + row * kCols / 2, col);
}

using Shape = std::vector<int64_t>;

TEST(Pack, GptqVersion1) {
  const QuantizedLinear q = quantized(true);
  std::vector<OutTensor> out;
  pack_gptq(q, out);
  const OutTensor &weight = named(out, "w.qweight"), &zeros = named(out, "w.qzeros");
  const OutTensor &scales = named(out, "w.scales"), &indices = named(out, "w.g_idx");
  EXPECT_EQ(weight.shape, (Shape{kCols / 8, kRows}));
  EXPECT_EQ(zeros.shape, (Shape{kCols / kGroup, kRows / 8}));
  EXPECT_EQ(scales.shape, (Shape{kCols / kGroup, kRows}));
  EXPECT_EQ(indices.shape, (Shape{kCols}));
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t j = 0; j < kCols; ++j) {
      ASSERT_EQ(nibble(weight, j / 8 * kRows + r, j % 8), code(q, r, j));
      ASSERT_EQ(nibble(zeros, j / kGroup * (kRows / 8) + r / 8, r % 8), 7);
      ASSERT_EQ(load_scale(DType::kF16, scales.data.data(), j / kGroup * kRows + r),
                load_scale(DType::kF16, q.coded.scales.data(), r * (kCols / kGroup) + j / kGroup));
    }
}

TEST(Pack, GptqInAnotherOrder) {
  QuantizedLinear q = quantized(true);
  for (int64_t j = 0; j < kCols; ++j) q.order.push_back(static_cast<int32_t>(j * 5 % kCols));
  std::vector<OutTensor> out;
  pack_gptq(q, out);
  const OutTensor &weight = named(out, "w.qweight"), &indices = named(out, "w.g_idx");
  for (int64_t j = 0; j < kCols; ++j) {
    const int64_t column = q.order[j];
    int32_t group;
    std::memcpy(&group, indices.data.data() + column * 4, 4);
    ASSERT_EQ(group, j / kGroup);
    for (int64_t r = 0; r < kRows; ++r)
      ASSERT_EQ(nibble(weight, column / 8 * kRows + r, column % 8), code(q, r, j));
  }
}

TEST(Pack, AwqGemm) {
  const QuantizedLinear q = quantized(false);
  std::vector<OutTensor> out;
  pack_awq(q, out);
  const OutTensor &weight = named(out, "w.qweight"), &zeros = named(out, "w.qzeros");
  EXPECT_EQ(weight.shape, (Shape{kCols, kRows / 8}));
  EXPECT_EQ(zeros.shape, (Shape{kCols / kGroup, kRows / 8}));
  EXPECT_EQ(named(out, "w.scales").shape, (Shape{kCols / kGroup, kRows}));
  constexpr int64_t kPlace[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // of output features in a word
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t j = 0; j < kCols; ++j) {
      ASSERT_EQ(nibble(weight, j * (kRows / 8) + r / 8, kPlace[r % 8]), code(q, r, j));
      ASSERT_EQ(nibble(zeros, j / kGroup * (kRows / 8) + r / 8, kPlace[r % 8]),
                q.coded.zeros[r * (kCols / kGroup) + j / kGroup]);
    }
}

TEST(Pack, CompressedTensors) {
  const QuantizedLinear q = quantized(true);
  std::vector<OutTensor> out;
  pack_int4(q, out);
  const OutTensor &weight = named(out, "w.weight_packed"), &shape = named(out, "w.weight_shape");
  EXPECT_EQ(weight.shape, (Shape{kRows, kCols / 8}));
  EXPECT_EQ(named(out, "w.weight_scale").shape, (Shape{kRows, kCols / kGroup}));
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t j = 0; j < kCols; ++j)
      ASSERT_EQ(nibble(weight, r * (kCols / 8) + j / 8, j % 8), code(q, r, j));
  int64_t extents[2];
  ASSERT_EQ(shape.data.size(), sizeof extents);
  std::memcpy(extents, shape.data.data(), sizeof extents);
  EXPECT_EQ(extents[0], kRows);
  EXPECT_EQ(extents[1], kCols);
}

TEST(Pack, Fp8) {
  const QuantizedLinear q = quantized(true, DType::kF8E4M3);
  std::vector<OutTensor> out;
  pack_fp8(q, out);
  EXPECT_EQ(named(out, "w.weight").dtype, "F8_E4M3");
  EXPECT_EQ(named(out, "w.weight").shape, (Shape{kRows, kCols}));
  EXPECT_EQ(named(out, "w.weight").data, q.coded.codes);
  EXPECT_EQ(named(out, "w.weight_scale").shape, (Shape{kRows, 1}));
}

}  // namespace
}  // namespace deepinfer::quantize
