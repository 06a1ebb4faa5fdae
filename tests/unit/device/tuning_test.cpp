#include "device/tuning.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace deepinfer {
namespace {

constexpr uint64_t kGiB = 1 << 30;

GpuInfo card(int major, int minor, uint64_t gib) {
  return {.name = "Card", .total_bytes = gib * kGiB, .capability = ComputeCapability{major, minor}};
}

TEST(GraphSizes, TheListOfThe5090) {
  EXPECT_THAT(graph_sizes(512, true), testing::ElementsAre(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192,
                                                           224, 256, 288, 320, 352, 384, 416, 448, 480, 512));
}

TEST(GraphSizes, EndsWithTheLargestBatch) {
  EXPECT_THAT(graph_sizes(1, false), testing::ElementsAre(1));
  EXPECT_THAT(graph_sizes(5, false), testing::ElementsAre(1, 2, 4, 5));
  EXPECT_THAT(graph_sizes(50, false), testing::ElementsAre(1, 2, 4, 8, 16, 24, 32, 40, 48, 50));
  for (const bool for_5090 : {false, true}) {
    const std::vector<int> sizes = graph_sizes(1000, for_5090);
    EXPECT_EQ(sizes.back(), 1000);
    for (size_t i = 1; i < sizes.size(); ++i) EXPECT_LT(sizes[i - 1], sizes[i]);
  }
}

TEST(Tuning, OnA5090) {
  const GpuTuning t =
      resolve_tuning({.max_num_seqs = 512, .nvidia_5090_optimizations = true}, card(12, 0, 32));
  EXPECT_TRUE(t.for_5090 && t.fp8_weights && t.fp8_kv_cache && t.cuda_graphs);
  EXPECT_EQ(t.warning, "");
  EXPECT_EQ(t.pdl_max_batch, 32);
  EXPECT_EQ(t.graph_sizes, graph_sizes(512, true));
  EXPECT_EQ(t.headroom_bytes, 32 * kGiB / 25);
  EXPECT_EQ(resolve_tuning({.nvidia_5090_optimizations = true}, card(12, 0, 8)).headroom_bytes, kGiB);
}

TEST(Tuning, TheSettingsOfThe5090DoNothingElsewhere) {
  const GpuTuning t = resolve_tuning({.nvidia_5090_optimizations = true}, card(8, 9, 24));
  EXPECT_FALSE(t.for_5090 || t.fp8_weights || t.fp8_kv_cache);
  EXPECT_THAT(t.warning, testing::HasSubstr("does nothing on Card (compute capability 8.9)"));
  EXPECT_EQ(t.pdl_max_batch, 0);
  EXPECT_THAT(resolve_tuning({.nvidia_5090_optimizations = true}, {}).warning, testing::HasSubstr("unknown"));
}

TEST(Tuning, OtherCards) {
  GpuTuning t = resolve_tuning({.max_num_seqs = 20}, card(9, 0, 140));
  EXPECT_EQ(t.warning, "");
  EXPECT_EQ(t.pdl_max_batch, 32);
  EXPECT_THAT(t.graph_sizes, testing::ElementsAre(1, 2, 4, 8, 16, 20));
  t = resolve_tuning({.max_num_seqs = 20, .enforce_eager = true}, card(9, 0, 140));
  EXPECT_FALSE(t.cuda_graphs);
  EXPECT_TRUE(t.graph_sizes.empty());
}

TEST(Tuning, A5090WithoutItsSettings) {
  const GpuTuning t = resolve_tuning({}, card(12, 0, 32));
  EXPECT_FALSE(t.for_5090 || t.fp8_weights || t.fp8_kv_cache);
  EXPECT_EQ(t.warning, "");
}

}  // namespace
}  // namespace deepinfer
