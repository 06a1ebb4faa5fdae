// Checkpoints that llm-compressor and gptqmodel have made, and those packed after AutoAWQ's and transformers'
// layouts (tools/golden/make_quantized.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/sha.h>

#include <boost/json.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "base/check.h"
#include "model/linear_source.h"
#include "model/quantization.h"
#include "quant/codes.h"
#include "support/model_harness.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

using ::testing::AllOf;
using ::testing::HasSubstr;

fs::path golden() {
  return fs::path(DI_SOURCE_DIR) / "tests/golden";
}

std::vector<std::string> variants() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(golden()))
    if (entry.path().filename().string().starts_with("quant_"))
      names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

json::value expected_of(const std::string& variant) {
  std::ifstream in(golden() / variant / "expected.json");
  return json::parse(std::string{std::istreambuf_iterator<char>(in), {}});
}

MatrixRequest request_of(const ModelConfig& c, const std::string& layer) {
  const auto is = [&](const char* name) { return layer.ends_with(name); };
  const int64_t q = int64_t{c.heads} * c.head_dim, kv = int64_t{c.kv_heads} * c.head_dim;
  MatrixRequest m{.layer = layer, .rows = c.ffn, .cols = c.hidden};
  if (is("q_proj")) m.rows = q;
  if (is("k_proj") || is("v_proj")) m.rows = kv;
  if (is("o_proj") || is("down_proj")) m.rows = c.hidden;
  if (is("o_proj")) m.cols = q;
  if (is("down_proj")) m.cols = c.ffn;
  return m;
}

std::vector<float> values_of(const LinearSource& s) {
  std::vector<float> all, row(static_cast<size_t>(s.cols));
  for (const LinearPart& part : s.parts)
    for (int64_t r = 0; r < part.rows; ++r) {
      dequantize_codes(s, part, r, row.data());
      all.insert(all.end(), row.begin(), row.end());
    }
  return all;
}

std::string hash_of(const LinearSource& source) {
  const std::vector<float> values = values_of(source);
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(values.data()), values.size() * sizeof(float), digest);
  std::string hex;
  for (const unsigned char byte : digest) hex += fmt::format("{:02x}", byte);
  return hex;
}

class Quantized : public testing::TestWithParam<std::string> {};

TEST_P(Quantized, EveryMatrixIsTheMakersBitForBit) {
  const auto c = open_weights(golden() / GetParam());
  ASSERT_TRUE(c) << c.error().message;
  ASSERT_NE(c->weights.quant, nullptr);
  const json::value expected = expected_of(GetParam());
  ThreadPool pool(2);
  ASSERT_GE(expected.at("weights").as_object().size(), 6u);
  for (const auto& [name, hash] : expected.at("weights").as_object()) {
    const auto m = c->weights.quant->read(c->weights.tensors, request_of(c->config, name), &pool);
    ASSERT_TRUE(m) << m.error().message;
    ASSERT_TRUE(m->has_value()) << name;
    const LinearSource source = (*m)->source();
    ASSERT_TRUE(check_codes(source)) << check_codes(source).error().message;
    EXPECT_EQ(hash_of(source), hash.as_string()) << name << ", " << c->weights.quant->text();
  }
}

TEST_P(Quantized, LogitsEqualTransformers) {
  const json::value expected = expected_of(GetParam());
  const auto h = ModelHarness::open(golden() / GetParam(), {.max_tokens = 64});
  if (!h && h.error().code == ErrorCode::kUnsupported)
    GTEST_SKIP() << "no kernel of this device: " << h.error().message;
  ASSERT_TRUE(h) << h.error().message;
  const int V = (*h)->vocab_size();
  for (size_t p = 0; p < expected.at("prompts").as_array().size(); ++p) {
    const auto prompt = json::value_to<std::vector<int32_t>>(expected.at("prompts").at(p));
    const auto want = json::value_to<std::vector<float>>(expected.at("logits").at(p));
    const std::vector<float> logits = (*h)->logits(prompt);
    const float* got = logits.data() + (prompt.size() - 1) * V;
    // Activations are rounded to int8 in blocks: at most 0.5% of the norm of a block each time, and these
    // errors add like independent ones: four times in the one layer, and at the head when that is quantized
    // too. 0.5% sqrt(5) = 1.1%; twice that at most, and as much again for the outliers that the columns of
    // different weight make.
    double difference = 0, norm = 0;
    for (int i = 0; i < V; ++i) {
      difference += std::pow(static_cast<double>(got[i]) - want[i], 2);
      norm += std::pow(static_cast<double>(want[i]), 2);
    }
    RecordProperty(fmt::format("difference_{}", p), fmt::format("{:.2e}", std::sqrt(difference / norm)));
    EXPECT_LT(std::sqrt(difference / norm), 0.03) << GetParam() << " prompt " << p;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Quantized, testing::ValuesIn(variants()),
                         [](const auto& variant) { return variant.param; });

Result<void> ask(const std::string& folder, const std::string& wanted) {
  DI_ASSIGN(Checkpoint c, open_weights(golden() / folder));
  return set_quantization(c, wanted);
}

TEST(Demand, WhatTheCheckpointIsAndWhatCanBeMadeOfIt) {
  EXPECT_TRUE(ask("quant_awq_g128", "awq"));
  EXPECT_TRUE(ask("quant_awq_g128", ""));
  EXPECT_TRUE(ask("quant_gptq8_row", "gptq"));
  EXPECT_TRUE(ask("quant_fp8_block", "fp8"));
  EXPECT_TRUE(ask("quant_ct_fp8_static", "fp8"));
  EXPECT_TRUE(ask("quant_ct_w4_channel", "int4"));
  EXPECT_TRUE(ask("tiny_llama/base", "fp8"));
  EXPECT_TRUE(ask("tiny_llama/base", "int4"));
}

TEST(Demand, WhatIsPreferredCountsWhereNobodyChooses) {
  const auto online = [](const std::string& folder, const std::string& wanted) {
    auto c = open_weights(golden() / folder);
    EXPECT_TRUE(c && set_quantization(*c, wanted, "fp8"));
    return c ? c->weights.online : "";
  };
  EXPECT_EQ(online("tiny_llama/base", ""), "fp8");
  EXPECT_EQ(online("tiny_llama/base", "int4"), "int4");
  EXPECT_EQ(online("tiny_llama/base", "none"), "");
  EXPECT_EQ(online("quant_awq_g128", ""), "");
  EXPECT_EQ(online("quant_awq_g128", "none"), "");
  EXPECT_EQ(online("tiny_llama/base/model-q4_1.gguf", ""), "");
}

TEST(Demand, OthersAreRefusedWithWhatWouldWork) {
  const auto error = [](const std::string& folder, const std::string& wanted) {
    const Result<void> r = ask(folder, wanted);
    if (r) return std::string("accepted");
    EXPECT_EQ(r.error().code, ErrorCode::kConfig);
    return r.error().message;
  };
  EXPECT_THAT(error("quant_gptq8_row", "awq"),
              AllOf(HasSubstr("model.quantization: got awq"), HasSubstr("GPTQ 8-bit"), HasSubstr("leave")));
  EXPECT_THAT(error("tiny_llama/base", "awq"),
              AllOf(HasSubstr("bfloat16"), HasSubstr("fp8 or int4"), HasSubstr("deepinfer quantize")));
  EXPECT_THAT(error("tiny_llama/base", "gptq"), HasSubstr("--method gptq"));
  EXPECT_THAT(error("quant_awq_g128", "fp8"), HasSubstr("AWQ 4-bit, groups of 128"));
  EXPECT_THAT(error("tiny_llama/base/model-q4_1.gguf", "int4"),
              AllOf(HasSubstr("Q4_1"), HasSubstr("unquantized checkpoint")));
}

TEST(WeightsText, NamesTheFormat) {
  auto c = open_weights(golden() / "tiny_llama/base");
  ASSERT_TRUE(c);
  EXPECT_EQ(weights_text(*c), "bfloat16");
  const int64_t plain = loaded_bytes(c->weights);
  EXPECT_EQ(plain, c->weight_bytes);
  ASSERT_TRUE(set_quantization(*c, "int4"));
  EXPECT_EQ(weights_text(*c), "int4, rounded while loading");
  EXPECT_LT(loaded_bytes(c->weights), plain);
  const auto q = open_weights(golden() / "quant_fp8_tensor");
  ASSERT_TRUE(q);
  EXPECT_EQ(weights_text(*q), "FP8, activations scaled as calibrated");
  EXPECT_EQ(q->config.dtype, "bfloat16") << "codes are no dtype to compute in";
}

// The rows of q, k and v out of three checkpoints with the same tensors' names.
Weights mixed(const char* q, const char* k, const char* v, std::vector<Checkpoint>& keep) {
  Weights out;
  const std::pair<const char*, const char*> matrices[] = {{q, "q_proj"}, {k, "k_proj"}, {v, "v_proj"}};
  for (const auto& [folder, name] : matrices) {
    auto c = open_weights(golden() / folder);
    EXPECT_TRUE(c);
    keep.push_back(std::move(*c));
    for (const auto& [tensor, raw] : keep.back().weights.tensors)
      if (tensor.find(name) != std::string::npos) out.tensors.emplace(tensor, raw);
    if (out.quant == nullptr) out.quant = keep.back().weights.quant;
  }
  return out;
}

const std::string kLayer = "model.layers.0.self_attn.";
const std::vector<NamedRows> kQkv = {
    {kLayer + "q_proj.weight", 128}, {kLayer + "k_proj.weight", 64}, {kLayer + "v_proj.weight", 64}};

TEST(ReadTogether, OneSourceOfThreeMatrices) {
  const auto c = open_weights(golden() / "quant_gptq4_g32_order");
  ASSERT_TRUE(c);
  const auto rows = read_linear(c->weights, kQkv, 128, RowOrder::kConcatenated, nullptr);
  ASSERT_TRUE(rows) << rows.error().message;
  EXPECT_EQ(rows->source.parts.size(), 3u);
  EXPECT_EQ(rows->source.dtype, DType::kU4);
  EXPECT_FALSE(rows->source.column_order.empty());
  EXPECT_EQ(rows->source.group, 32);
}

// FP8: one scale of q, another of k; each row has its own afterwards.
TEST(ReadTogether, DifferentScalesOfATensorBecomeScalesOfRows) {
  const auto c = open_weights(golden() / "quant_fp8_tensor");
  ASSERT_TRUE(c);
  const auto rows = read_linear(c->weights, kQkv, 128, RowOrder::kConcatenated, nullptr);
  ASSERT_TRUE(rows);
  const LinearSource& s = rows->source;
  EXPECT_NE(scale_at(s, s.parts[0], 0, 0), scale_at(s, s.parts[1], 0, 0));
  EXPECT_EQ(scale_at(s, s.parts[0], 0, 0), scale_at(s, s.parts[0], 127, 0));
  EXPECT_FLOAT_EQ(s.x_scale, 0.03f);
}

// A matrix that was left plain, or that stands in another column order, makes its neighbours plain.
TEST(ReadTogether, WhatDoesNotFitBecomesPlain) {
  std::vector<Checkpoint> keep;
  Weights w = mixed("quant_gptq4_g32_order", "quant_gptq4_g32_order", "tiny_llama/base", keep);
  std::vector<uint16_t> plain(64 * 128, 0x3f80);
  w.tensors[kQkv[2].first] = {
      DType::kBF16, {64, 128}, reinterpret_cast<const std::byte*>(plain.data()), plain.size() * 2, "plain"};
  ThreadPool pool(2);
  const auto rows = read_linear(w, kQkv, 128, RowOrder::kConcatenated, &pool);
  ASSERT_TRUE(rows) << rows.error().message;
  ASSERT_EQ(rows->source.dtype, DType::kBF16);
  const auto q = w.quant->read(w.tensors, {kLayer + "q_proj", 128, 128}, nullptr);
  ASSERT_TRUE(q);
  const std::vector<float> exact = values_of((*q)->source());
  const auto* got = static_cast<const uint16_t*>(rows->source.parts[0].data);
  for (size_t i = 0; i < exact.size(); ++i) {
    float value;
    const uint32_t bits = uint32_t{got[i]} << 16;
    std::memcpy(&value, &bits, sizeof value);
    ASSERT_NEAR(value, exact[i], std::abs(exact[i]) / 256) << i;
  }
  EXPECT_EQ(std::memcmp(rows->source.parts[2].data, plain.data(), plain.size() * 2), 0);

  // k in the order of the file, q and v in act order.
  std::vector<int32_t> sorted(128);
  for (int j = 0; j < 128; ++j) sorted[j] = j / 32;
  Weights other = mixed("quant_gptq4_g32_order", "quant_gptq4_g32_order", "quant_gptq4_g32_order", keep);
  RawTensor& g_idx = other.tensors.at(kLayer + "k_proj.g_idx");
  g_idx.data = reinterpret_cast<const std::byte*>(sorted.data());
  const auto differing = read_linear(other, kQkv, 128, RowOrder::kConcatenated, &pool);
  ASSERT_TRUE(differing) << differing.error().message;
  EXPECT_EQ(differing->source.dtype, DType::kF16);
  EXPECT_EQ(differing->source.parts.size(), 3u);
}

// Larger groups are cut into the smaller ones of a neighbour, value for value.
TEST(ReadTogether, GroupsOfDifferentSizes) {
  const auto c = open_weights(golden() / "quant_ct_w4_g64_asym");
  ASSERT_TRUE(c);
  Weights w =
      c->weights.quant ? Weights{.tensors = c->weights.tensors, .quant = c->weights.quant} : Weights{};
  const auto whole = w.quant->read(w.tensors, {kLayer + "k_proj", 64, 128}, nullptr);
  ASSERT_TRUE(whole && whole->has_value());
  // A scheme of its own for q: groups of 32, by a configuration of two targets.
  std::vector<uint16_t> scales(128 * 4, 0x3f80);
  std::vector<uint32_t> zeros(16 * 4, 0x88888888u);
  w.tensors[kLayer + "q_proj.weight_scale"] = {
      DType::kBF16, {128, 4}, reinterpret_cast<const std::byte*>(scales.data()), scales.size() * 2, "scales"};
  w.tensors[kLayer + "q_proj.weight_zero_point"] = {
      DType::kI32, {16, 4}, reinterpret_cast<const std::byte*>(zeros.data()), zeros.size() * 4, "zeros"};
  const json::value config = json::parse(R"({"quant_method": "compressed-tensors", "config_groups": {
    "a": {"targets": ["Linear"], "weights": {"num_bits": 4, "symmetric": false, "group_size": 64}},
    "b": {"targets": ["re:.*q_proj"], "weights": {"num_bits": 4, "symmetric": false, "group_size": 32}}}})");
  auto reader = open_quantization(JsonObject(config.as_object(), "config.json"), "");
  ASSERT_TRUE(reader) << reader.error().message;
  w.quant = std::move(*reader);
  const auto rows = read_linear(w, kQkv, 128, RowOrder::kConcatenated, nullptr);
  ASSERT_TRUE(rows) << rows.error().message;
  ASSERT_EQ(rows->source.group, 32);
  LinearSource k = rows->source;
  k.parts = {rows->source.parts[1]};
  EXPECT_EQ(values_of(k), values_of((*whole)->source()));
}

TEST(ReadTogether, CodesWithoutAWordAboutThemAreRefused) {
  const auto c = open_weights(golden() / "quant_fp8_tensor");
  ASSERT_TRUE(c);
  const Weights w{.tensors = c->weights.tensors};
  const auto rows = read_linear(w, kQkv, 128, RowOrder::kConcatenated, nullptr);
  ASSERT_FALSE(rows);
  EXPECT_THAT(rows.error().message, AllOf(HasSubstr("F8_E4M3"), HasSubstr("quantization_config")));
}

TEST(Online, LayersAreQuantizedAndTheRestStays) {
  for (const char* method : {"fp8", "int4"}) {
    auto plain = ModelHarness::open(golden() / "tiny_llama/base", {.max_tokens = 64});
    auto c = open_weights(golden() / "tiny_llama/base");
    ASSERT_TRUE(plain && c);
    ASSERT_TRUE(set_quantization(*c, method));
    const auto rows =
        read_linear(c->weights, {{"model.embed_tokens.weight", 320}}, 64, RowOrder::kConcatenated, nullptr);
    ASSERT_TRUE(rows);
    EXPECT_EQ(rows->source.dtype, DType::kBF16);
    const auto down = read_linear(c->weights, {{"model.layers.0.mlp.down_proj.weight", 64}}, 96,
                                  RowOrder::kConcatenated, nullptr);
    ASSERT_TRUE(down) << down.error().message;
    EXPECT_EQ(down->source.dtype, std::string_view(method) == "fp8" ? DType::kF8E4M3 : DType::kU4);
    EXPECT_EQ(down->source.group, std::string_view(method) == "fp8" ? 96 : 32);
    auto made = ModelHarness::open(std::move(*c), {.max_tokens = 64});
    ASSERT_TRUE(made) << made.error().message;
    const std::vector<int32_t> prompt = {5, 17, 300, 42, 9};
    const std::vector<float> want = (*plain)->logits(prompt), got = (*made)->logits(prompt);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      difference += std::pow(static_cast<double>(got[i]) - want[i], 2);
      norm += std::pow(static_cast<double>(want[i]), 2);
    }
    // Uniform rounding by groups of 32 to 64 with 15 steps over 2 x 2.3 sigma errs by 0.3 / sqrt(12) = 9% of
    // a weight; e4m3 by 2^-4 / sqrt(3) = 3.6% at most, 2.6% on average. Each of the ten matrices of two
    // layers adds to it in squares: 0.09 sqrt(10) = 28%, 0.026 sqrt(10) = 8%.
    EXPECT_LT(std::sqrt(difference / norm), std::string_view(method) == "fp8" ? 0.08 : 0.28) << method;
    EXPECT_GT(std::sqrt(difference / norm), 1e-3) << "nothing was quantized";
  }
}

TEST(Online, RefusesAMatrixWithValuesThatAreNoNumbers) {
  auto c = open_weights(golden() / "tiny_llama/base");
  ASSERT_TRUE(c && set_quantization(*c, "int4"));
  std::vector<uint16_t> values(64 * 64, 0x7fc0);
  c->weights.tensors[kLayer + "o_proj.weight"] = {
      DType::kBF16, {64, 64}, reinterpret_cast<const std::byte*>(values.data()), values.size() * 2, "broken"};
  const auto made = ModelHarness::open(std::move(*c), {.max_tokens = 64});
  ASSERT_FALSE(made);
  EXPECT_THAT(made.error().message, AllOf(HasSubstr("broken"), HasSubstr("finite")));
}

// Two experts as two row groups of one matmul: each part keeps its own scales and zero points.
TEST(ReadTogether, TwoExpertsAreTwoRowGroups) {
  const auto c = open_weights(golden() / "quant_awq_g128");
  ASSERT_TRUE(c);
  const std::string mlp = "model.layers.0.mlp.";
  const auto rows = read_linear(c->weights, {{mlp + "gate_proj.weight", 128}, {mlp + "up_proj.weight", 128}},
                                128, RowOrder::kConcatenated, nullptr);
  ASSERT_TRUE(rows) << rows.error().message;
  ASSERT_EQ(rows->source.parts.size(), 2u);
  std::vector<float> both = values_of(rows->source);
  for (const auto& [name, first] : {std::pair{"gate_proj", 0}, std::pair{"up_proj", 128}}) {
    const auto one = c->weights.quant->read(c->weights.tensors, {mlp + name, 128, 128}, nullptr);
    ASSERT_TRUE(one);
    const std::vector<float> alone = values_of((*one)->source());
    EXPECT_EQ(std::memcmp(alone.data(), both.data() + first * 128, alone.size() * 4), 0) << name;
  }
}

}  // namespace
}  // namespace deepinfer
