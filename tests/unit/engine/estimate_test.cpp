// What is estimated: known figures of known models, and what loading really plans.
#include "engine/estimate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/limits.h"
#include "base/log.h"
#include "device/known_gpus.h"
#include "engine/llm.h"
#include "engine/load_plan.h"
#include "model/quantization.h"
#include "model/random_checkpoint.h"
#include "model/shape.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

struct Shape {
  int hidden, layers, heads, kv_heads, ffn, vocab, context;
  bool tied = false;
};

constexpr Shape kLlama8B{4096, 32, 32, 8, 14336, 128256, 131072};
constexpr Shape kLlama70B{8192, 80, 64, 8, 28672, 128256, 131072};
constexpr Shape kLlama2_7B{4096, 32, 32, 32, 11008, 32000, 4096};
constexpr Shape kLlama1B{2048, 16, 32, 8, 8192, 128256, 131072, true};

json::object config_of(const Shape& s) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"hidden_size", s.hidden},
          {"num_hidden_layers", s.layers},
          {"num_attention_heads", s.heads},
          {"num_key_value_heads", s.kv_heads},
          {"intermediate_size", s.ffn},
          {"vocab_size", s.vocab},
          {"max_position_embeddings", s.context},
          {"tie_word_embeddings", s.tied},
          {"torch_dtype", "bfloat16"}};
}

Checkpoint planned(const json::object& config, int64_t file_bytes = 0) {
  Result<Checkpoint> c = planned_checkpoint(json::serialize(config), "/nowhere", file_bytes);
  EXPECT_TRUE(c.ok()) << (c.ok() ? "" : c.error().message);
  return c ? std::move(*c) : Checkpoint{};
}

EstimateTarget on(const std::string& card, int count = 1) {
  const Result<KnownGpu> g = find_known_gpu(card);
  EXPECT_TRUE(g.ok()) << card;
  return {.gpu = GpuInfo{.id = -1, .name = g->name, .total_bytes = g->bytes(), .capability = g->capability},
          .count = count};
}

TEST(Estimate, BytesOfKnownModels) {
  // Parameters as their makers count them.
  const struct {
    Shape shape;
    int64_t parameters;
    int64_t kv_token_bytes;  // in 16 bits
  } cases[] = {{kLlama8B, 8'030'261'248, 131'072},
               {kLlama70B, 70'553'706'496, 327'680},
               {kLlama2_7B, 6'738'415'616, 524'288},
               {kLlama1B, 1'235'814'400, 32'768}};
  for (const auto& c : cases) {
    const Checkpoint checkpoint = planned(config_of(c.shape));
    EXPECT_EQ(checkpoint.weight_bytes, 2 * c.parameters);
    const Result<Estimate> e = estimate({}, checkpoint, on("B200"));
    ASSERT_TRUE(e.ok()) << e.error().message;
    EXPECT_EQ(e->weight_bytes, 2 * c.parameters);
    EXPECT_EQ(e->kv_token_bytes, c.kv_token_bytes);
    EXPECT_EQ(e->weights, "bfloat16");
    EXPECT_TRUE(e->fits()) << e->problem;
  }
}

TEST(Estimate, BytesOfQuantizedCheckpoints) {
  const int64_t linears = 8'030'261'248 - int64_t{2} * 128256 * 4096 - int64_t{65} * 4096;
  const int64_t dense = int64_t{2} * (8'030'261'248 - linears);
  const struct {
    json::object quantization;
    double bits;
    const char* text;
  } cases[] = {
      {{{"quant_method", "awq"}, {"bits", 4}, {"group_size", 128}, {"zero_point", true}, {"version", "gemm"}},
       4 + 20.0 / 128,
       "AWQ"},
      {{{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 32}, {"desc_act", false}},
       4 + 20.0 / 32,
       "GPTQ"},
      {{{"quant_method", "fp8"}, {"activation_scheme", "dynamic"}}, 8, "FP8"},
  };
  for (const auto& c : cases) {
    json::object config = config_of(kLlama8B);
    config["quantization_config"] = c.quantization;
    const Checkpoint checkpoint = planned(config);
    EXPECT_THAT(weights_text(checkpoint), HasSubstr(c.text));
    EXPECT_NEAR(static_cast<double>(checkpoint.weight_bytes),
                static_cast<double>(dense) + static_cast<double>(linears) * c.bits / 8, 1e4);
    // Where the files were seen, they tell.
    EXPECT_NEAR(static_cast<double>(planned(config, 9'000'000'000).weight_bytes), 9e9, 1e4);
  }
}

TEST(Estimate, AQuantizationWhileLoadingCounts) {
  Checkpoint checkpoint = planned(config_of(kLlama8B));
  const Result<Estimate> plain = estimate({}, checkpoint, on("4090"));
  ASSERT_TRUE(set_quantization(checkpoint, "int4").ok());
  const Result<Estimate> int4 = estimate({}, checkpoint, on("4090"));
  ASSERT_TRUE(plain.ok() && int4.ok());
  EXPECT_LT(int4->weight_bytes, plain->weight_bytes * 2 / 5);
  EXPECT_GT(int4->tokens(), plain->tokens());
  EXPECT_THAT(int4->weights, HasSubstr("int4"));
}

TEST(Estimate, TheSumsOfAGpuAreConsistent) {
  for (const char* card : {"4090", "5090", "L40S", "A100 80GB", "H200"})
    for (const bool eager : {false, true}) {
      SCOPED_TRACE(card);
      Config config;
      config.gpu.gpu_memory_utilization = 0.9;
      config.gpu.enforce_eager = eager;
      const Checkpoint checkpoint = planned(config_of(kLlama8B));
      const Result<Estimate> e = estimate(config, checkpoint, on(card));
      ASSERT_TRUE(e.ok() && e->fits());
      EXPECT_LE(e->weight_bytes + e->kv_bytes + e->buffer_bytes, e->total_bytes);
      // The driver's part is not taken from the share.
      EXPECT_NEAR(static_cast<double>(e->weight_bytes + e->kv_bytes + e->buffer_bytes) / kGiB,
                  static_cast<double>(e->usable_bytes) / kGiB, 0.6);
      for (const auto& [context, count] : e->sequences) EXPECT_LE(count * context, e->tokens());
      EXPECT_EQ(e->sequences.back().first, e->max_model_len);
      EXPECT_LE(e->max_model_len, e->model_context);
    }
}

TEST(Estimate, Fp8HalvesACacheAndSeveralGpusShare) {
  const Checkpoint checkpoint = planned(config_of(kLlama70B));
  Config config;
  const Result<Estimate> bf16 = estimate(config, checkpoint, on("B200"));
  config.gpu.kv_cache_dtype = "fp8";
  const Result<Estimate> fp8 = estimate(config, checkpoint, on("B200"));
  ASSERT_TRUE(bf16.ok() && fp8.ok());
  EXPECT_EQ(2 * fp8->kv_token_bytes, bf16->kv_token_bytes);
  const Result<Estimate> one = estimate(config, checkpoint, on("A100 80GB"));
  const Result<Estimate> four = estimate(config, checkpoint, on("A100 80GB", 4));
  ASSERT_TRUE(one.ok() && four.ok());
  EXPECT_FALSE(one->fits());
  EXPECT_TRUE(four->fits()) << four->problem;
  const int64_t norms = int64_t{161} * 8192 * 2;  // on each
  EXPECT_EQ(four->weight_bytes, (checkpoint.weight_bytes - norms) / 4 + norms);
  EXPECT_EQ(4 * four->kv_token_bytes, fp8->kv_token_bytes);
  EXPECT_FALSE(estimate(config, checkpoint, on("A100 80GB", 3)).ok()) << "64 heads do not divide by 3";
}

TEST(Estimate, WhatWouldFitDoesFit) {
  Checkpoint checkpoint = planned(config_of(kLlama8B));
  Config config;
  config.gpu.gpu_memory_utilization = 0.85;
  const auto same = [&](const GpuInfo&) { return config; };
  const Result<Estimate> e = estimate_with_remedies(config, checkpoint, on("4070"), same);
  ASSERT_TRUE(e.ok());
  ASSERT_FALSE(e->fits());
  EXPECT_THAT(e->problem, HasSubstr("14.96 GiB"));
  EXPECT_THAT(e->remedies, testing::Contains(HasSubstr("--quantization fp8")));
  EXPECT_THAT(e->remedies, testing::Contains(HasSubstr("--gpu 'NVIDIA RTX 4000 Ada")));
  EXPECT_TRUE(checkpoint.weights.online.empty()) << "trying leaves no trace";
  config.model.quantization = "fp8";
  const Result<Estimate> quantized = estimate_with_remedies(config, checkpoint, on("4070"), same);
  ASSERT_TRUE(quantized.ok());
  EXPECT_TRUE(quantized->fits()) << quantized->problem;
}

TEST(Estimate, CardsThatAreTooOldAreRefused) {
  const Result<Estimate> e = estimate({}, planned(config_of(kLlama1B)), on("Tesla T4"));
  ASSERT_FALSE(e.ok());
  EXPECT_THAT(e.error().message, HasSubstr("7.5"));
}

TEST(Estimate, ABrokenConfigIsAnError) {
  const struct {
    const char* key;
    json::value value;
    const char* part;
  } cases[] = {{"architectures", {"MambaForCausalLM"}, "MambaForCausalLM"},
               {"hidden_size", nullptr, "hidden_size"},
               {"hidden_size", -4, "hidden_size"},
               {"num_key_value_heads", 7, "num_key_value_heads"},
               {"torch_dtype", "int8", "dtype is 'int8'"},
               {"quantization_config", json::object{{"quant_method", "magic"}}, "magic"}};
  for (const auto& c : cases) {
    json::object config = config_of(kLlama8B);
    config[c.key] = c.value;
    const Result<Checkpoint> checkpoint = planned_checkpoint(json::serialize(config), "/nowhere");
    ASSERT_FALSE(checkpoint.ok()) << c.part;
    EXPECT_EQ(checkpoint.error().code, ErrorCode::kModel);
    EXPECT_THAT(checkpoint.error().message, HasSubstr(c.part));
  }
  EXPECT_FALSE(planned_checkpoint("{", "/nowhere").ok());
  // Large enough to overflow, were it multiplied in 64 bits.
  json::object huge = config_of(kLlama8B);
  huge["vocab_size"] = 2147483647;
  huge["hidden_size"] = 1 << 20;
  huge["num_attention_heads"] = 64;
  EXPECT_FALSE(planned_checkpoint(json::serialize(huge), "/nowhere").ok());
}

// On the CPU the estimate is what loading plans, to the block.
TEST(Estimate, IsWhatLoadingPlansOnTheCpu) {
  set_log_level("error");
  std::vector<Config> configs(6);
  for (Config& c : configs) c.gpu.device = "cpu";
  configs[1].gpu.kv_cache_dtype = "int8";
  configs[2].model.max_model_len = 100;
  configs[3].gpu.kv_cache_memory_bytes = 1'000'000;
  configs[4].gpu.kv_cache_dtype = "float32";
  configs[4].gpu.kv_cache_memory_bytes = 50'000'001;
  configs[5].model.quantization = "int4";
  for (const Config& config : configs) {
    Result<Checkpoint> checkpoint = random_checkpoint("tiny", 1);
    ASSERT_TRUE(checkpoint.ok());
    const Result<Estimate> e =
        estimate_with_remedies(config, *checkpoint, {.memory_bytes = machine_limits().memory_bytes},
                               [&](const GpuInfo&) { return config; });
    ASSERT_TRUE(e.ok()) << e.error().message;
    ASSERT_TRUE(e->fits()) << e->problem;
    const auto llm = Llm::load(config, std::move(*checkpoint));
    ASSERT_TRUE(llm.ok()) << llm.error().message;
    const LoadSummary& s = (*llm)->summary;
    EXPECT_EQ(e->kv_blocks, s.kv_blocks);
    EXPECT_EQ(e->kv_bytes, s.kv_bytes);
    EXPECT_EQ(e->kv_dtype, s.kv_dtype);
    EXPECT_EQ(e->block_size, s.block_size);
    EXPECT_EQ(e->max_model_len, (*llm)->max_model_len);
    EXPECT_EQ(e->weights, s.weights);
    // Packing rounds rows up and keeps vectors in F32.
    EXPECT_NEAR(static_cast<double>(e->weight_bytes), static_cast<double>(s.weight_bytes),
                0.25 * static_cast<double>(s.weight_bytes));
  }
}

TEST(Estimate, SaysWhatLoadingSaysWhenItDoesNotFit) {
  set_log_level("error");
  Config config;
  config.gpu.device = "cpu";
  config.model.max_model_len = 4000;
  config.gpu.kv_cache_memory_bytes = 100'000;
  Result<Checkpoint> checkpoint = random_checkpoint("tiny", 1);
  ASSERT_TRUE(checkpoint.ok());
  const Result<Estimate> e = estimate(config, *checkpoint, {.memory_bytes = machine_limits().memory_bytes});
  const auto llm = Llm::load(config, std::move(*checkpoint));
  ASSERT_TRUE(e.ok());
  ASSERT_FALSE(llm.ok());
  EXPECT_EQ(e->problem, llm.error().message);
  EXPECT_EQ(e->kv_blocks, 0);
}

// config.json alone tells the same as the files do.
TEST(Estimate, AFolderWithoutWeightsIsEnough) {
  const fs::path folder = fs::path(testing::TempDir()) / "estimate_test_model";
  fs::remove_all(folder);
  const Result<Checkpoint> random = random_checkpoint("tiny", 1);
  ASSERT_TRUE(random.ok());
  ASSERT_TRUE(save_checkpoint(*random, folder).ok());
  std::ifstream file(folder / "config.json");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const Result<Checkpoint> alone = planned_checkpoint(text, folder);
  const Result<Checkpoint> whole = open_weights(folder);
  ASSERT_TRUE(alone.ok() && whole.ok());
  EXPECT_EQ(alone->weight_bytes, whole->weight_bytes);
  EXPECT_EQ(alone->config.dtype, whole->config.dtype);
  ASSERT_EQ(alone->weights.tensors.size(), whole->weights.tensors.size());
  for (const auto& [name, t] : whole->weights.tensors) {
    const RawTensor* same = alone->weights.find(name);
    ASSERT_NE(same, nullptr) << name;
    EXPECT_EQ(same->shape, t.shape) << name;
    EXPECT_EQ(same->bytes, t.bytes) << name;
  }
  EXPECT_EQ(gpu_weight_bytes(alone->weights), gpu_weight_bytes(whole->weights));
  fs::remove_all(folder);
}

}  // namespace
}  // namespace deepinfer
