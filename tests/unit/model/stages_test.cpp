// Which layers stages get, and that a stage with the head beside the first layers is the same model.
#include "model/stages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace deepinfer {
namespace {

using ::testing::ElementsAre;

ModelConfig shape(int layers, int hidden, int ffn, int vocab) {
  return {.vocab_size = vocab,
          .hidden = hidden,
          .layers = layers,
          .heads = hidden / 64,
          .kv_heads = hidden / 192,
          .head_dim = 64,
          .ffn = ffn};
}

std::vector<int> layers_of(const ModelConfig& c, int stages) {
  std::vector<int> all;
  int next = 0;
  for (int s = 0; s < stages; ++s) {
    const auto range = plan_stage(c, s, stages);
    EXPECT_TRUE(range.ok());
    EXPECT_EQ(range->first, next);
    next = range->last;
    all.push_back(range->last - range->first);
  }
  EXPECT_EQ(next, c.layers);
  return all;
}

TEST(PlanStage, TheFirstStageHasFewerLayersForItsHead) {
  const ModelConfig smol = shape(30, 576, 1536, 49152);  // its head weighs as much as eight layers
  EXPECT_THAT(layers_of(smol, 1), ElementsAre(30));
  EXPECT_THAT(layers_of(smol, 2), ElementsAre(13, 17));
  EXPECT_THAT(layers_of(smol, 3), ElementsAre(6, 12, 12));
  const ModelConfig large = shape(80, 8064, 28672, 1000);
  EXPECT_THAT(layers_of(large, 4), ElementsAre(20, 20, 20, 20));
}

TEST(PlanStage, EveryStageHasSomeAndNoneHasMuchMore) {
  for (int layers = 1; layers <= 33; ++layers)
    for (int stages = 1; stages <= layers; ++stages) {
      const std::vector<int> all = layers_of(shape(layers, 576, 1536, 49152), stages);
      EXPECT_GE(*std::min_element(all.begin(), all.end()), 1) << layers << " layers, " << stages << " stages";
      if (stages < 3) continue;
      const auto [least, most] = std::minmax_element(all.begin() + 1, all.end());
      EXPECT_LE(*most - *least, 1);
      EXPECT_LE(all[0], *most);
    }
}

TEST(PlanStage, MoreStagesThanLayersAreRefused) {
  const auto got = plan_stage(shape(4, 576, 1536, 1000), 0, 5);
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, ErrorCode::kConfig);
  EXPECT_THAT(
      got.error().message,
      testing::HasSubstr("gpu.pipeline_parallel_size: got 5, expected at most 4: the model has 4 layers"));
}

}  // namespace
}  // namespace deepinfer
