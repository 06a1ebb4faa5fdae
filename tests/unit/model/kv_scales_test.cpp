// What a checkpoint says about its KV cache, and that it is heeded.
#include "model/kv_scales.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "engine/llm.h"
#include "model/random_checkpoint.h"
#include "support/model_harness.h"
#include "temp_folder.h"

namespace deepinfer {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const std::string kAttention = "model.layers.0.self_attn.";

void add(Weights& weights, const std::string& name, float value, std::vector<int64_t> shape = {}) {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  Buffer data = std::move(Buffer::allocate(n * sizeof(float))).value();
  for (int64_t i = 0; i < n; ++i) std::memcpy(data.data() + i * sizeof(float), &value, sizeof value);
  RawTensor t{.dtype = DType::kF32, .shape = std::move(shape), .data = data.data()};
  t.bytes = n * sizeof(float);
  t.origin = "m.safetensors: " + name;
  weights.copies.push_back(std::move(data));
  weights.tensors[name] = t;
}

TEST(KvScalesOfACheckpoint, UnderEachOfTheirNames) {
  const std::pair<const char*, const char*> names[] = {{"k_scale", "v_scale"},
                                                       {"attn.k_scale", "attn.v_scale"},
                                                       {"k_proj.k_scale", "v_proj.v_scale"},
                                                       {"k_proj.output_scale", "v_proj.output_scale"}};
  for (const auto& [k, v] : names) {
    Weights w;
    EXPECT_FALSE(has_kv_scales(w));
    add(w, kAttention + k, 0.5f);
    add(w, kAttention + v, 0.25f, {1});
    EXPECT_TRUE(has_kv_scales(w));
    const auto scales = kv_scales(w, kAttention);
    ASSERT_TRUE(scales) << scales.error().message;
    EXPECT_EQ(scales->k, 0.5f);
    EXPECT_EQ(scales->v, 0.25f);
    const auto other = kv_scales(w, "model.layers.1.self_attn.");
    ASSERT_TRUE(other);
    EXPECT_EQ(other->k, 1.0f);
  }
  Weights one;
  add(one, kAttention + "kv_scale", 0.125f);
  const auto scales = kv_scales(one, kAttention);
  ASSERT_TRUE(scales);
  EXPECT_EQ(scales->k, 0.125f);
  EXPECT_EQ(scales->v, 0.125f);
}

std::string refusal(const Weights& w) {
  const auto scales = kv_scales(w, kAttention);
  EXPECT_FALSE(scales);
  if (scales) return {};
  EXPECT_EQ(scales.error().code, ErrorCode::kModel);
  return scales.error().message;
}

TEST(KvScalesOfACheckpoint, RefusesWhatIsNoScale) {
  for (const float bad : {0.0f, -0.5f, -0.0f, NAN, INFINITY, -INFINITY, 1e-40f, 1e31f}) {
    Weights w;
    add(w, kAttention + "k_scale", 0.5f);
    add(w, kAttention + "v_scale", bad);
    EXPECT_THAT(refusal(w), AllOf(HasSubstr("self_attn.v_scale"), HasSubstr("expected a number above 0")));
  }
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{{3}, {3, 1}, {0}, {1, 2}}) {
    Weights w;
    add(w, kAttention + "k_scale", 0.5f, shape);
    add(w, kAttention + "v_scale", 0.5f);
    EXPECT_THAT(refusal(w), AllOf(HasSubstr("self_attn.k_scale"), HasSubstr("expected one number a layer")));
  }
  Weights half;
  add(half, kAttention + "k_scale", 0.5f);
  EXPECT_THAT(refusal(half), HasSubstr("self_attn.v_scale of the KV cache is missing"));
  Weights integers;
  add(integers, kAttention + "k_scale", 0.5f);
  add(integers, kAttention + "v_scale", 0.5f);
  integers.tensors[kAttention + "k_scale"].dtype = DType::kI32;
  EXPECT_THAT(refusal(integers), HasSubstr("is I32, expected F32, F16 or BF16"));
}

std::string scheme(const std::string& text) {
  const auto value = parse_json("{" + text + "}", "config.json");
  EXPECT_TRUE(value);
  const auto scheme = kv_cache_scheme(JsonObject(value->get_object(), "config.json"));
  return scheme ? *scheme : "error: " + scheme.error().message;
}

TEST(KvCacheScheme, IsFp8OrNamesWhatItIs) {
  EXPECT_EQ(scheme(""), "");
  EXPECT_EQ(scheme(R"("quantization_config": null)"), "");
  EXPECT_EQ(scheme(R"("quantization_config": {"quant_method": "compressed-tensors"})"), "");
  EXPECT_EQ(scheme(R"("quantization_config": {"kv_cache_scheme": null})"), "");
  EXPECT_EQ(scheme(R"("quantization_config": {"kv_cache_scheme": "static"})"), "fp8");
  EXPECT_EQ(scheme(R"("quantization_config": {"kv_cache_scheme": {"num_bits": 8, "type": "float",
      "strategy": "tensor", "dynamic": false, "symmetric": true, "group_size": null, "actorder": null}})"),
            "fp8");
  EXPECT_THAT(scheme(R"("quantization_config": {"kv_cache_scheme": {"num_bits": 8, "type": "int"}})"),
              HasSubstr("int"));
  EXPECT_THAT(scheme(R"("quantization_config": {"kv_cache_scheme": {"num_bits": 8, "type": "float",
      "strategy": "attn_head"}})"),
              HasSubstr("attn_head"));
  EXPECT_THAT(scheme(R"("quantization_config": {"kv_cache_scheme": {"num_bits": "8"}})"),
              HasSubstr("num_bits"));
  EXPECT_THAT(scheme(R"("quantization_config": {"kv_cache_scheme": 8})"), HasSubstr("kv_cache_scheme"));
}

// A checkpoint in a folder, with scales: auto makes an FP8 cache of it, a setting overrides.
TEST(KvCacheOfACheckpoint, AutoFollowsIt) {
  const TempFolder plain, scaled;
  Checkpoint c = std::move(random_checkpoint("tiny", 5)).value();
  ASSERT_TRUE(save_checkpoint(c, plain.path()));
  for (int i = 0; i < c.config.layers; ++i) {
    add(c.weights, fmt::format("model.layers.{}.self_attn.k_scale", i), 0.5f, {1});
    add(c.weights, fmt::format("model.layers.{}.self_attn.v_scale", i), 0.25f);
  }
  ASSERT_TRUE(save_checkpoint(c, scaled.path()));
  const auto loaded = [](const TempFolder& folder, const char* setting) -> std::string {
    Config config;
    config.gpu.device = "cpu";
    config.gpu.kv_cache_dtype = setting;
    config.gpu.kv_cache_memory_bytes = 8 << 20;
    config.gpu.max_num_batched_tokens = 64;
    config.model.max_model_len = 64;
    auto checkpoint = open_weights(folder.path());
    if (!checkpoint) return checkpoint.error().message;
    const auto llm = Llm::load(config, std::move(*checkpoint));
    return llm ? (*llm)->summary.kv_dtype : llm.error().message;
  };
  EXPECT_EQ(loaded(plain, "auto"), "F16");
  EXPECT_EQ(loaded(plain, "fp8"), "F8_E4M3");
  EXPECT_EQ(loaded(plain, "int8"), "I8");
  EXPECT_EQ(loaded(scaled, "auto"), "F8_E4M3");
  // A scheme without scales, as llm-compressor writes it.
  std::string text = std::move(read_file(plain.path() / "config.json", 1 << 20)).value();
  text.back() = ',';
  plain.write("config.json", text + R"("quantization_config": {"quant_method": "compressed-tensors",
      "format": "dense", "config_groups": {}, "kv_cache_scheme": {"num_bits": 8, "type": "float",
      "strategy": "tensor", "dynamic": false, "symmetric": true}}})");
  EXPECT_EQ(loaded(plain, "auto"), "F8_E4M3");
  EXPECT_EQ(loaded(plain, "int8"), "I8");
  EXPECT_EQ(loaded(scaled, "float16"), "F16");

  Checkpoint odd = std::move(random_checkpoint("tiny", 5)).value();
  odd.config.kv_cache = "int of 8 bits";
  Config config;
  config.gpu.device = "cpu";
  const auto refused = Llm::load(config, std::move(odd));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kConfig);
  EXPECT_THAT(refused.error().message, HasSubstr("kv_cache_scheme is int of 8 bits"));

  const TempFolder broken;
  add(c.weights, "model.layers.1.self_attn.v_scale", NAN);
  ASSERT_TRUE(save_checkpoint(c, broken.path()));
  EXPECT_THAT(loaded(broken, "float16"), HasSubstr("model.layers.1.self_attn.v_scale"));
}

constexpr int kTokens = 90;

std::vector<int32_t> tokens(int vocab) {
  std::vector<int32_t> ids(kTokens);
  for (int i = 0; i < kTokens; ++i) ids[i] = (i * 7919 + 13) % vocab;
  return ids;
}

Checkpoint golden() {
  return std::move(open_weights(std::filesystem::path(DI_SOURCE_DIR) / "tests/golden/tiny_llama/base"))
      .value();
}

std::vector<float> logits(Checkpoint c, DType kv_dtype, int chunk = 0) {
  auto model = ModelHarness::open(std::move(c), {.max_tokens = kTokens, .kv_dtype = kv_dtype});
  if (!model) ADD_FAILURE() << model.error().message;
  return model ? (*model)->logits(tokens((*model)->vocab_size()), chunk) : std::vector<float>();
}

// A BF16 matrix times 2^exponent, exactly.
void multiply(Weights& weights, const std::string& name, int exponent) {
  RawTensor& t = weights.tensors.at(name);
  ASSERT_EQ(t.dtype, DType::kBF16);
  Buffer data = std::move(Buffer::allocate(t.bytes)).value();
  for (size_t at = 0; at < t.bytes; at += 2) {
    uint16_t bits;
    std::memcpy(&bits, t.data + at, 2);
    const float x = std::ldexp(std::bit_cast<float>(static_cast<uint32_t>(bits) << 16), exponent);
    bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16);
    std::memcpy(data.data() + at, &bits, 2);
  }
  t.data = data.data();
  weights.copies.push_back(std::move(data));
}

// Keys of 2^a times the size under a scale of 2^a are the same codes; queries of 2^-a times the size make the
// same scores of them. Values likewise, with the projection behind them. So the logits are the same bits
// where each layer's scales of K and V arrive where they belong.
TEST(KvScalesInAModel, ScaleWhatIsStored) {
  Checkpoint scaled = golden();
  for (int i = 0; i < scaled.config.layers; ++i) {
    const std::string a = fmt::format("model.layers.{}.self_attn.", i);
    const int k = 5 + i, v = -9 - i;
    multiply(scaled.weights, a + "k_proj.weight", k);
    multiply(scaled.weights, a + "q_proj.weight", -k);
    multiply(scaled.weights, a + "v_proj.weight", v);
    multiply(scaled.weights, a + "o_proj.weight", -v);
    add(scaled.weights, a + "k_scale", std::ldexp(1.0f, k));
    add(scaled.weights, a + "v_scale", std::ldexp(1.0f, v));
  }
  Checkpoint unscaled = golden();
  const std::vector<float> want = logits(std::move(unscaled), DType::kF8E4M3);
  const std::vector<float> got = logits(std::move(scaled), DType::kF8E4M3, 33);
  ASSERT_EQ(want.size(), got.size());
  EXPECT_EQ(std::memcmp(want.data(), got.data(), want.size() * sizeof(float)), 0);
}

// Rounding moves K and V by at most half a step: e4m3's is 1/16 of a value, int8's 1/254 of the largest of
// its head. The logits' norm moves by less than that: errors of single values are smaller and do not add up.
TEST(KvCacheTypes, LogitsStayNear) {
  const std::vector<float> exact = logits(golden(), DType::kF32);
  for (const auto& [dtype, bound] : {std::pair(DType::kI8, 1.0 / 254), std::pair(DType::kF8E4M3, 1.0 / 16)}) {
    const std::vector<float> got = logits(golden(), dtype);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      difference += std::pow(static_cast<double>(got[i]) - exact[i], 2);
      norm += std::pow(static_cast<double>(exact[i]), 2);
    }
    EXPECT_LT(std::sqrt(difference / norm), bound) << info(dtype).name;
    EXPECT_GT(difference, 0) << info(dtype).name;
  }
}

}  // namespace
}  // namespace deepinfer
