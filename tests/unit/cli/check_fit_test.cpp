// A model that cannot fit is refused before it is fetched, and nothing else is.
#include "cli/check_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <vector>

#include "device/known_gpus.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

class CheckFit : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / "check_fit_test_model";
    fs::create_directories(folder_);
    config_.model.name = folder_.string();
  }
  void TearDown() override { fs::remove_all(folder_); }

  void model(int hidden, int layers, int heads, int ffn) const {
    std::ofstream(folder_ / "config.json")
        << R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "num_key_value_heads": 8,)"
        << R"("max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": false,)"
        << "\"hidden_size\": " << hidden << ", \"num_hidden_layers\": " << layers
        << ", \"num_attention_heads\": " << heads << ", \"intermediate_size\": " << ffn << "}";
  }
  static std::vector<GpuInfo> cards(const char* name, int count) {
    const Result<KnownGpu> g = find_known_gpu(name);
    EXPECT_TRUE(g.ok()) << name;
    std::vector<GpuInfo> all;
    for (int i = 0; i < count; ++i)
      all.push_back({.id = i, .name = g->name, .total_bytes = g->bytes(), .capability = g->capability});
    return all;
  }

  fs::path folder_;
  Config config_;
};

TEST_F(CheckFit, TheGuidesModelOnTheGuidesCards) {
  model(8192, 80, 64, 28672);
  config_.gpu.nvidia_5090_optimizations = true;
  config_.gpu.gpu_memory_utilization = 0.95;
  const auto two = cards("RTX 5090", 2);
  const Result<void> refused = check_fit(config_, two);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kMemory);
  EXPECT_THAT(refused.error().message, HasSubstr("the model does not fit: its weights need 67.67 GiB"));
  EXPECT_THAT(refused.error().message,
              HasSubstr("What fits the 2 cards of this machine:\n  --quantization int4 "
                        "--tensor-parallel-size 2: 18.4 GiB of weights on each"));
  config_.gpu.tensor_parallel_size = 2;
  EXPECT_FALSE(check_fit(config_, two).ok()) << "8 bits are too many for two";
  config_.model.quantization = "int4";
  EXPECT_TRUE(check_fit(config_, two).ok());
  config_.gpu.tensor_parallel_size = 1;
  EXPECT_FALSE(check_fit(config_, two).ok()) << "4 bits are too many for one";
  const Result<void> alone = check_fit(config_, cards("RTX 4090", 1));
  ASSERT_FALSE(alone.ok());
  EXPECT_THAT(alone.error().message, Not(HasSubstr("What fits"))) << "nothing does";
  config_.model.quantization = "none";
  const Result<void> h200 = check_fit(config_, cards("H100 80GB", 1));
  ASSERT_FALSE(h200.ok());
  EXPECT_THAT(h200.error().message, HasSubstr("What fits this card:\n  --quantization fp8: "));
}

TEST_F(CheckFit, WhatOnlyLoadingCanTellIsLeftToIt) {
  model(4096, 32, 32, 14336);
  EXPECT_TRUE(check_fit(config_, cards("RTX 5090", 1)).ok());
  // The weights fit; a context of this length does not.
  config_.model.max_model_len = 131072;
  EXPECT_TRUE(check_fit(config_, cards("RTX 4090", 1)).ok());
  EXPECT_FALSE(check_fit(config_, cards("RTX 4060", 1)).ok());
  EXPECT_TRUE(check_fit(config_, std::vector<GpuInfo>{}).ok()) << "the CPU";
  EXPECT_TRUE(check_fit(config_, std::vector<GpuInfo>{{.name = "a card of unknown memory"}}).ok());
  config_.model.quantization = "awq";
  EXPECT_TRUE(check_fit(config_, cards("RTX 4060", 1)).ok()) << "it is no AWQ checkpoint, which others say";
  config_.model.name = (folder_ / "nowhere").string();
  EXPECT_TRUE(check_fit(config_, cards("RTX 4060", 1)).ok()) << "so is this";
}

}  // namespace
}  // namespace deepinfer
