// What is packed here comes back through the readers of checkpoints (src/quant) value by value.
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "base/json_file.h"
#include "quant/codes.h"
#include "quant/method.h"
#include "quantize/output.h"
#include "quantize/pack.h"
#include "random_matrix.h"

namespace deepinfer::quantize {
namespace {

constexpr int64_t kRows = 40, kCols = 128, kGroup = 32;

DType dtype_of(const std::string& name) {
  for (const DType d : {DType::kI32, DType::kF16, DType::kBF16, DType::kF32, DType::kF8E4M3})
    if (name == info(d).name) return d;
  throw std::runtime_error("dtype " + name);
}

// The layer's tensors as an opened checkpoint has them.
TensorMap tensors_of(const std::vector<OutTensor>& packed) {
  TensorMap map;
  for (const OutTensor& t : packed)
    if (t.dtype != "I64")  // of the format, not built: the shape of compressed-tensors
      map[t.name] = {.dtype = dtype_of(t.dtype),
                     .shape = t.shape,
                     .data = t.data.data(),
                     .bytes = t.data.size(),
                     .origin = t.name};
  return map;
}

void expect_the_same_values(Method method, bool act_order, const QuantizedLinear& q,
                            void (*pack)(const QuantizedLinear&, std::vector<OutTensor>&)) {
  Plan plan;
  plan.options.method = method;
  plan.options.act_order = act_order;
  plan.group = q.coded.spec.group;
  plan.config_json = "{}";
  const auto config = config_of_result(plan);
  ASSERT_TRUE(config) << config.error().message;
  const boost::json::value value = boost::json::parse(*config);
  const auto object = as_object(value.at("quantization_config"), "config.json: quantization_config");
  ASSERT_TRUE(object);
  const auto reader = open_quantization(*object, "");
  ASSERT_TRUE(reader) << reader.error().message;
  EXPECT_EQ((*reader)->kind(), method_name(method));
  std::vector<OutTensor> packed;
  pack(q, packed);
  const TensorMap tensors = tensors_of(packed);
  const auto read = (*reader)->read(
      tensors, {.layer = "model.layers.0.mlp.up_proj", .rows = kRows, .cols = kCols}, nullptr);
  ASSERT_TRUE(read) << read.error().message;
  ASSERT_TRUE(read->has_value());
  const LinearSource source = (*read)->source();
  const std::vector<float> want = q.dequantize();
  std::vector<float> row(kCols);
  for (int64_t r = 0; r < kRows; ++r) {
    dequantize_codes(source, source.parts.front(), r, row.data());
    for (int64_t j = 0; j < kCols; ++j) ASSERT_EQ(row[j], want[r * kCols + j]) << r << ", " << j;
  }
}

QuantizedLinear rounded(const RoundSpec& spec) {
  const std::vector<float> w = random_values(kRows * kCols, 95);
  return {.name = "model.layers.0.mlp.up_proj",
          .coded = round_rows(spec, w.data(), kRows, kCols),
          .order = {},
          .bias = {}};
}

TEST(Loaders, ReadGptq) {
  QuantizedLinear q = rounded({.dtype = DType::kU4, .group = kGroup});
  expect_the_same_values(Method::kGptq, false, q, pack_gptq);
  for (int64_t j = 0; j < kCols; ++j) q.order.push_back(static_cast<int32_t>(j * 5 % kCols));
  expect_the_same_values(Method::kGptq, true, q, pack_gptq);
}

TEST(Loaders, ReadGptqOfWholeRows) {
  expect_the_same_values(Method::kGptq, false, rounded({.dtype = DType::kU4, .group = 0}), pack_gptq);
}

TEST(Loaders, ReadAwq) {
  expect_the_same_values(Method::kAwq, false,
                         rounded({.dtype = DType::kU4, .group = kGroup, .symmetric = false}), pack_awq);
}

TEST(Loaders, ReadInt4AndFp8) {
  expect_the_same_values(Method::kInt4, false,
                         rounded({.dtype = DType::kU4, .group = kGroup, .scale_dtype = DType::kBF16}),
                         pack_int4);
  expect_the_same_values(Method::kInt4, false,
                         rounded({.dtype = DType::kU4, .group = 0, .scale_dtype = DType::kBF16}), pack_int4);
  expect_the_same_values(Method::kFp8, false,
                         rounded({.dtype = DType::kF8E4M3, .group = 0, .scale_dtype = DType::kBF16}),
                         pack_fp8);
}

}  // namespace
}  // namespace deepinfer::quantize
