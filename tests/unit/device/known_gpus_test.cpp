#include "device/known_gpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace deepinfer {
namespace {

using testing::HasSubstr;

TEST(KnownGpus, AreInOrderAndPlausible) {
  const auto gpus = known_gpus();
  EXPECT_TRUE(std::is_sorted(gpus.begin(), gpus.end(),
                             [](const KnownGpu& a, const KnownGpu& b) { return a.mib < b.mib; }));
  for (const KnownGpu& g : gpus) {
    EXPECT_GE(g.mib, 8000) << g.name;
    EXPECT_GE(g.capability.major, 7) << g.name;
    // What a card multiplies while it reads a byte, and a link beside its memory.
    EXPECT_GT(g.tflops * 1000 / g.gb_per_second, 60) << g.name;
    EXPECT_LT(g.tflops * 1000 / g.gb_per_second, 500) << g.name;
    EXPECT_GT(g.gb_per_second, 5 * g.link.gb_per_second) << g.name;
    EXPECT_TRUE(g.link.peer || !g.link.nvlink) << g.name;
    EXPECT_EQ(std::string(g.name).find("GeForce") == std::string::npos, g.link.peer) << g.name;
    const Result<KnownGpu> found = find_known_gpu(g.name);
    ASSERT_TRUE(found.ok()) << g.name;
    EXPECT_STREQ(found->name, g.name) << "the whole name means this card alone";
  }
}

TEST(KnownGpus, AreFoundByWhatPeopleCallThem) {
  const struct {
    const char* called;
    const char* name;
  } cases[] = {{"RTX 5090", "NVIDIA GeForce RTX 5090"},
               {"rtx5090", nullptr},
               {"5090", "NVIDIA GeForce RTX 5090"},
               {"geforce rtx 4090", "NVIDIA GeForce RTX 4090"},
               {"RTX-4090", "NVIDIA GeForce RTX 4090"},
               {"4070 ti", "NVIDIA GeForce RTX 4070 Ti"},
               {"4070 ti super", "NVIDIA GeForce RTX 4070 Ti SUPER"},
               {"h200", "NVIDIA H200"},
               {"A100 80GB", "NVIDIA A100 80GB"},
               {"L4", "NVIDIA L4"},
               {"6000 Ada", "NVIDIA RTX 6000 Ada Generation"},
               {"Pro 6000", "NVIDIA RTX PRO 6000 Blackwell"}};
  for (const auto& c : cases) {
    const Result<KnownGpu> found = find_known_gpu(c.called);
    ASSERT_EQ(found.ok(), c.name != nullptr) << c.called;
    if (found) {
      EXPECT_STREQ(found->name, c.name) << c.called;
    } else {
      EXPECT_THAT(found.error().message, HasSubstr("did you mean"));
    }
  }
}

TEST(KnownGpus, AreKnownByWhatTheDriverCallsThem) {
  const struct {
    const char* driver;
    const char* name;
  } cases[] = {{"NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB"},
               {"NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB"},
               {"NVIDIA A100-SXM4-40GB", "NVIDIA A100 40GB"},
               {"NVIDIA GeForce RTX 4070 Ti SUPER", "NVIDIA GeForce RTX 4070 Ti SUPER"},
               {"NVIDIA GeForce RTX 5090", "NVIDIA GeForce RTX 5090"},
               {"NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "NVIDIA RTX PRO 6000 Blackwell"},
               {"NVIDIA GeForce RTX 4090 Laptop GPU", nullptr},
               {"NVIDIA GeForce GTX 1080", nullptr},
               {"a GPU", nullptr},
               {"", nullptr}};
  for (const auto& c : cases) {
    const std::optional<KnownGpu> found = card_called(c.driver);
    ASSERT_EQ(found.has_value(), c.name != nullptr) << c.driver;
    if (found) EXPECT_STREQ(found->name, c.name);
  }
}

TEST(KnownGpus, WhatIsUnclearIsRefused) {
  const Result<KnownGpu> several = find_known_gpu("A100");
  ASSERT_FALSE(several.ok());
  EXPECT_EQ(several.error().code, ErrorCode::kConfig);
  EXPECT_THAT(several.error().message, HasSubstr("A100 40GB, A100 80GB"));
  for (const char* name : {"", "nvidia", "RTX 9999 Ultra", "card"}) {
    const Result<KnownGpu> none = find_known_gpu(name);
    ASSERT_FALSE(none.ok()) << name;
    EXPECT_THAT(none.error().message, HasSubstr("--memory"));
  }
  EXPECT_THAT(find_known_gpu("5909").error().message, HasSubstr("did you mean '5090'"));
}

}  // namespace
}  // namespace deepinfer
